"""Calls of every kind within `compact`: odd clips and batches, limits, threads, training."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llm_models import MAKERS, Tiny

from video.llm import check, compact, keep_every
from video.llm.tower import tower_of, watched

pytestmark = pytest.mark.usefixtures("plain_inference")
TOLERANCE = 2e-5
GREEDY = {"max_new_tokens": 3, "do_sample": False}
WITH_VIDEOS = sorted({*MAKERS} - {"internvl", "smolvlm"})  # those take a video as images


def two(tiny: Tiny) -> dict[str, Any]:
    """Prompts of unequal length."""
    return tiny.prompts([[5, 6], tiny.video(4), [7, 8, 9]], [[5], tiny.video(4, seed=2), [7, 9]])


@pytest.mark.parametrize("method", ["dycoke", "tome", "visionzip", "fastv", "dycoke_cache"])
def test_a_clip_of_one_frame_is_made_smaller(tiny: Tiny, method: str) -> None:
    inputs = tiny.prompts([[5, 6], tiny.video(1), [7, 8, 9]])
    with compact(tiny.model, method, 0.5) as report:
        words = tiny.model.generate(**inputs, **GREEDY)
    assert words.shape[1] == inputs["input_ids"].shape[1] + 3
    if report.plans:
        assert [plan.num_out for plan in report.plans] == [2]
    assert check(tiny.model, inputs, keep_every(2)) < TOLERANCE


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("method", ["dycoke", "fastv"])
@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_prompts_with_no_video_or_several_give_the_words_of_each_alone(
    name: str, method: str, num_beams: int
) -> None:
    tiny = MAKERS[name]()
    samples: list[list[Any]] = [
        [[5, 6], tiny.video(4), [7, 8]],
        [[1, 2, 3]],
        [[4], tiny.video(4, seed=2), [6], tiny.video(4, seed=3), [7]],
    ]
    options = {**GREEDY, "num_beams": num_beams}
    with compact(tiny.model, method, 0.5):
        together = tiny.model.generate(**tiny.prompts(*samples), **options)
        alone = [tiny.model.generate(**tiny.prompts(s), **options)[:, -3:] for s in samples]
    assert torch.equal(together[:, -3:], torch.cat(alone))


@pytest.mark.parametrize("method", ["fastv", "framefusion", "dycoke_cache"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_prompts_of_equal_length_but_unlike_videos_run_inside(name: str, method: str) -> None:
    tiny = MAKERS[name]()
    samples: list[list[Any]] = [
        [[5, 6], tiny.video(4), [7, 8]],
        [[5], tiny.video(2, seed=2), [9]],
    ]
    lengths = [tiny.prompts(sample)["input_ids"].shape[1] for sample in samples]
    samples[1][2] = [9] * (1 + lengths[0] - lengths[1])
    inputs = tiny.prompts(*samples)
    assert bool(inputs["attention_mask"].all())
    with compact(tiny.model, method, 0.5):
        together = tiny.model.generate(**inputs, **GREEDY)
        alone = [tiny.model.generate(**tiny.prompts(s), **GREEDY)[:, -3:] for s in samples]
    assert torch.equal(together[:, -3:], torch.cat(alone))


@pytest.mark.parametrize("method", ["dycoke", "fastv"])  # fastv runs these one by one
@pytest.mark.parametrize("place", ["argument", "config", "model"])
def test_limits_of_length_count_the_whole_prompt(
    tiny: Tiny, method: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = two(tiny)
    length = inputs["input_ids"].shape[1]
    given: dict[str, Any] = {"do_sample": False}
    if place == "argument":
        given |= {"max_length": length + 3}
    elif place == "model":
        monkeypatch.setattr(tiny.model.generation_config, "max_length", length + 3)
    else:
        config = copy.deepcopy(tiny.model.generation_config)
        config.max_length = length + 3
        given |= {"generation_config": config}
    with compact(tiny.model, method, 0.25):
        words = tiny.model.generate(**inputs, **given)
    assert words.shape[1] == length + 3
    if place == "config":
        assert config.max_length == length + 3  # what was given is not changed


def test_beams_of_a_configuration_count_as_those_of_an_argument() -> None:
    tiny = MAKERS["internvl"]()
    inputs = tiny.prompts(
        [[5], tiny.video(4), [7]], [[5], tiny.video(2, seed=2), [9], tiny.video(1), [7]]
    )
    config = copy.deepcopy(tiny.model.generation_config)
    config.num_beams = 2
    with compact(tiny.model, "dycoke", 0.5):
        for given in ({"generation_config": config}, {"num_beams": 2}):
            with pytest.raises(ValueError, match="cannot be repeated for 2 beams"):
                tiny.model.generate(**inputs, **GREEDY, **given)
        config.num_beams, config.use_cache = 1, False
        with pytest.raises(ValueError, match="leave use_cache"):
            tiny.model.generate(**inputs, **GREEDY, generation_config=config)


def test_sampling_is_repeated_by_its_seed_and_left_alone_at_budget_1(tiny: Tiny) -> None:
    inputs = two(tiny)
    options = {"max_new_tokens": 4, "do_sample": True, "top_k": 20, "num_return_sequences": 3}

    def sample() -> torch.Tensor:
        torch.manual_seed(0)
        words: torch.Tensor = tiny.model.generate(**inputs, **options)
        return words

    untouched = sample()
    with compact(tiny.model, "dycoke", 1.0):
        assert torch.equal(sample(), untouched)
    with compact(tiny.model, "dycoke", 0.25):
        first = sample()
        assert torch.equal(sample(), first)
    assert first.shape == untouched.shape
    assert not torch.equal(first, untouched)


def test_an_eager_tower_attends_by_its_own_code_while_it_is_watched(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    inputs = tiny.prompts([[5, 6], tiny.video(4), [7, 8, 9]])
    expected = model(**inputs).logits
    with compact(model, "visionzip", 1.0):
        assert torch.equal(model(**inputs).logits, expected)
    assert tower_of(model).config._attn_implementation == "eager"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("method", ["visionzip", "tome", "evs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_with_checkpoints_gives_the_same_gradients(
    implementation: str, method: str, dtype: torch.dtype
) -> None:
    tiny = MAKERS["llava_onevision"]()
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in two(tiny).items()}
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] > 100, -100)
    gradients = []
    for checkpoints in (False, True):
        model = copy.deepcopy(tiny.model).to(dtype).train().requires_grad_(True)
        model.set_attn_implementation(implementation)
        if checkpoints:
            model.gradient_checkpointing_enable()
        with torch.enable_grad(), compact(model, method, 0.5):
            model(**inputs, labels=labels).loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad)
        gradients.append(tower_of(model).embeddings.patch_embedding.weight.grad)
    assert all(bool(g.isfinite().all()) and float(g.abs().max()) > 0 for g in gradients)
    torch.testing.assert_close(gradients[:2], gradients[2:], atol=1e-6, rtol=1e-5)


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What jobs give that start together in threads; their errors are raised here."""
    results: list[Any] = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def run(number: int) -> None:
        barrier.wait()
        try:
            with torch.no_grad():
                results[number] = jobs[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("method", ["dycoke", "visionzip", "fastv"])
def test_threads_that_share_a_model_get_the_words_of_one_after_another(method: str) -> None:
    tiny = MAKERS["qwen3_vl"]()
    prompts = [tiny.prompts([[5, 6], tiny.video(4, seed=s), [7] * s]) for s in range(1, 5)]
    with compact(tiny.model, method, 0.5):
        expected = [tiny.model.generate(**one, **GREEDY) for one in prompts]
        jobs = [lambda one=one: tiny.model.generate(**one, **GREEDY) for one in prompts]
        got = at_once(jobs)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_towers_of_two_models_are_not_watched_at_the_same_time() -> None:
    models = [MAKERS["llava_onevision"]().model for _ in range(2)]
    inside, most = 0, 0

    def watch(model: Any) -> None:
        nonlocal inside, most
        for _ in range(20):
            with watched(model):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.001)
                inside -= 1

    at_once([lambda model=model: watch(model) for model in models])
    assert most == 1


@pytest.mark.parametrize("budget", [0, 1.5, -1, True, float("nan"), "a"])
@pytest.mark.parametrize("method", ["dycoke", "fastv", "framefusion"])
def test_what_is_no_budget_is_refused_at_the_door(budget: Any, method: str) -> None:
    tiny = MAKERS["llava_onevision"]()
    with pytest.raises(ValueError, match=r"budget=.*; expected a fraction of the tokens"):
        compact(tiny.model, method, budget).__enter__()
    assert "generate" not in vars(tiny.model)


def test_a_name_that_is_nearly_one_is_named() -> None:
    with pytest.raises(KeyError, match="did you mean 'pyramiddrop'"):
        compact(MAKERS["llava_onevision"]().model, "pyramid_drop").__enter__()


def test_a_model_that_cannot_be_opened_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MAKERS["llava_onevision"]().model

    def fail(_: object) -> None:
        raise AttributeError("layers")

    monkeypatch.setattr("video.llm.inside.layers_of", fail)
    with pytest.raises(AttributeError), compact(model, "fastv", 0.5):
        pass
    assert "generate" not in vars(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
