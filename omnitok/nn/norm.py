"""Root-mean-square and layer normalisation.

Shape suffixes: D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("rms", "layer")


class Norm(nn.Module):
    """Normalise the last axis, in the dtype of the input with float32 statistics.

    Args:
        kind: "rms" (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4) or "layer".
        width: Size of the last axis.
        affine: Learn a scale (and, for "layer", a shift). A norm whose output feeds only linear
            layers needs none: their weights absorb it.
        eps: Added to the mean square or the variance.
    """

    def __init__(self, kind: str, width: int, affine: bool, eps: float = 1e-6) -> None:
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"unknown norm {kind!r}; choose one of {list(NORMS)}")
        self.kind, self.width, self.eps = kind, width, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        if self.kind == "layer":
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        return F.rms_norm(x, (self.width,), self.weight, self.eps)
