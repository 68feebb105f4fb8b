"""What a CPU computes in place without gradients equals what training computes."""

import pytest
import torch
from small_models import small_model

from omnitok.config import StackConfig
from omnitok.nn.attention import Attention
from omnitok.nn.layout import grid_layout
from omnitok.nn.mlp import MLP
from omnitok.nn.norm import Norm, inverse_rms
from omnitok.nn.rope import rotary_phasors, rotate, rotate_
from omnitok.nn.stack import StackCache
from omnitok.presets import PRESETS, preset


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_with_and_without_gradients_agree(affine: bool, dtype: torch.dtype):
    norm = Norm("rms", 48, affine).to(dtype)
    if affine:
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 48, dtype=dtype) * 30
    x[0] = 0
    before = x.clone()
    with torch.no_grad():
        fast = norm(x)
    assert torch.equal(x, before)
    assert fast.dtype == dtype
    torch.testing.assert_close(fast, norm(x).detach())


def test_the_inverse_of_the_root_mean_square_is_what_it_says():
    x = torch.randn(3, 7, 16)
    wanted = (x.double().square().mean(-1, keepdim=True) + 0.5).rsqrt().float()
    torch.testing.assert_close(inverse_rms(x, 0.5), wanted)
    large = torch.full((1, 8), 3e4, dtype=torch.float16)  # its squares are beyond half precision
    torch.testing.assert_close(inverse_rms(large, 1e-6), torch.tensor([[1 / 3e4]]))


def test_rotating_in_place_equals_rotating():
    phasors = rotary_phasors(torch.rand(6, 4, dtype=torch.float64) * 20, 16)
    x = torch.randn(2, 6, 3, 32)[..., ::2].contiguous()
    strided = torch.empty(2, 6, 5, 16)
    strided[:, :, 1:4] = x
    assert rotate_(strided[:, :, 1:4], phasors).data_ptr() == strided[:, :, 1:4].data_ptr()
    torch.testing.assert_close(strided[:, :, 1:4], rotate(x, phasors))


@pytest.mark.parametrize("name", PRESETS)
def test_models_with_and_without_gradients_agree(name: str):
    model = small_model(name).eval()
    t, h, w = model.config.patch
    x = torch.rand(1, 3, 1 + 3 * t, 3 * h, 5 * w) * 2 - 1
    z = torch.randn(1, 4, 15, model.quantizer.dim)
    trained = model.encode_groups(x).detach(), model.decode_groups(z, (3, 5)).detach()
    with torch.no_grad():
        inferred = model.encode_groups(x), model.decode_groups(z, (3, 5))
    for a, b in zip(trained, inferred, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lookback", [0, 1, 3])
@torch.no_grad()
def test_rings_hold_the_last_groups_and_no_more(lookback: int):
    config = preset("tiny").encoder
    config.width, config.heads, config.lookback = 32, 2, lookback
    attention = Attention(config)
    layout = grid_layout(3, 5, 2, torch.device("cpu"))
    partition = layout.partitions["local"]
    x = torch.randn(2, 7, 15, 32)
    phasors = layout.phasors("local", 16, 1e4, torch.arange(7, dtype=torch.float64))
    whole, nothing = attention(x, phasors, partition)
    assert nothing == []
    rings, parts = None, []
    for g in range(7):
        mixed, rings = attention(x[:, g : g + 1], phasors[g : g + 1], partition, rings, g)
        parts.append(mixed)
        assert {k.shape[1] for k, v in rings} == {min(g, lookback) + 1}
        assert all(k.shape == v.shape for k, v in rings)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_stack_leaves_its_input_as_it_is():
    model = small_model("tiny")
    x = torch.randn(1, 1, 15, model.config.encoder.width)
    before = x.clone()
    model.encoder(x, model.layout("encoder", (3, 5)), StackCache())
    assert torch.equal(x, before)


def test_attention_without_normalised_queries_agrees_too():
    config = preset("tiny").encoder
    config.width, config.heads, config.qk_norm = 32, 2, False
    attention = Attention(config)
    layout = grid_layout(2, 2, 2, torch.device("cpu"))
    phasors = layout.phasors("local", 16, 1e4, torch.arange(3, dtype=torch.float64))
    x = torch.randn(1, 3, 4, 32)
    trained, _ = attention(x, phasors, layout.partitions["local"])
    with torch.no_grad():
        inferred, _ = attention(x, phasors, layout.partitions["local"])
    torch.testing.assert_close(trained.detach(), inferred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_feed_forward_layer_in_parts_equals_the_whole(bias, dtype, close, monkeypatch):
    layer = MLP("gelu_tanh", 16, 40, bias).to(dtype)
    x = torch.randn(2, 1, 33, 16, dtype=dtype)
    wanted = layer(x).detach()
    for held in (1, 40 * dtype.itemsize * 10, 2**20):
        monkeypatch.setattr("omnitok.nn.mlp.HELD", held)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), wanted, atol=close, rtol=close)


def test_queries_and_keys_are_placed_the_same_in_parts(monkeypatch):
    config = StackConfig(width=32, heads=2, layers=("global",), mlp_hidden=8, qk_norm="affine")
    attention, layout = Attention(config), grid_layout(3, 5, 8, torch.device("cpu"))
    torch.nn.init.normal_(attention.q_gain)
    phasors = layout.phasors("global", 16, 100.0, torch.arange(2, dtype=torch.float64))
    x, partition = torch.randn(1, 2, 15, 32), layout.partitions["global"]
    wanted = attention(x, phasors, partition)[0].detach()
    for some in (1, 500, 2**17):
        monkeypatch.setattr("omnitok.nn.attention.IN_CACHE", some)
        with torch.no_grad():
            torch.testing.assert_close(attention(x, phasors, partition)[0], wanted)


def test_autocast_without_gradients_keeps_the_residual_stream_in_float32():
    model = small_model("tiny").eval()
    x = torch.randn(1, 2, 4, model.config.encoder.width)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model.encoder(x, model.layout("encoder", (2, 2))).detach()
        with torch.no_grad():
            got = model.encoder(x, model.layout("encoder", (2, 2)))
    assert got.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)
