"""Bottlenecks: every quantizer is one module with the same face."""

from omnitok.quantize.base import DiscreteQuantizer, Quantized, Quantizer, QuantizerConfig
from omnitok.quantize.bsq import BSQ
from omnitok.quantize.fsq import FSQ
from omnitok.quantize.kl import KL
from omnitok.quantize.lfq import LFQ
from omnitok.quantize.vq import VQ

__all__ = [
    "BSQ",
    "FSQ",
    "KL",
    "LFQ",
    "VQ",
    "DiscreteQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "build_quantizer",
]

_KINDS: dict[str, type[Quantizer]] = {"bsq": BSQ, "fsq": FSQ, "kl": KL, "lfq": LFQ, "vq": VQ}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config` describes."""
    return _KINDS[config.kind](config)
