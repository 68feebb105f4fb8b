"""Our own kernels against what PyTorch computes in float64."""

from __future__ import annotations

import subprocess
import warnings
from itertools import pairwise

import pytest
import torch
from small_models import noise, small_model, small_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.config import StackConfig
from omnitok.interop.omnitokenizer_parts import FixedShiftNorm, PositionConvolution
from omnitok.native import build, kernels
from omnitok.native.kernels import Heads
from omnitok.native.scans import convolution, nearest
from omnitok.nn.attention import Attention
from omnitok.nn.norm import Norm
from omnitok.nn.patch import embed, paint, patchify, unpatchify
from omnitok.nn.rope import rotary_phasors, rotate
from omnitok.nn.stack import StackCache
from omnitok.presets import PRESETS
from omnitok.quantize import QuantizerConfig, build_quantizer

needs_tiles = pytest.mark.skipif(
    build.library() is None, reason="no processor with matrix tiles, or no C++ compiler"
)
ACTS = [None, "gelu_tanh", "swiglu", "geglu"]


HALF, SINGLE = torch.bfloat16, torch.float32
both_types = pytest.mark.parametrize("dtype", [HALF, SINGLE])


def near(got: Tensor, wanted: Tensor, most: float = 4e-3) -> bool:
    """Whether the error is that of a rounding or two to bfloat16, or of a product in float32."""
    if got.dtype == SINGLE:
        most = 6e-7
    return float((got.double() - wanted).norm() / wanted.norm()) < most


def layer(
    width: int, columns: int, bias: bool, seed: int = 0, dtype: torch.dtype = HALF
) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(width, columns, bias=bias).requires_grad_(False)
    made.weight.normal_(std=width**-0.5)
    return made.to(dtype)


def activated(x: Tensor, act: str | None) -> Tensor:
    if act == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if act is None:
        return x
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b if act == "swiglu" else a * F.gelu(b)


def exact(of: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x.double(), of.weight.double(), None if of.bias is None else of.bias.double())


@needs_tiles
@both_types
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "columns"),
    [(1, 8, 2), (33, 72, 100), (64, 256, 768), (300, 512, 34), (70, 2048, 96), (500, 40, 1376)],
)
@torch.no_grad()
def test_linear_layers(
    rows: int, width: int, columns: int, bias: bool, act: str | None, dtype: torch.dtype
):
    of, x = layer(width, columns, bias, dtype=dtype), torch.randn(rows, width).to(dtype)
    wanted = activated(exact(of, x), act)
    assert near(kernels.linear(of, x, act=act), wanted)
    onto = torch.randn(wanted.shape).to(dtype)
    assert near(kernels.linear(of, x, act=act, onto=onto), wanted + onto.double())
    apart = kernels.linear(of, x, act=act, onto=onto)
    assert torch.equal(kernels.linear(of, x, act=act, onto=onto, out=onto), apart)
    assert torch.equal(onto, apart)


@needs_tiles
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("rows", "width", "hidden"), [(5, 48, 64), (290, 256, 512), (65, 768, 2048)]
)
@torch.no_grad()
def test_feed_forward_halves(rows: int, width: int, hidden: int, act: str | None):
    first = layer(width, hidden * (2 if act in ("swiglu", "geglu") else 1), True)
    second, x = layer(hidden, width, True, seed=1), torch.randn(rows, width).bfloat16()
    wanted = x + exact(second, activated(exact(first, x), act).bfloat16())
    got = kernels.linear(first, x, act=act, down=second, onto=x)
    assert near(got, wanted)
    into = x.clone()  # in place, as a residual stream that nobody else holds
    assert torch.equal(kernels.linear(first, into, act=act, down=second, onto=into, out=into), got)
    assert torch.equal(into, got)


@needs_tiles
@both_types
@pytest.mark.parametrize(
    "norm",
    [Norm("rms", 72, False), Norm("rms", 72, True), Norm("layer", 72, True), FixedShiftNorm(72)],
)
@torch.no_grad()
def test_norms_before_a_layer(norm: nn.Module, dtype: torch.dtype):
    for learned in (norm.weight, norm.bias):
        if learned is not None:
            learned.normal_()
    x = torch.randn(50, 72).to(dtype) * 30 + 5
    x[0] = 0
    of = layer(72, 40, True, dtype=dtype)
    wanted = exact(of, norm.double()(x.double()).to(dtype))
    norm.float()
    assert near(kernels.linear(of, x, norm=norm), wanted)


