"""OmniTokenizer behind the common face: sizes, windows, streams, promises, samples, training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnitok import Tokens
from omnitok.groups import num_groups
from omnitok.interop import omnitokenizer_parts
from omnitok.interop.loading import Opened, Published
from omnitok.interop.omnitokenizer import OMNITOKENIZER, OmniTokenizer, translate
from omnitok.interop.omnitokenizer_parts import PositionConvolution
from tests.omnitokenizer_files import SETTINGS, omnitokenizer_state
from tests.small_models import noise
from tools.plain_omnitokenizer import PlainOmniTokenizer

FLAVOURS = {
    "vq": {},
    "vae": {"use_vae": True},
    "rel": {"spatial_pos": "rel", "temporal_patch_size": 2},
    "explicit": {"spatial_pos": "rel", "attention": "explicit"},
    "deferred": {"defer_temporal_pool": True, "defer_spatial_pool": True},
    "whole": {},
}
every_flavour = pytest.mark.parametrize("flavour", FLAVOURS)
quick = settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def make(**changes) -> OmniTokenizer:
    """A tokenizer of its own."""
    args = SETTINGS | changes
    state = omnitokenizer_state(**changes)
    contents = {"hyper_parameters": {"args": args}}
    published = Published(path="none", name="small", tensors=state, contents=contents)
    config, tensors = translate(published)
    config = replace(config, attention=args.get("attention", "fused"))
    return Opened(path="none", system=OMNITOKENIZER, config=config, tensors=tensors).load()


@cache
def tokenizer(flavour: str) -> OmniTokenizer:
    tok = make(**FLAVOURS[flavour])
    tok.window = tok.window if flavour != "whole" else None
    return tok


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@every_flavour
@quick
@given(frames=st.integers(1, 30), height=st.integers(1, 40), width=st.integers(1, 40))
def test_p1_what_comes_back_has_the_same_frames_and_pixels(flavour, frames, height, width):
    tok, clip = tokenizer(flavour), noise(frames, height, width)
    tokens = tok.tokenize(clip)
    side = tok.multiple[0] // tok.patch[1]
    groups = num_groups(frames, tok.patch[0], window=tok.window)
    assert tokens.grid == (groups, *(-(-n // tok.multiple[0]) * side for n in (height, width)))
    assert tok.detokenize(tokens).shape == clip.shape
    x = pixels(1, 3, frames, height, width)
    assert tok.decode(tok.encode(x), size=x.shape[2:]).shape == x.shape


@every_flavour
@quick
@given(frames=st.integers(1, 30), cuts=st.lists(st.integers(0, 1000), max_size=6), width=st.just(9))
def test_p4_any_cuts_give_the_whole(flavour, frames, cuts, width):
    if flavour == "whole":
        pytest.skip("takes clips as a whole")
    tok, clip = tokenizer(flavour), noise(frames, 16, width)
    whole = tok.tokenize(clip)
    edges = sorted({0, frames, *(c % frames for c in cuts)})
    with tok.stream() as stream:
        parts = [stream.push(clip[a:b]) for a, b in pairwise(edges)] + [stream.finish()]
    assert torch.equal(Tokens.cat(parts).data, whole.data)
    assert torch.equal(torch.cat(list(tok.stream_decode(parts))), tok.detokenize(whole))
    alone = [tok.tokenize(clip[n : n + tok.window]).data for n in range(0, frames, tok.window)]
    assert torch.equal(torch.cat(alone), whole.data)


def test_without_a_window_clips_are_whole_and_streams_raise():
    tok, clip = make(), noise(15, 16, 16)
    assert tok.window == 9
    assert tok.promises["P4"] is True
    tok.window = None
    assert "stream raises" in str(tok.promises["P4"])
    with pytest.raises(RuntimeError, match="cannot stream"):
        tok.stream()
    x = clip.transpose(0, 1)[None] / 127.5 - 1
    assert torch.equal(tok.tokenize(clip).codes, tok.quantize(tok.encode(x))[0])
    tok.window = 5
    assert tok.promises["P4"] is True
    assert tok.tokenize(clip).grid[0] == 3 * 2
    with pytest.raises(ValueError, match="at least 1"):
        tok.window = 0


@pytest.mark.parametrize(
    ("length", "window"), [(None, 17), (1, 1), (4, 1), (5, 5), (17, 17), (20, 17)]
)
def test_windows_are_the_whole_groups_of_clips_in_training(length, window):
    assert make(sequence_length=length).window == window


@every_flavour
def test_promises_that_do_not_hold_are_said_so_and_do_not_hold(flavour):
    tok = tokenizer(flavour)
    assert {name for name, held in tok.promises.items() if held is not True} <= {"P2", "P3", "P4"}
    assert all(isinstance(tok.promises[name], str) for name in ("P2", "P3"))
    x = pixels(1, 3, 9, 16, 16)
    changed = x.clone()
    changed[:, :, -1] *= -1
    z = tok.encode(x)
    assert not torch.allclose(tok.encode(x[:, :, :1])[:, :, 0], z[:, :, 0], atol=1e-3)  # P2
    assert not torch.allclose(tok.encode(changed)[:, :, 0], z[:, :, 0], atol=1e-3)  # P3
    later = z.clone()
    later[:, :, -1] *= -1
    assert not torch.allclose(tok.decode(later)[:, :, 0], tok.decode(z)[:, :, 0], atol=1e-3)


@every_flavour
def test_p5_tokens_do_not_depend_on_the_batch(flavour):
    tok, x = tokenizer(flavour), pixels(3, 3, 5, 32, 16)
    together = tok.encode(x)
    for i, z in enumerate(together):
        torch.testing.assert_close(tok.encode(x[i : i + 1])[0], z, atol=1e-5, rtol=1e-5)
    clips = [noise(3, 9, 9), noise(6, 16, 20)]
    for clip, tokens in zip(clips, tok.tokenize(clips), strict=True):
        assert torch.equal(tok.tokenize(clip).data, tokens.data)


@every_flavour
def test_p6_codes_decode_to_what_training_saw(flavour):
    tok, x = tokenizer(flavour), pixels(1, 3, 5, 16, 16)
    with torch.no_grad():
        seen = tok.model(x / 2).recon * 2
    z = tok.encode(x)
    z = z if tok.codebook_size is None else tok.dequantize(tok.quantize(z))
    assert torch.equal(tok.decode(z), seen)


def test_kl_gives_the_mean_unless_asked_for_a_sample():
    tok, x = tokenizer("vae"), pixels(1, 3, 5, 16, 16)
    mean = tok.encode(x)
    assert torch.equal(mean, tok.encode(x))
    with torch.no_grad():
        logvar = tok.model.encode(x / 2).movedim(-1, 1)[:, 8:]
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    drawn = tok.encode(x, torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn, mean + (logvar / 2).exp() * noise)
    with pytest.raises(ValueError, match="nothing to sample"):
        tokenizer("vq").encode(x, torch.Generator())
    with pytest.raises(TypeError, match="has no codes"):
        tok.quantize(mean)


@every_flavour
def test_bfloat16_is_close(flavour):
    tok = make(**FLAVOURS[flavour])
    x = pixels(1, 3, 5, 16, 16)
    exact = tok.decode(tok.encode(x))
    tok.model.bfloat16()
    z = tok.encode(x)
    recon = tok.decode(z)
    assert (z.dtype, recon.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.corrcoef(torch.stack([exact.flatten(), recon.float().flatten()]))[0, 1] > 0.98


@every_flavour
def test_work_in_parts_gives_the_same(flavour, monkeypatch):
    tok, x = tokenizer(flavour), pixels(2, 3, 9, 32, 16)
    whole = tok.encode(x)
    monkeypatch.setattr(omnitokenizer_parts, "TOKENS_AT_ONCE", 7)
    torch.testing.assert_close(tok.encode(x), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_a_plain_reading_of_the_published_computation_gives_the_same(seed):
    draw = torch.Generator().manual_seed(seed)

    def choose(*values):
        return values[int(torch.randint(len(values), (), generator=draw))]

    pooled = choose(False, True)
    changes = {
        "embedding_dim": choose(24, 40),
        "heads": choose(1, 2, 4),
        "dim_head": choose(8, 12),
        "patch_size": 4,
        "temporal_patch_size": choose(2, 4),
        "enc_block": choose("tw", "t", "wwt"),
        "dec_block": choose("tt", "w", "tw"),
        "temporal_depth": choose(1, 3),
        "twod_window_size": choose(2, 4),
        "spatial_pos": choose("rope", "rel"),
        "attention": choose("fused", "explicit"),
        "casual_in_temporal_transformer": choose(True, False),
        "casual_in_peg": choose(True, False),
        "ff_mult": choose(2.0, 4.0, 3.3),
        "l2_code": choose(True, False),
        "use_vae": choose(False, False, True),
        "defer_temporal_pool": pooled,
        "defer_spatial_pool": choose(False, True),
    }
    tok = make(seed=seed, **changes)
    causal = {name.replace("casual", "causal"): value for name, value in changes.items()}
    plain = PlainOmniTokenizer(omnitokenizer_state(seed=seed, **changes), SETTINGS | causal)
    for frames in (1, 9):
        x = pixels(2, 3, frames, 32, 32, seed=seed)
        z = plain.encode(x / 2)
        mean = z[:, :8]
        torch.testing.assert_close(tok.encode(x), mean, atol=2e-5, rtol=2e-5)
        if not changes["use_vae"]:
            codes, mean = plain.quantize(z)
            assert torch.equal(tok.quantize(z), codes)
        torch.testing.assert_close(tok.decode(mean), plain.decode(mean) * 2, atol=5e-5, rtol=2e-5)


def train_mode(tok: OmniTokenizer):
    return tok.model.requires_grad_(True).train()


@every_flavour
def test_gradients_reach_every_parameter_that_trained(flavour):
    model = train_mode(make(**FLAVOURS[flavour]))
    result = model(pixels(1, 3, 9, 32, 32) / 2)
    losses = result.quantized.losses
    (result.recon.square().mean() + sum(losses.values())).backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unused = {n for n in dict(model.named_parameters()) if ".position." in n and flavour == "rel"}
    assert still == unused  # with fused attention the published code never adds the learned bias


@every_flavour
def test_checkpointing_changes_no_gradient(flavour):
    model = train_mode(make(**FLAVOURS[flavour])).eval()
    x, grads = pixels(1, 3, 5, 16, 16) / 2, []
    for recompute in (False, True):
        for stage in model.stages:
            stage.gradient_checkpointing = recompute
        model.zero_grad()
        model(x).recon.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_codebook_goes_on_from_the_loaded_one_and_only_in_training():
    tok = make()
    quantizer, x = tok.model.quantizer, pixels(1, 3, 9, 16, 16)
    before = quantizer.codebook.clone()
    tok.tokenize(noise(9, 16, 16))
    assert torch.equal(quantizer.codebook, before)
    model = train_mode(tok)
    codes = model(x / 2).quantized.codes.unique()
    moved = (quantizer.codebook != before).any(-1)[0]
    assert moved.all()  # every average decays
    assert quantizer.frequencies.count_nonzero() == len(codes)
    expected = quantizer.embed_sum / quantizer.cluster_size.unsqueeze(-1)
    torch.testing.assert_close(quantizer.codebook, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flavour", ["vq", "vae"])
def test_training_goes_on_after_use_and_lowers_the_error(flavour):
    tok = make(**FLAVOURS[flavour])
    with torch.inference_mode():  # tables that this makes must not stop training
        tok.reconstruct(noise(9, 16, 16))
    model, x = train_mode(tok), pixels(2, 3, 9, 16, 16) / 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    errors = []
    for _ in range(20):
        result = model(x)
        errors.append((result.recon - x).abs().mean())
        optimizer.zero_grad()
        errors[-1].backward()
        optimizer.step()
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("times", [1, 3])
def test_gradients_of_the_convolution_are_those_of_float32(times: int):
    """In bfloat16 PyTorch's may be those of another convolution, and not even numbers."""
    layer = PositionConvolution(32, causal=True)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, times, 4, 4, 32)
    layer(x).square().sum().backward()
    wanted, layer.weight.grad = layer.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, wanted)
