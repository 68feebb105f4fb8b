"""Real classes of `transformers`, tiny and with random weights, generate from fewer tokens."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llm_models import IMAGE, MAKERS, SISTERS, VIDEO, Tiny
from torch import Tensor

from video.compress import METHODS, Plan
from video.llm import FORMS, INSIDE, check, compact, compact_call, keep_every
from video.llm.encode import encode
from video.llm.tower import tower_of, window_order

pytestmark = pytest.mark.usefixtures("plain_inference")
TOLERANCE = 2e-5  # logits are of size 1; both sides round differently
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def two(tiny: Tiny) -> dict[str, Any]:
    """A batch of two prompts of unequal length with a video each."""
    return tiny.prompts([[5, 6], tiny.video(4), [7, 8, 9]], [[5], tiny.video(4, seed=2), [7, 9]])


def mixed(tiny: Tiny) -> dict[str, Any]:
    """Two prompts with an image and a video each, in either order."""
    return tiny.prompts(
        [[5], tiny.image(3), [6, 6], tiny.video(4), [7, 8]],
        [[5, 4], tiny.video(4, seed=2), [9], tiny.image(4), [7]],
    )


def ragged(x_TND: Tensor, budget: Any) -> Plan:
    """A method that keeps a number of tokens which depends on them."""
    num_in = x_TND.shape[0] * x_TND.shape[1]
    return Plan.keep(torch.arange(0, num_in, 2 + int(x_TND.sum() > 0))[None], num_in)


def pairs(x_TND: Tensor, budget: Any) -> Plan:
    """A method that averages every two frames."""
    T, N, _ = x_TND.shape
    return Plan.from_labels((torch.arange(T)[:, None] // 2 * N + torch.arange(N)).view(1, -1))


@pytest.mark.parametrize("prompts", [two, mixed])
def test_budget_1_gives_the_logits_of_the_untouched_model_to_the_bit(
    tiny: Tiny, prompts: Callable[[Tiny], dict[str, Any]]
) -> None:
    inputs = prompts(tiny)
    expected = tiny.model(**inputs).logits
    with compact(tiny.model, "dycoke", 1.0) as report:
        got = tiny.model(**inputs).logits
    assert torch.equal(got, expected)
    assert report.kept == report.tokens > 0


@pytest.mark.parametrize("prompts", [two, mixed])
@pytest.mark.parametrize("method", [keep_every(3), ragged, "dycoke"])
def test_leaving_tokens_out_gives_the_logits_of_hiding_them(
    tiny: Tiny, prompts: Callable[[Tiny], dict[str, Any]], method: Any
) -> None:
    inputs = prompts(tiny)
    assert check(tiny.model, inputs, method, 0.25) < TOLERANCE
    full = tiny.model(**inputs).logits[:, -1]
    with compact(tiny.model, method, 0.25):
        assert (tiny.model(**inputs).logits[:, -1] - full).abs().max() > 0.01


def test_generation_goes_on_as_after_hidden_tokens(tiny: Tiny) -> None:
    inputs = two(tiny)
    _, left = compact_call(tiny.model, inputs, keep_every(2))
    full, _ = compact_call(tiny.model, inputs, keep_every(1))
    assert left is not None
    hidden = torch.zeros_like(full["attention_mask"]).scatter(1, left.index, left.mask.long())
    positions = full["position_ids"]
    if not tiny.mrope:
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    reference = {**inputs, "attention_mask": hidden, "position_ids": positions}
    expected = tiny.model.generate(**reference, **GREEDY)
    with compact(tiny.model, keep_every(2)):
        got = tiny.model.generate(**inputs, **GREEDY)
    assert torch.equal(got, expected)  # the whole prompt in front, and four new words
    assert not torch.equal(got, tiny.model.generate(**inputs, **GREEDY))


def test_merging_equal_frames_gives_the_logits_of_the_shorter_prompt(tiny: Tiny) -> None:
    words = [5, 6], [7, 8, 9]
    inputs = tiny.prompts([words[0], tiny.video(2, repeat=2), words[1]])
    visual = (inputs["input_ids"] == VIDEO) | (inputs["input_ids"] == IMAGE)
    frame = (visual.cumsum(1) - 1) // 4
    left = ~(visual & (frame % 2 == 1))[0]
    full, _ = compact_call(tiny.model, inputs, keep_every(1))
    distinct = tiny.prompts([words[0], tiny.video(2), words[1]])
    short = {
        **{k: v for k, v in distinct.items() if k.startswith("pixel") or k.endswith("thw")},
        "input_ids": inputs["input_ids"][:, left],
        "attention_mask": inputs["attention_mask"][:, left],
        "position_ids": full["position_ids"][..., left],
    }
    if tiny.mrope:
        short["position_ids"][0] = torch.arange(int(left.sum()))
    expected = tiny.model(**short).logits
    with compact(tiny.model, pairs) as report:
        got = tiny.model(**inputs).logits
    assert report.kept == int(visual.sum()) - 8
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_renumbered_positions_give_the_plain_shorter_prompt(name: str) -> None:
    tiny = MAKERS[name]()
    inputs = tiny.prompts([[5, 6], tiny.video(3, repeat=2), [7, 8, 9]])
    short = tiny.prompts([[5, 6], tiny.video(3), [7, 8, 9]])
    with compact(tiny.model, pairs, positions="renumber"):
        logits = tiny.model(**inputs).logits
        words = tiny.model.generate(**inputs, **GREEDY)[:, -4:]
    torch.testing.assert_close(logits, tiny.model(**short).logits, atol=TOLERANCE, rtol=0)
    assert torch.equal(words, tiny.model.generate(**short, **GREEDY)[:, -4:])


def test_positions_and_order_survive(tiny: Tiny) -> None:
    inputs = two(tiny)
    full, _ = compact_call(tiny.model, inputs, keep_every(1))
    backwards = lambda x, _: Plan.keep(torch.tensor([[13, 2, 7]]), 16)  # noqa: E731
    short, left = compact_call(tiny.model, inputs, backwards)
    assert left is not None
    for b in range(2):
        places = left.index[b][left.mask[b]]
        assert bool((places.diff() > 0).all())
        of_place = full["position_ids"][-3:, b] if tiny.mrope else full["position_ids"][b]
        of_short = short["position_ids"][-3:, b] if tiny.mrope else short["position_ids"][b]
        assert torch.equal(of_short[..., left.mask[b]], of_place[..., places])
    every = next(iter(full["mm_encoder_outputs"].values())).pooler_output
    some = next(iter(short["mm_encoder_outputs"].values())).pooler_output
    every, some = (torch.cat([x.flatten(0, -2) for x in y]) for y in (every, some))
    assert torch.equal(some[:3], every[[2, 7, 13]])


def test_beams_and_several_sequences_see_their_own_video(tiny: Tiny) -> None:
    inputs = two(tiny)
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    with compact(tiny.model, keep_every(2)):
        both = tiny.model.generate(**inputs, **options)
        alone = [
            tiny.model.generate(**tiny.prompts([first, tiny.video(4, seed=seed), last]), **options)
            for seed, first, last in ((1, [5, 6], [7, 8, 9]), (2, [5], [7, 9]))
        ]
    assert torch.equal(both[:, -3:], torch.cat([a[:, -3:] for a in alone]))


def test_everything_is_restored_even_after_an_error(tiny: Tiny) -> None:
    inputs = two(tiny)
    model = tiny.model
    before = model.generate(**inputs, **GREEDY)
    state = {name: id(value) for name, value in vars(model).items()}
    deltas = getattr(model.base_model, "rope_deltas", None)
    broken = {**inputs, "attention_mask": inputs["attention_mask"][None]}
    with pytest.raises(ValueError, match="attention_mask"), compact(model, keep_every(2)):
        _ = model.generate(**inputs, **GREEDY), model.generate(**broken, **GREEDY)
    assert {name: id(value) for name, value in vars(model).items()} == state
    assert not model._forward_pre_hooks
    assert getattr(model.base_model, "rope_deltas", None) is deltas
    assert torch.equal(model.generate(**inputs, **GREEDY), before)


def test_a_call_of_words_alone_is_left_as_it_is(tiny: Tiny) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = tiny.model(input_ids=ids).logits
    with compact(tiny.model, "dycoke", 0.25):
        assert torch.equal(tiny.model(input_ids=ids).logits, expected)


def test_only_the_named_modality_becomes_fewer() -> None:
    tiny = MAKERS["qwen2_5_vl"]()
    with compact(tiny.model, keep_every(4), modalities=("video",)) as report:
        tiny.model(**mixed(tiny))
    assert (report.tokens, report.kept) == (40, 8 + 8)


def test_loss_and_gradients_go_through_fewer_tokens() -> None:
    tiny = MAKERS["qwen3_vl"]()
    inputs = two(tiny)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] > 100, -100)
    with torch.enable_grad(), compact(tiny.model, pairs):
        tiny.model(**inputs, labels=labels).loss.backward()
    weight = tiny.model.model.visual.patch_embed.proj.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


def test_a_loop_by_hand_takes_the_same_steps_with_multimodal_rotary() -> None:
    tiny = MAKERS["qwen2_5_vl"]()
    inputs = tiny.prompts([[5, 6], tiny.video(4), [7, 8, 9]])
    with compact(tiny.model, keep_every(2)):
        expected = tiny.model.generate(**inputs, **GREEDY)[:, -4:]
        out = tiny.model(**inputs, use_cache=True)
        words = [out.logits[:, -1:].argmax(-1)]
        for _ in range(3):
            out = tiny.model(input_ids=words[-1], cache=out.cache)
            words.append(out.logits[:, -1:].argmax(-1))
    assert torch.equal(torch.cat(words, 1), expected)


def test_what_cannot_be_done_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = MAKERS["qwen2_5_vl"]()
    inputs = two(tiny)
    with pytest.raises(KeyError, match="unknown method 'nothing'"), compact(tiny.model, "nothing"):
        pass
    with pytest.raises(ValueError, match="times and places"):
        compact(tiny.model, positions="renumber").__enter__()
    with compact(tiny.model):
        with pytest.raises(ValueError, match="compact already"), compact(tiny.model):
            pass
        with pytest.raises(ValueError, match="mm_token_type_ids"):
            tiny.model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"})
        embeds = torch.zeros(1, 4, 64)
        pixels = inputs["pixel_values_videos"]
        for call in (tiny.model, tiny.model.generate):
            with pytest.raises(ValueError, match="needs input_ids"):
                call(inputs_embeds=embeds, pixel_values_videos=pixels)
        with pytest.raises(ValueError, match="leave use_cache"):
            tiny.model.generate(**inputs, use_cache=False)
        with pytest.raises(ValueError, match="16 video placeholders"):
            tiny.model(**{**inputs, "input_ids": inputs["input_ids"][:1]})
    with pytest.raises(ValueError, match="'Linear'"), compact(torch.nn.Linear(2, 2)):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'omnitok\[llm\]'"):
        compact(tiny.model).__enter__()


def test_importing_it_leaves_transformers_alone() -> None:
    import subprocess

    code = "import sys, video.llm; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video", "internvl", "smolvlm"])
def test_attention_of_the_tower_is_taken_to_the_tokens(name: str) -> None:
    tiny = MAKERS[name]()
    inputs = two(tiny)
    if not tiny.frames_are_images:
        inputs.pop("pixel_values", None)
    got = encode(tiny.model, FORMS[name], inputs, ("video", "image"))
    tower = tower_of(tiny.model)
    tower.set_attn_implementation("eager")
    key = "image" if tiny.frames_are_images else "video"
    given = {k: v for k, v in inputs.items() if k.startswith("pixel")}
    out = getattr(tiny.model.model, f"get_{key}_features")(
        **given, output_attentions=True, return_dict=True
    )
    expected = out.attentions[-2].mean(1)  # [frames, patches, patches], or one more
    pool = torch.zeros(4, 16)
    for patch in range(16):
        pool[patch // 8 * 2 + patch % 4 // 2, patch] = 0.25
    if expected.shape[1] == 17:
        expected = expected[:, 0, 1:] @ pool.T
        expected = expected / expected.sum(1, keepdim=True)
    else:
        expected = 4 * pool @ expected @ pool.T
    torch.testing.assert_close(torch.cat(got[key].attention), expected, atol=1e-5, rtol=1e-4)
    assert tower.config._attn_implementation == "eager"


def test_attention_of_a_tower_that_sorts_by_windows_is_put_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("video.llm.tower._DEPTH", 1)
    tiny = MAKERS["qwen2_5_vl"]()
    inputs = two(tiny)
    inputs["pixel_values_videos"] = torch.randn(2 * 2 * 8 * 8, 3 * 2 * 14 * 14)
    inputs["video_grid_thw"] = torch.tensor([[2, 8, 8], [2, 8, 8]])
    tokens = 2 * 16
    ids = torch.tensor([[5, *[VIDEO] * tokens, 7]] * 2)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tower = tower_of(tiny.model)
    for parameter in tower.blocks[0].attn.proj.parameters():
        parameter.zero_()  # windows then change nothing but the order
    form = FORMS["qwen2_5_vl"]
    got = encode(tiny.model, form, inputs, ("video",))["video"].attention
    sorted_by = window_order(tiny.model, inputs["video_grid_thw"])
    tower.window_size = 112  # the whole frame
    expected = encode(tiny.model, form, inputs, ("video",))["video"].attention
    assert sorted_by is not None
    assert sorted_by.tolist() != list(range(64))
    assert [a.shape for a in got] == [(2, 16, 16)] * 2
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", sorted({*METHODS} - {*INSIDE}))
@pytest.mark.parametrize("name", ["llava_next_video", "qwen3_vl"])
def test_every_method_keeps_its_budget_in_a_model(name: str, method: str) -> None:
    tiny = MAKERS[name]()
    inputs = two(tiny)
    with compact(tiny.model, method, 0.25) as report:
        words = tiny.model.generate(**inputs, **GREEDY)
    assert words.shape[1] == inputs["input_ids"].shape[1] + 4
    assert [plan.num_out for plan in report.plans] == [4, 4]
    assert (report.tokens, report.kept) == (32, 8)


@pytest.mark.parametrize("method", ["dycoke", "tome", "fastv", "sparsevlm", "framefusion"])
def test_half_precision_runs_and_keeps_its_budget(method: str) -> None:
    tiny = MAKERS["qwen3_vl"]()
    model = tiny.model.to(torch.bfloat16)
    inputs = tiny.prompts([[5, 6], tiny.video(4), [7, 8]])
    full = model(**inputs).logits
    with compact(model, method, 1.0):
        assert torch.equal(model(**inputs).logits, full)
    with compact(model, method, 0.5):
        out = model(**inputs).logits
        words = model.generate(**inputs, **GREEDY)
    assert out.dtype == torch.bfloat16
    assert bool(torch.isfinite(out).all())
    assert out.shape[1] < full.shape[1]
    assert words.shape[1] == full.shape[1] + 4


@pytest.mark.parametrize("name", SISTERS)
def test_sister_classes_hold_the_same_equalities(name: str) -> None:
    tiny = SISTERS[name]()
    inputs = mixed(tiny)
    full = tiny.model(**inputs).logits
    with compact(tiny.model, "dycoke", 1.0):
        assert torch.equal(tiny.model(**inputs).logits, full)
    assert check(tiny.model, inputs, "dycoke", 0.25) < TOLERANCE
    with compact(tiny.model, "fastv", 0.5):
        tiny.model.generate(**inputs, **GREEDY)
