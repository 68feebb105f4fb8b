"""Methods inside the language model, against masks that hide the same tokens layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from llm_models import MAKERS, Tiny
from torch import Tensor

from video.llm import INSIDE, compact
from video.llm.attention import attention_received, attention_rows
from video.llm.compact import Compact
from video.llm.forms import layers_of

pytestmark = pytest.mark.usefixtures("plain_inference")
TOLERANCE = 2e-5
GREEDY = {"max_new_tokens": 5, "do_sample": False}
PRUNING = {"fastv": {"layer": 1}, "pyramiddrop": {}, "sparsevlm": {"recycle": 0.0}}


def equal(tiny: Tiny) -> dict[str, Any]:
    """Two prompts of equal length."""
    return tiny.prompts([[5, 6], tiny.video(4), [7, 8]], [[9, 4], tiny.video(4, seed=2), [3, 2]])


def unequal(tiny: Tiny) -> dict[str, Any]:
    return tiny.prompts([[5, 6], tiny.video(4), [7, 8]], [[4], tiny.video(4, seed=2), [2]])


@contextmanager
def hidden(model: Any, seen: list[Tensor]) -> Iterator[None]:
    """Hide from each layer, by its mask, all places but those of `seen`, one [B, N] per layer."""

    def hook(number: int, left: Tensor) -> Any:
        def before(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("cache")
            past = cache.get_seq_length(number) if x.shape[1] == 1 else 0
            queries = torch.arange(past, past + x.shape[1])
            keys = torch.arange(past + x.shape[1])
            shown = torch.ones(len(left), len(keys), dtype=torch.bool)
            if past == 0:
                hidden.length = len(keys)
            shown[:, : hidden.length] = False
            shown.scatter_(1, left, True)
            mask = shown[:, None] | (keys == queries[:, None])
            mask = mask & (keys <= queries[:, None])
            return args, {**kwargs, "attention_mask": mask[:, None]}

        return before

    handles = [
        layer.register_forward_pre_hook(hook(number, left), with_kwargs=True)
        for number, (layer, left) in enumerate(zip(layers_of(model), seen, strict=True))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def counts(report: Any, inputs: dict[str, Any]) -> list[int]:
    """Visual tokens of a prompt that each layer got, without the newline of LLaVA-OneVision."""
    text = (report.places - report.tokens // 4 * 4) // len(inputs["input_ids"])
    return [places - text for places in report.layers]


@pytest.mark.parametrize("method", PRUNING)
def test_pruning_gives_the_words_of_hiding_layer_by_layer(tiny: Tiny, method: str) -> None:
    inputs = equal(tiny)
    work = Compact(tiny.model, method, 0.25, "keep", ("video", "image"), None, PRUNING[method])
    with work:
        logits = tiny.model(**inputs).logits[:, -1]
        seen = list(work.inside.seen)
        words = tiny.model.generate(**inputs, **GREEDY)
    assert counts(work.report, inputs)[-1] == 4
    with hidden(tiny.model, seen):
        torch.testing.assert_close(
            logits, tiny.model(**inputs).logits[:, -1], atol=TOLERANCE, rtol=0
        )
        assert torch.equal(words, tiny.model.generate(**inputs, **GREEDY))
    assert (logits - tiny.model(**inputs).logits[:, -1]).abs().max() > 0.01


@pytest.mark.parametrize("method", INSIDE)
def test_budget_1_gives_the_logits_of_the_untouched_model(tiny: Tiny, method: str) -> None:
    inputs = equal(tiny)
    expected = tiny.model(**inputs).logits
    words = tiny.model.generate(**inputs, **GREEDY)
    with compact(tiny.model, method, 1.0) as report:
        assert torch.equal(tiny.model(**inputs).logits, expected)
        assert torch.equal(tiny.model.generate(**inputs, **GREEDY), words)
    assert report.layers == [inputs["input_ids"].shape[1]] * 4


@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl"])
def test_prompts_of_unequal_length_give_the_words_of_each_alone(name: str, method: str) -> None:
    tiny = MAKERS[name]()
    with compact(tiny.model, method, 0.5):
        both = tiny.model.generate(**unequal(tiny), **GREEDY)
        first = tiny.prompts([[5, 6], tiny.video(4), [7, 8]])
        second = tiny.prompts([[4], tiny.video(4, seed=2), [2]])
        alone = [tiny.model.generate(**one, **GREEDY)[:, -5:] for one in (first, second)]
    assert torch.equal(both[:, -5:], torch.cat(alone))
    assert torch.equal(both[:, :-5], unequal(tiny)["input_ids"])


@pytest.mark.parametrize("method", INSIDE)
def test_beams_of_a_batch_are_those_of_each_prompt_alone(method: str) -> None:
    tiny = MAKERS["qwen3_vl"]()
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
    with compact(tiny.model, method, 0.5):
        both = tiny.model.generate(**equal(tiny), **options)[:, -3:]
        first = tiny.prompts([[5, 6], tiny.video(4), [7, 8]])
        second = tiny.prompts([[9, 4], tiny.video(4, seed=2), [3, 2]])
        alone = [tiny.model.generate(**one, **options)[:, -3:] for one in (first, second)]
    assert torch.equal(both, torch.cat(alone))


def test_framefusion_of_equal_frames_gives_the_shorter_prompt(tiny: Tiny) -> None:
    inputs = tiny.prompts([[5, 6], tiny.video(2, repeat=2), [7, 8]])
    work = Compact(
        tiny.model, "framefusion", 0.5, "keep", ("video", "image"), None, {"threshold": 0.999}
    )
    with work:
        logits = tiny.model(**inputs).logits[:, -1]
    assert counts(work.report, inputs) == [8, 8, 8, 8]
    from video.compress import Plan

    def first_of_two(x_TND: Tensor, _: Any) -> Plan:
        T, N, _ = x_TND.shape
        return Plan.keep(torch.arange(T * N).view(T, N)[::2].reshape(1, -1), T * N)

    with compact(tiny.model, first_of_two):
        expected = tiny.model(**inputs).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_framefusion_merges_then_prunes_by_attention() -> None:
    tiny = MAKERS["llava_onevision"]()
    inputs = tiny.prompts([[5, 6], tiny.video(8), [7, 8]])
    options = {"threshold": 0.9999}  # random frames have nothing in common
    work = Compact(tiny.model, "framefusion", 0.6, "keep", ("video",), None, options)
    with work:
        tiny.model(**inputs)
        seen = list(work.inside.seen)
    left = counts(work.report, inputs)
    assert left[0] == 32
    assert sum(left) / (32 * 4) == pytest.approx(0.6, abs=0.02)
    with hidden(tiny.model, seen):
        expected = tiny.model(**inputs).logits[:, -1]
    with work:
        got = tiny.model(**inputs).logits[:, -1]
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_sparsevlm_keeps_means_of_what_goes_within_the_budget(tiny: Tiny) -> None:
    inputs = tiny.prompts([[5, 6], tiny.video(12), [7, 8]])
    with compact(tiny.model, "sparsevlm", 0.25) as report:
        recycled = tiny.model(**inputs).logits[:, -1]
    assert counts(report, inputs)[-1] == 12
    with compact(tiny.model, "sparsevlm", 0.25, recycle=0.0):
        assert (tiny.model(**inputs).logits[:, -1] - recycled).abs().max() > 1e-3


def test_dycoke_cache_reads_part_of_the_video_for_each_word(tiny: Tiny) -> None:
    inputs = equal(tiny)
    whole = tiny.model.generate(
        **inputs, **GREEDY, return_dict_in_generate=True, output_logits=True
    )
    options = {"return_dict_in_generate": True, "output_logits": True}
    with compact(tiny.model, "dycoke_cache", 0.25) as report:
        part = tiny.model.generate(**inputs, **GREEDY, **options)
    assert report.layers == [inputs["input_ids"].shape[1]] * 4
    assert torch.equal(part.logits[0], whole.logits[0])  # the prompt sees everything
    assert (part.logits[1] - whole.logits[1]).abs().max() > 1e-4
    lengths = [layer.keys.shape[2] for layer in part.cache.layers]
    assert lengths == [inputs["input_ids"].shape[1] + 4] * 4  # and nothing is lost


def test_attention_worked_out_again_is_that_of_the_model(tiny: Tiny) -> None:
    inputs = equal(tiny)
    tiny.model.set_attn_implementation("eager")
    caught: dict[int, Any] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, n=n: caught.update({n: (args[0], kwargs)}), with_kwargs=True
        )
        for n, layer in enumerate(layers_of(tiny.model))
    ]
    expected = tiny.model(**inputs, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    tiny.model.set_attn_implementation("sdpa")
    for n, layer in enumerate(layers_of(tiny.model)):
        x, kwargs = caught[n]
        rotary = kwargs["position_embeddings"]
        rows = attention_rows(layer, x, rotary, torch.tensor([[3, 19], [0, 7]]))
        assert torch.allclose(rows[0], expected[n][0][:, [3, 19]], atol=1e-5)
        assert torch.allclose(rows[1], expected[n][1][:, [0, 7]], atol=1e-5)
        received = attention_received(layer, x, rotary)
        assert torch.allclose(received, expected[n].mean((1, 2)), atol=1e-5)


def test_everything_is_restored_and_refused_in_a_sentence() -> None:
    tiny = MAKERS["qwen3_vl"]()
    before = tiny.model(**equal(tiny)).logits
    with pytest.raises(ValueError, match="equal length"), compact(tiny.model, "fastv", 0.5):
        tiny.model(**unequal(tiny))
    with pytest.raises(ValueError, match="labels"), compact(tiny.model, "fastv", 0.5):
        tiny.model(**equal(tiny), labels=equal(tiny)["input_ids"])
    with pytest.raises(ValueError, match="share of the operations"):
        compact(tiny.model, "framefusion", 8).__enter__()
    with pytest.raises(ValueError, match=r"layer=9; expected 1\.\.3"):
        with compact(tiny.model, "fastv", 0.5, layer=9):
            tiny.model(**equal(tiny))
    with pytest.raises(ValueError, match="cache that grows"), compact(tiny.model, "fastv", 0.5):
        tiny.model.generate(**equal(tiny), **GREEDY, cache_implementation="static")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in tiny.model.modules())
    assert torch.equal(tiny.model(**equal(tiny)).logits, before)


@pytest.mark.parametrize("method", INSIDE)
def test_a_modality_that_is_not_named_stays_whole(method: str) -> None:
    tiny = MAKERS["qwen2_5_vl"]()
    expected = tiny.model(**equal(tiny)).logits
    with compact(tiny.model, method, 0.25, modalities=("image",)):
        assert torch.equal(tiny.model(**equal(tiny)).logits, expected)
        tiny.model.generate(**equal(tiny), **GREEDY)
