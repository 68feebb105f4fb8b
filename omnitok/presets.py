"""Named sizes of the tokenizer: one table, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from omnitok.config import PlanesConfig, StackConfig, TokenizerConfig
from omnitok.quantize.base import QuantizerConfig

FSQ_64000 = (8, 8, 8, 5, 5, 5)  # 15.97 bits; levels of Mentzer et al. 2023, arXiv:2309.15505


def _stack(width: int, depth: int, period: tuple[str, ...], hidden: int) -> StackConfig:
    layers = tuple(period[i % len(period)] for i in range(depth))
    return StackConfig(width=width, heads=width // 64, layers=layers, mlp_hidden=hidden)


def _windowed(name: str, quantizer: QuantizerConfig) -> TokenizerConfig:
    period = ("local", "shifted")
    return TokenizerConfig(
        name=name,
        encoder=_stack(256, 3, period, 512),
        decoder=_stack(256, 5, period, 512),
        quantizer=quantizer,
    )


def _mixed(name: str, width: int, encoder: int, decoder: int) -> TokenizerConfig:
    """Every fourth layer sees the whole frame."""
    period = ("local", "shifted", "local", "global")
    hidden = 8 * width // 3 // 64 * 64
    return TokenizerConfig(
        name=name,
        encoder=_stack(width, encoder, period, hidden),
        decoder=_stack(width, decoder, period, hidden),
        quantizer=QuantizerConfig(kind="kl", dim=16),
    )


def tiny() -> TokenizerConfig:
    """5.7 M parameters, one of 64,000 codes for each 4x8x8 patch; weights ship in the package."""
    return _windowed("tiny", QuantizerConfig(kind="fsq", dim=len(FSQ_64000), levels=FSQ_64000))


def tiny_kl() -> TokenizerConfig:
    """`tiny` with 16 continuous channels for each patch; weights ship in the package."""
    return _windowed("tiny-kl", QuantizerConfig(kind="kl", dim=16))


def tiny_3d() -> TokenizerConfig:
    """`tiny-kl` with a 3D stage: 768 tokens for a 3D asset."""
    return replace(tiny_kl(), name="tiny-3d", planes=PlanesConfig())


def small() -> TokenizerConfig:
    """30 M parameters, a shape to train."""
    return _mixed("small", 512, 4, 6)


def base() -> TokenizerConfig:
    """130 M parameters, a shape to train."""
    return _mixed("base", 768, 8, 12)


def large() -> TokenizerConfig:
    """400 M parameters, a shape to train."""
    return _mixed("large", 1024, 12, 24)


def so400m() -> TokenizerConfig:
    """The shape of AToken So/C (27 + 27 layers of width 1152), in native parts."""
    stack = StackConfig(
        width=1152,
        heads=16,
        layers=("global",) * 27,
        mlp_hidden=4304,
        mlp="gelu_tanh",
        norm_affine=True,
        lookback=3,
    )
    return TokenizerConfig(
        name="so400m",
        patch=(4, 16, 16),
        encoder=stack,
        decoder=stack,
        quantizer=QuantizerConfig(kind="kl", dim=48),
    )


_ALL: tuple[Callable[[], TokenizerConfig], ...] = (
    tiny,
    tiny_kl,
    tiny_3d,
    small,
    base,
    large,
    so400m,
)
PRESETS = {f.__name__.replace("_", "-"): f for f in _ALL}


def preset(name: str) -> TokenizerConfig:
    """The config called `name`; a KeyError lists the names."""
    if name not in PRESETS:
        raise KeyError(f"unknown preset {name!r}; choose one of {sorted(PRESETS)}")
    return PRESETS[name]()
