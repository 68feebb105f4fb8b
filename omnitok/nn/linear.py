"""Linear layers as a CPU runs them fastest.

Shape suffixes: none; the last axis is the one that a layer works on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.native import kernels
from omnitok.nn.norm import needs_graph


def linear(
    layer: nn.Linear,
    x: Tensor,
    norm: kernels.NormLike | None = None,
    gelu: bool = False,
    onto: Tensor | None = None,
) -> Tensor:
    """`onto` plus what `layer` makes of the normalised `x`, after a gelu (tanh form) or none."""
    if takes(x, layer):
        return kernels.linear(layer, x, norm=norm, act="gelu_tanh" if gelu else None, onto=onto)
    if norm is not None:
        x = norm(x)
    out: Tensor = layer(x)
    if gelu:
        out = F.gelu(out, approximate="tanh") if needs_graph(x) else _gelu_(out)
    return out if onto is None else add(onto, out)


def takes(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether our own kernels run `layers` over `x`, or attention over it."""
    return not needs_graph(x) and kernels.fits(x, *layers)


def takes_half(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether they do so in bfloat16, with all that there is for it alone."""
    return x.dtype == torch.bfloat16 and takes(x, *layers)


def add(x: Tensor, branch: Tensor) -> Tensor:
    """The residual stream and what was just computed for it, which nobody else holds."""
    if needs_graph(x) or branch.dtype != x.dtype:  # autocast makes narrower branches
        return x + branch
    return branch.add_(x)


def _gelu_(x: Tensor) -> Tensor:
    done: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return done
