"""Pixels between the two ranges that omnitok uses."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Uint8 pixels to [-1, 1]."""
    return frames.to(dtype) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to uint8 pixels, rounded and clamped."""
    return ((x.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
