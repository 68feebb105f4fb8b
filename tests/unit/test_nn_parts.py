"""Rotary positions, windows and attention of the shared transformer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from omnitok.config import StackConfig
from omnitok.nn.attention import attend
from omnitok.nn.layout import LAYER_KINDS, grid_layout
from omnitok.nn.rope import rotary_phasors, rotate
from omnitok.nn.stack import Stack, StackCache
from omnitok.presets import PRESETS
from tests.small_models import plane_batch, small_model

CPU = torch.device("cpu")


def randomised(config: StackConfig) -> Stack:
    torch.manual_seed(0)
    stack = Stack(config)
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return stack


def test_rotary_scores_depend_on_differences_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 32)
    here = torch.tensor([[3.0, 5.0, 2.0, 1.0]])
    there = torch.tensor([[1.0, 9.0, 4.0, 0.0]])
    move = torch.tensor([[100.0, -7.0, 31.0, 2.0]])

    def score(a, b):
        return (rotate(q, rotary_phasors(a, 32)) * rotate(k, rotary_phasors(b, 32))).sum()

    assert torch.allclose(score(here, there), score(here + move, there + move), atol=1e-4)
    assert not torch.allclose(score(here, there), score(here, there + move), atol=1e-2)


def test_rotary_frequencies_are_those_of_the_specification():
    angles = rotary_phasors(torch.tensor([[1.0, 0, 0, 0]]), 72).angle()[0]
    assert angles[0] == 1
    assert angles[8] == pytest.approx(10000 ** (-8 / 72), rel=1e-6)
    assert (angles[9:] == 0).all()


def test_rotary_refuses_a_head_width_that_four_axes_cannot_share():
    with pytest.raises(ValueError, match="multiple of 8"):
        rotary_phasors(torch.zeros(1, 4), 20)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(1, 40), width=st.integers(1, 40), window=st.integers(1, 9))
def test_windows_hold_every_token_once(height, width, window):
    layout = grid_layout(height, width, window, CPU)
    for kind in LAYER_KINDS:
        partition = layout.partitions[kind]
        assert sorted(partition.order.tolist()) == list(range(height * width))
        assert sum(windows * size for windows, size in partition.runs) == height * width
        assert all(size <= window**2 or kind == "global" for _, size in partition.runs)


def test_positions_are_the_middles_of_patches_in_rows_and_columns():
    coords = grid_layout(2, 3, 8, CPU).coords_NA
    assert coords.tolist() == [[0, y + 0.5, x + 0.5, 0] for y in range(2) for x in range(3)]


def test_tables_made_for_inference_serve_training():
    config = StackConfig(width=16, heads=2, layers=LAYER_KINDS, mlp_hidden=8, window=3)
    stack = randomised(config)
    x = torch.randn(1, 2, 6 * 11, 16)
    with torch.inference_mode():
        stack(x, grid_layout(6, 11, 3, CPU))
    stack(x, grid_layout(6, 11, 3, CPU)).sum().backward()


def test_the_gradient_of_a_reordering_puts_every_token_back():
    layout = grid_layout(5, 7, 3, CPU)
    x = torch.zeros(1, 1, 35, 1, requires_grad=True)
    weight = torch.arange(35.0).view_as(x)
    moved = Stack._reorder(x, layout, "raster", "shifted")
    (moved * Stack._reorder(weight, layout, "raster", "shifted")).sum().backward()
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_a_layer_equals_masked_attention_over_the_whole_clip(kind):
    height, width, groups, lookback = 5, 11, 4, 1
    config = StackConfig(
        width=32, heads=2, layers=(kind,), mlp_hidden=32, window=4, lookback=lookback
    )
    attention = randomised(config).blocks[0].attention
    layout = grid_layout(height, width, 4, CPU)
    count = height * width
    x = torch.randn(1, groups, count, 32)
    times = torch.arange(groups, dtype=torch.float64)
    order = layout.partitions[kind].order
    mixed, _ = attention(
        x[:, :, order], layout.phasors(kind, 16, 1e4, times), layout.partitions[kind]
    )
    got = torch.empty_like(mixed)
    got[:, :, order] = mixed
    # the same by one product over all tokens and a mask
    window = torch.empty(count, dtype=torch.long)
    start = 0
    for windows, size in layout.partitions[kind].runs:
        for _ in range(windows):
            window[order[start : start + size]] = start
            start += size
    time, place = torch.arange(groups).repeat_interleave(count), window.repeat(groups)
    gap = time[:, None] - time[None]
    seen = (place[:, None] == place[None]) & (gap >= 0) & (gap <= lookback)
    coords = layout.coords_NA.repeat(groups, 1)
    coords[:, 0] = time
    q, k, v = attention.qkv(x.flatten(1, 2)).view(1, -1, 3, 2, 16).unbind(2)
    q, k = (F.rms_norm(z, (16,), eps=1e-6) for z in (q, k))
    q, k = (rotate(z, rotary_phasors(coords, 16)).transpose(1, 2) for z in (q, k))
    out = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=seen)
    want = attention.out(out.transpose(1, 2).flatten(2)).view_as(got)
    assert torch.allclose(got, want, atol=1e-5)


def test_explicit_and_fused_attention_agree():
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    k, v = torch.randn(2, 2, 3, 9, 8)
    with torch.no_grad():
        fused = attend(q, k, v, 0.3)
    assert torch.allclose(attend(q, k, v, 0.3), fused, atol=1e-6)


def test_a_cache_continues_a_stack():
    config = StackConfig(width=32, heads=2, layers=LAYER_KINDS, mlp_hidden=32, window=3)
    stack, layout = randomised(config), grid_layout(4, 5, 3, CPU)
    x = torch.randn(2, 6, 20, 32)
    cache = StackCache()
    parts = [stack(x[:, a:b], layout, cache) for a, b in ((0, 1), (1, 4), (4, 6))]
    assert torch.allclose(torch.cat(parts, dim=1), stack(x, layout), atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = small_model("small")
    x = torch.randn(1, 3, 9, 16, 16)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        model(x).recon.square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    plain = gradients()
    model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = True
    again = gradients()
    assert all(torch.allclose(plain[n], again[n], rtol=1e-4, atol=1e-7) for n in plain)


def test_gradient_checkpointing_keeps_less():
    model = small_model("small")
    x = torch.randn(1, 3, 9, 16, 16)

    def kept() -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(x)
        return sum(sizes)

    plain = kept()
    model.encoder.gradient_checkpointing = model.decoder.gradient_checkpointing = True
    assert kept() < 0.5 * plain


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_bfloat16_is_close_to_float32(name):
    model = small_model(name).requires_grad_(False).eval()
    x = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    exact = model.encode_groups(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode_groups(x)
    assert mixed.dtype == torch.bfloat16
    half = model.bfloat16().encode_groups(x.bfloat16())
    for rough in (mixed, half):
        assert (rough - exact).square().mean() < 2e-3 * exact.square().mean()


def test_a_compiled_block_equals_the_plain_one():
    config = StackConfig(width=16, heads=1, layers=("shifted",), mlp_hidden=16, window=2)
    stack, layout = randomised(config), grid_layout(3, 3, 2, CPU)
    x = torch.randn(1, 3, 9, 16)

    def gradients() -> list[torch.Tensor]:
        stack.zero_grad()
        out = stack(x, layout)
        out.square().mean().backward()
        return [out.detach(), *(p.grad.clone() for p in stack.parameters())]

    plain = gradients()
    stack.blocks[0].compile(dynamic=False, fullgraph=True, backend="aot_eager")
    for a, b in zip(plain, gradients(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_gradients_reach_every_parameter(name):
    model = small_model(name)
    result = model(torch.rand(1, 3, 9, 32, 32) * 2 - 1)
    loss = result.recon.square().mean() + sum(result.quantized.losses.values())
    if model.planes is not None:
        loss = loss + sum(model.forward_planes(plane_batch(model.config.planes)).losses.values())
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"heads": 3}, "head width"),
        ({"layers": ("local", "diagonal")}, "diagonal"),
        ({"lookback": -1}, "lookback"),
    ],
)
def test_a_wrong_stack_is_refused(change, word):
    with pytest.raises(ValueError, match=word):
        StackConfig(**{"width": 32, "heads": 2, "layers": ("local",), "mlp_hidden": 8, **change})
