"""Linear layers as a CPU runs them fastest.

Shape suffixes: none; the last axis is the one that a layer works on.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.nn.norm import needs_graph


def linear(layer: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    """What `layer` makes of `x`, and of that the gelu (tanh form) if asked for.

    In bfloat16 on a CPU the gelu alone takes as long as the matrix product, and the bias a tenth of
    it: one kernel does all.
    """
    if needs_graph(x):
        out: Tensor = layer(x)
        return F.gelu(out, approximate="tanh") if gelu else out
    if x.dtype == torch.bfloat16 and layer.weight.dtype == x.dtype and _has_fused():
        kind, form = ("gelu", "tanh") if gelu else ("none", "")
        out = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, kind, [], form)
        return out
    out = layer(x)
    if gelu:
        torch.ops.aten.gelu_(out, approximate="tanh")
    return out


@cache
def _has_fused() -> bool:
    """Whether there is the kernel that the compiler uses for a linear layer and what follows."""
    ops = torch.ops.mkldnn
    return hasattr(ops, "_linear_pointwise") and bool(ops._is_mkldnn_bf16_supported())
