"""Our own kernels against what PyTorch computes in float64."""

from __future__ import annotations

import pytest
import torch
from native_layers import HALF, layer, needs_tiles
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.interop.omnitokenizer_parts import FixedShiftNorm, PositionConvolution
from omnitok.native import kernels
from omnitok.native.kernels import Heads
from omnitok.native.scans import convolution, nearest
from omnitok.nn.norm import Norm
from omnitok.nn.patch import embed, paint, patchify, unpatchify
from omnitok.nn.rope import rotary_phasors, rotate

ACTS = [None, "gelu_tanh", "swiglu", "geglu"]


SINGLE = torch.float32
both_types = pytest.mark.parametrize("dtype", [HALF, SINGLE])


def near(got: Tensor, wanted: Tensor, most: float = 4e-3) -> bool:
    """Whether the error is that of a rounding or two to bfloat16, or of a product in float32."""
    if got.dtype == SINGLE:
        most = 6e-7
    return float((got.double() - wanted).norm() / wanted.norm()) < most


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
    most = 8e-3 if dtype == HALF else 2e-6
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
        torch.testing.assert_close(got[:, :, :4].float(), y, rtol=most, atol=most / 8)
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
