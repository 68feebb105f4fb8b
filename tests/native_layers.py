"""Layers that our own kernels are tried on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omnitok.native import build

HALF = torch.bfloat16
needs_tiles = pytest.mark.skipif(
    build.library() is None, reason="no processor with matrix tiles, or no C++ compiler"
)


def layer(
    width: int, columns: int, bias: bool, seed: int = 0, dtype: torch.dtype = HALF
) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(width, columns, bias=bias).requires_grad_(False)
    made.weight.normal_(std=width**-0.5)
    return made.to(dtype)
