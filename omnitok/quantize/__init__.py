"""Bottlenecks: every quantizer is one module with the same face."""

from omnitok.quantize.base import DiscreteQuantizer, Quantized, Quantizer, QuantizerConfig
from omnitok.quantize.fsq import FSQ
from omnitok.quantize.kl import KL

__all__ = [
    "FSQ",
    "KL",
    "DiscreteQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "build_quantizer",
]

_KINDS: dict[str, type[Quantizer]] = {"fsq": FSQ, "kl": KL}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config` describes."""
    return _KINDS[config.kind](config)