@needs_tiles
@torch.no_grad()
def test_rows_may_be_strided_and_in_another_order():
    of, x = layer(32, 64, False), torch.randn(40, 3, 32).bfloat16()
    assert near(kernels.linear(of, x[:, 1]), exact(of, x[:, 1]))
    assert near(
        kernels.linear(of, x[..., ::2].transpose(0, 1).repeat(1, 1, 2)),
        exact(of, x[..., ::2].transpose(0, 1).repeat(1, 1, 2)),
    )
    order, onto = torch.randperm(40), torch.randn(40, 64).bfloat16()
    flat = x[:, 0]
    wanted = kernels.linear(of, flat[order].contiguous(), onto=onto[order].contiguous())
    assert torch.equal(kernels.linear(of, flat, onto=onto, order=order, onto_order=order), wanted)


@needs_tiles
@both_types
@pytest.mark.parametrize("width", [8, 24, 64, 72, 264])
@pytest.mark.parametrize("gains_last", [False, True])
@torch.no_grad()
def test_heads_are_normalised_and_turned(width: int, gains_last: bool, dtype: torch.dtype):
    of, x = layer(48, 5 * width, True, dtype=dtype), torch.randn(2, 9, 48).to(dtype)
    phasors = rotary_phasors(torch.rand(9, 4, dtype=torch.float64) * 20, width)
    gains = torch.randn(4, width)
    close = {"rtol": 8e-3, "atol": 1e-3} if dtype == HALF else {"rtol": 2e-6, "atol": 2e-6}
    plain = kernels.linear(of, x).view(2, 9, 5, width)
    for unit, gain, turn in ((1e-6, gains, phasors), (None, None, phasors), (1e-6, gains, None)):
        y = plain[:, :, :4].float()
        if unit is not None:
            y = F.rms_norm(y, (width,), eps=unit)
        scale = 1.0 if gain is None else gain
        y = y if gains_last else y * scale
        y = y if turn is None else rotate(y, turn)
        y = y * scale if gains_last else y
        heads = Heads(4, width, unit, gain, turn, gains_last)
        got = kernels.linear(of, x, heads=heads).view(2, 9, 5, width)
        torch.testing.assert_close(
            got[:, :, :4].float(),
            y,
            rtol=8e-3 if dtype == HALF else 2e-6,
            atol=1e-3 if dtype == HALF else 2e-6,
        )
        assert torch.equal(got[:, :, 4], plain[:, :, 4])


@needs_tiles
@torch.no_grad()
def test_keys_and_values_go_into_rings():
    of, x = layer(32, 3 * 2 * 16, False), torch.randn(1, 10, 32).bfloat16()
    q, k, v = kernels.linear(of, x).view(10, 3, 2, 16).unbind(1)
    rings = [torch.zeros(windows, 3, size, 2, 16).bfloat16() for windows, size in ((2, 3), (1, 4))]
    others = [torch.zeros_like(ring) for ring in rings]
    places = [(0, rings[0][:, 1], others[0][:, 1]), (6, rings[1][:, 1], others[1][:, 1])]
    heads = Heads(4, 16, None, None, None, rings=places)
    assert torch.equal(kernels.linear(of, x, heads=heads).view(10, 2, 16), q)
    for ring, whole in ((rings, k), (others, v)):
        assert torch.equal(ring[0][:, 1].flatten(0, 1), whole[:6])
        assert torch.equal(ring[1][:, 1].flatten(0, 1), whole[6:])
        assert not ring[0][:, 0].any()
        assert not ring[1][:, 2].any()


@needs_tiles
@both_types
@pytest.mark.parametrize(
    ("windows", "heads", "queries", "keys", "width"),
    [
        (1, 1, 1, 1, 8),
        (3, 2, 50, 77, 64),
        (2, 3, 40, 1100, 72),
        (5, 4, 5, 5, 64),
        (1, 2, 33, 512, 24),
        (1, 1, 64, 513, 96),
    ],
)
@torch.no_grad()
def test_attention(
    windows: int, heads: int, queries: int, keys: int, width: int, dtype: torch.dtype
):
    torch.manual_seed(0)
    q = torch.randn(windows, queries, heads, width).to(dtype).transpose(1, 2)
    k, v = (
        torch.randn(windows, keys, 3, heads, width).to(dtype)[:, :, i].transpose(1, 2)
        for i in (0, 2)
    )
    bias = torch.randn(heads, queries, keys)
    bias[:, :, 1::3] = float("-inf")
    whole = (z.double() for z in (q, k, v))
    wanted = F.scaled_dot_product_attention(*whole, scale=0.3)
    assert near(kernels.attention(q, k, v, 0.3), wanted, 6e-3)
    whole = (z.double() for z in (q, k, v))
    wanted = F.scaled_dot_product_attention(*whole, scale=0.3, attn_mask=bias.double())
    assert near(kernels.attention(q, k, v, 0.3, bias), wanted, 6e-3)


