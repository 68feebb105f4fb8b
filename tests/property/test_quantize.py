"""What every quantizer promises, over random configs and latents."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnitok.quantize import Quantizer, QuantizerConfig, build_quantizer

SPECIAL = [0.0, -0.0, 1e-8, -1e-8, 30.0, -30.0, 1e4, -1e4]


@st.composite
def configs(draw: st.DrawFn, kinds: tuple[str, ...] = ("fsq", "vq", "lfq", "bsq")) -> Any:
    kind, books = draw(st.sampled_from(kinds)), draw(st.integers(1, 3))
    options: dict[str, Any] = {"kind": kind, "num_codebooks": books}
    if kind == "fsq":
        bound = draw(st.sampled_from(["tanh", "symmetric"]))
        least = 2 if bound == "symmetric" else 3
        levels = tuple(draw(st.lists(st.integers(least, 9), min_size=1, max_size=4)))
        options |= {"levels": levels, "bound": bound, "dim": len(levels) * books}
    elif kind == "vq":
        options |= {"dim": draw(st.integers(1, 6)) * books}
        options |= {"codebook_size": draw(st.integers(2, 40)), "l2": draw(st.booleans())}
        options |= {"ema": draw(st.booleans())}
    else:
        options |= {"dim": draw(st.integers(1, 62)) * books}
        options |= {"index_order": draw(st.sampled_from([None, "msb", "lsb"]))}
    if draw(st.booleans()):
        options |= {"entropy_temperature": draw(st.sampled_from([0.01, 1.0]))}
    return QuantizerConfig(**options)


def latents(quantizer: Quantizer, seed: int, shape: tuple[int, ...] = (2, 3, 5)) -> Tensor:
    """Normal latents with special values strewn in."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape, quantizer.input_dim, generator=generator)
    pick = torch.randint(4 * len(SPECIAL), z.shape, generator=generator)
    for i, value in enumerate(SPECIAL):
        z[pick == i] = value
    return z


def build(config: QuantizerConfig) -> Any:
    torch.manual_seed(0)
    return build_quantizer(config).eval()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


@settings(deadline=None, max_examples=60)
@given(configs(), st.integers(0, 99), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_codes_decode_to_exactly_what_forward_gave(config: Any, seed: int, dtype: str) -> None:
    quantizer = build(config)
    z = latents(quantizer, seed).to(getattr(torch, dtype))
    out = quantizer(z.requires_grad_())
    assert out.z_q.dtype == z.dtype
    assert out.z_q.requires_grad
    assert same_bits(quantizer.codes_to_latents(out.codes, dtype=z.dtype), out.z_q)
    assert same_bits(quantizer(z.detach()).z_q, out.z_q)
    assert torch.equal(quantizer.latents_to_codes(z), out.codes)


@settings(deadline=None, max_examples=30)
@given(configs(), st.integers(0, 99))
def test_codes_have_the_promised_shape_and_range(config: Any, seed: int) -> None:
    quantizer = build(config)
    codes = quantizer(latents(quantizer, seed)).codes
    assert codes.dtype == torch.int64
    assert codes.shape == (
        (2, 3, 5) if config.num_codebooks == 1 else (2, 3, 5, quantizer.num_codebooks)
    )
    assert codes.min() >= 0
    assert codes.max() < quantizer.codebook_size


@settings(deadline=None, max_examples=30)
@given(configs(), st.integers(0, 99))
def test_a_token_does_not_depend_on_its_batch(config: Any, seed: int) -> None:
    quantizer = build(config)
    z = latents(quantizer, seed)
    whole = quantizer(z)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quantizer(z[:, :, order]).codes, whole.codes[:, :, order])
    alone = quantizer(z[1, 2, 3])
    assert torch.equal(alone.codes, whole.codes[1, 2, 3])
    assert same_bits(alone.z_q, whole.z_q[1, 2, 3])


@settings(deadline=None, max_examples=30)
@given(configs(), st.integers(0, 99))
def test_lower_precision_around_it_changes_nothing(config: Any, seed: int) -> None:
    quantizer = build(config)
    z = latents(quantizer, seed).bfloat16()
    out = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(z)
    assert torch.equal(inside.codes, out.codes)
    assert torch.equal(inside.z_q, out.z_q)
    for name, loss in inside.losses.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, out.losses[name])
    if config.kind != "vq":  # a cast codebook is another codebook
        assert torch.equal(quantizer.to(torch.bfloat16)(z).z_q, out.z_q)


@settings(deadline=None, max_examples=30)
@given(configs(), st.integers(0, 99))
def test_losses_are_finite_numbers_and_the_same_in_eval(config: Any, seed: int) -> None:
    quantizer = build(config)
    z = latents(quantizer, seed).clamp(-5, 5).requires_grad_()
    out = quantizer(z)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in out.losses.values())
    (gradient,) = torch.autograd.grad(out.z_q.sum() + sum(out.losses.values()), z)
    assert gradient.isfinite().all()
    if not config.ema:
        training = quantizer.train()(z).losses
        assert training.keys() == out.losses.keys()
        assert all(torch.equal(training[name], out.losses[name]) for name in training)


@settings(deadline=None, max_examples=30)
@given(configs(), st.integers(0, 99))
def test_usage_counts_distinct_codes(config: Any, seed: int) -> None:
    quantizer = build(config)
    out = quantizer(latents(quantizer, seed))
    codes = out.codes.reshape(-1, config.num_codebooks)
    shares = [column.unique().numel() / quantizer.codebook_size for column in codes.T]
    assert out.usage == pytest.approx(sum(shares) / len(shares), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(configs(kinds=("fsq", "lfq")), st.integers(0, 99))
def test_codebooks_are_groups_of_neighbouring_channels(config: Any, seed: int) -> None:
    quantizer = build(config)
    z = latents(quantizer, seed)
    width = config.dim // config.num_codebooks
    one = build(
        QuantizerConfig(
            kind=config.kind,
            dim=width,
            levels=config.levels,
            bound=config.bound,
            index_order=config.index_order,
        )
    )
    groups = [one(part).codes for part in z.split(width, dim=-1)]
    whole = quantizer(z).codes.reshape(2, 3, 5, -1)
    assert torch.equal(torch.stack(groups, dim=-1), whole)


@settings(deadline=None, max_examples=30)
@given(configs(kinds=("lfq", "bsq")))
def test_zero_is_bit_zero(config: Any) -> None:
    quantizer = build(config)
    z = torch.zeros(2, config.dim)
    z[1] = -0.0
    assert not quantizer(z).codes.any()


@settings(deadline=None, max_examples=30)
@given(configs(kinds=("lfq", "bsq")), st.integers(0, 99))
def test_codes_of_bits_survive_a_round_trip_through_latents(config: Any, seed: int) -> None:
    quantizer = build(config)
    codes = quantizer(latents(quantizer, seed)).codes
    assert torch.equal(quantizer(quantizer.codes_to_latents(codes)).codes, codes)


@settings(deadline=None, max_examples=20)
@given(configs())
def test_no_tokens_give_no_codes(config: Any) -> None:
    quantizer = build(config)
    out = quantizer(torch.zeros(2, 0, config.dim))
    assert out.codes.shape[:2] == (2, 0)
    assert out.z_q.shape == (2, 0, config.dim)
    assert out.usage == 0
    assert quantizer.codes_to_latents(out.codes).shape == out.z_q.shape
