"""What methods cost and save, measured on tiny models."""

from collections.abc import Iterator

import pytest
import torch
from llm_models import MAKERS

from video.llm.bench import measure


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl"])
def test_every_method_is_measured_against_the_full_answer(name: str) -> None:
    tiny = MAKERS[name]()
    prompts = [tiny.prompts([[5, 6], tiny.video(4, seed=seed), [7, 8]]) for seed in (1, 2)]
    said = [int(tiny.model(**p).logits[0, -1].argmax()) for p in prompts]
    methods = [("dycoke", 1.0), ("evs", 0.25), ("pyramiddrop", 0.25), ("visionzip", 0.25)]
    none, whole, evs, inside, zipped = measure(
        tiny.model, prompts, methods, labels=said, words=3, rounds=1
    )
    assert none.accuracy == whole.accuracy == 1
    assert none.divergence == 0
    assert whole.divergence == pytest.approx(0, abs=1e-6)
    assert none.tokens == none.kept == whole.kept
    for row in (evs, zipped):
        assert row.kept == 8 + 2 * (name == "llava_onevision")
        assert row.divergence > 1e-3
    assert evs.kept < inside.kept < none.kept  # the first layers see all
    for row in (none, whole, evs, inside, zipped):
        assert 0 < row.first_seconds
        assert 0 < row.total_seconds
        assert row.method_seconds >= 0
        assert row.peak_bytes is None or row.peak_bytes >= 0
        assert row.places == none.places > 0


def test_labels_are_one_for_each_prompt() -> None:
    tiny = MAKERS["qwen3_vl"]()
    with pytest.raises(ValueError, match="1 prompts and 2 labels"):
        measure(tiny.model, [tiny.prompts([[5], tiny.video(2)])], [], labels=[1, 2])