@needs_tiles
@torch.no_grad()
def test_large_scores_overflow_nothing():
    q = torch.full((1, 1, 3, 32), 200.0).bfloat16()
    k = torch.randn(1, 1, 700, 32).bfloat16() * 200
    v = torch.randn(1, 1, 700, 32).bfloat16()
    got = kernels.attention(q, k, v, 1.0)
    assert torch.equal(got[0, 0, 0], v[0, 0, (k.double().sum(-1)[0, 0]).argmax()])


@needs_tiles
@pytest.mark.parametrize("patch", [(1, 8, 8), (4, 8, 8), (2, 4, 6)])
@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_patches_of_pixels(patch: tuple[int, int, int], last: bool):
    t, h, w = patch
    x = torch.randn(1, 3, 2 * t, 3 * h, 5 * w).bfloat16()
    if last:  # as decoders of video give them: colours side by side
        x = x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    values = 3 * t * h * w
    into, out = layer(values, 40, True), layer(40, values, True, seed=1)
    tokens = embed(into, x, patch)
    assert torch.equal(tokens, kernels.linear(into, patchify(x, patch)))
    whole = unpatchify(kernels.linear(out, tokens), patch, (3, 5))
    assert torch.equal(paint(out, tokens, patch, (3, 5)), whole)


@needs_tiles
@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_models_agree_with_pytorch(name: str):
    model = small_model(name).eval().bfloat16()
    t, h, w = model.config.patch
    x = (torch.rand(1, 3, 1 + 5 * t, 3 * h, 5 * w) * 2 - 1).bfloat16()
    z = torch.randn(1, 6, 15, model.quantizer.dim).bfloat16()
    steps = [0, 1, *range(1 + t, 1 + 6 * t, t)]

    def both() -> tuple[Tensor, ...]:
        own = StackCache()
        parts = [model.encode_groups(x[:, :, a:b], own) for a, b in pairwise(steps)]
        return model.encode_groups(x), torch.cat(parts, dim=1), model.decode_groups(z, (3, 5))

    ours = both()
    with build.switched_off():
        theirs = both()
    wanted = model.double().encode_groups(x.double()), model.decode_groups(z.double(), (3, 5))
    for own, other, right in zip(ours, theirs, (wanted[0], wanted[0], wanted[1]), strict=True):
        error, usual = ((y.double() - right).norm() / right.norm() for y in (own, other))
        assert error < 1.2 * usual


@needs_tiles
def test_weights_that_change_are_seen():
    tok = small_tokenizer("tiny-kl")
    tok.model.to(torch.bfloat16)
    clip = noise(9, 16, 24)
    with tok.stream() as stream, torch.no_grad():
        first = stream.push(clip[:5])
        tok.model.encoder.blocks[0].mlp.down.weight.mul_(-1)
        rest = stream.push(clip[5:])
    whole = tok.tokenize(clip)
    assert not torch.equal(first.latents, whole.latents[:2])
    tok.model.load_state_dict(small_model("tiny-kl").bfloat16().state_dict(), assign=True)
    before = tok.tokenize(clip)
    assert torch.equal(before.latents[:2], first.latents)
    assert not torch.equal(before.latents[2:], rest.latents)


@needs_tiles
@torch.no_grad()
def test_a_stream_may_change_its_way():
    tok = small_tokenizer("tiny-kl")
    tok.model.to(torch.bfloat16)
    clip = noise(21, 16, 24)
    wanted = tok.tokenize(clip).latents.double()
    with tok.stream() as stream:
        parts = [stream.push(clip[:5])]
        with build.switched_off():
            parts.append(stream.push(clip[5:9]))
        parts.append(stream.push(clip[9:]))
    got = torch.cat([part.latents for part in parts]).double()
    assert float((got - wanted).norm() / wanted.norm()) < 0.02


@needs_tiles
@torch.no_grad()
def test_threads_change_nothing():
    config = StackConfig(width=64, heads=2, layers=("global",), mlp_hidden=8)
    attention = Attention(config).bfloat16()
    x = torch.randn(1, 1, 200, 64).bfloat16()
    results = []
    threads = torch.get_num_threads()
    try:
        for many in (1, 2, 3):
            torch.set_num_threads(many)
            q = kernels.linear(attention.qkv, x)[0].view(1, 200, 6, 32).transpose(1, 2)
            results.append(kernels.attention(q[:, :2], q[:, 2:4], q[:, 4:], 0.2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_tiles
@both_types
@pytest.mark.parametrize(("causal", "times"), [(True, 3), (False, 3), (True, 1), (False, 1)])
@torch.no_grad()
def test_convolutions(causal: bool, times: int, dtype: torch.dtype):
    of = PositionConvolution(40, causal).to(dtype)
    for learned in (of.weight, of.bias):
        learned.normal_()
    x = torch.randn(2, times, 4, 5, 40).to(dtype)
    wanted = x.double() + of.double()(x.double())
    assert near(convolution(x, of.to(dtype), 2 if causal else 1), wanted)


@needs_tiles
@pytest.mark.parametrize(("inputs", "rows", "width"), [(1, 1, 1), (7, 33, 8), (100, 8192, 5)])
def test_the_nearest_rows_are_found(inputs: int, rows: int, width: int):
    x, book = torch.randn(inputs, width), torch.randn(rows, width)
    codes, leads = nearest(x, book)
    halves = torch.cdist(x.double(), book.double()).square() / 2
    order = halves.sort(dim=1)
    assert torch.equal(codes, order.indices[:, 0])
    if rows > 1:
        torch.testing.assert_close(
            leads.double(), order.values[:, 1] - order.values[:, 0], atol=2e-5, rtol=1e-4
        )
    twice, lead = nearest(x, book.repeat(2, 1))
    assert torch.equal(twice, codes)
    assert not lead.any()


@needs_tiles
def test_codes_are_those_of_float64_for_ties_too():
    config = QuantizerConfig(kind="vq", dim=4, codebook_size=50, num_codebooks=2)
    quantizer = build_quantizer(config)
    with torch.no_grad():
        quantizer.codebook[:, 25:] = quantizer.codebook[:, :25]
        quantizer.codebook[0, 3] = quantizer.codebook[0, 7] + 1e-7
    z = torch.randn(3, 40, 4)
    z[0, 0] = float("nan")
    found = quantizer.latents_to_codes(z)
    with build.switched_off():
        assert torch.equal(quantizer.latents_to_codes(z), found)


@needs_tiles
@torch.no_grad()
def test_hooks_are_called():
    model, seen = small_model("tiny").requires_grad_(False), []
    mlp = model.encoder.blocks[0].mlp
    x = torch.rand(1, 3, 1, 16, 16)
    wanted = model.encode_groups(x)
    mlp.up.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model.encode_groups(x), wanted)
    assert seen


@needs_tiles
def test_what_needs_a_graph_or_another_type_is_left_to_pytorch():
    of = layer(16, 16, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.fits(torch.zeros(2, 16), of.float())
    assert kernels.fits(torch.zeros(2, 16), of.float())
    try:
        torch.set_float32_matmul_precision("medium")
        assert not kernels.fits(torch.zeros(2, 16), of)
    finally:
        torch.set_float32_matmul_precision("highest")
    of.bfloat16()
    assert kernels.fits(torch.zeros(2, 16).bfloat16(), of)
    assert not kernels.fits(torch.zeros(2, 16), of)
    assert not kernels.fits(torch.zeros(0, 16).bfloat16(), of)
    assert not kernels.fits(torch.zeros(2, 16).bfloat16(), of.float())
    with torch.inference_mode():
        assert not kernels.fits(torch.zeros(2, 16).bfloat16(), layer(16, 16, True))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A processor with tiles, an empty cache and nothing loaded."""
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "has_tiles", lambda: True)
    monkeypatch.delenv(build.SWITCH, raising=False)
    build._loaded.cache_clear()
    yield tmp_path / "cache"
    build._loaded.cache_clear()


def test_without_a_compiler_a_warning_says_so(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler .install g"):
        assert build.library() is None


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch: pytest.MonkeyPatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "tiles.h:1: no such thing\nmore")

    monkeypatch.setattr(build.subprocess, "run", fail)
    monkeypatch.setattr(build.shutil, "which", lambda name: "/bin/c++")
    with pytest.warns(RuntimeWarning, match="cannot compile them .tiles.h:1: no such thing."):
        assert build.library() is None
    assert list(fresh.iterdir()) == []


def test_the_switch_turns_them_off_without_a_word(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(build.SWITCH, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.library() is None


@needs_tiles
def test_they_are_compiled_once(fresh, monkeypatch: pytest.MonkeyPatch):
    path = build.compiled()
    assert [path] == list(fresh.iterdir())
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.compiled() == path


@needs_tiles
def test_what_another_user_put_in_the_cache_is_not_run(fresh, monkeypatch: pytest.MonkeyPatch):
    build.compiled()
    monkeypatch.setattr(build, "_TRUSTED", (4711, 4712))
    with pytest.raises(build.BuildError, match="belongs to another user"):
        build.compiled()
