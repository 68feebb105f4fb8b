"""Root-mean-square and layer normalisation.

Shape suffixes: D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = ("rms", "layer")
IN_CACHE = 2**17  # numbers that a processor's cache keeps from one step to the next


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
        if needs_graph(x):
            return F.rms_norm(x, (self.width,), self.weight, self.eps)
        if x.dtype == torch.float32:
            scaled = x * inverse_rms(x, self.eps)
            return scaled if self.weight is None else scaled.mul_(self.weight)
        rows, out = x.reshape(-1, self.width), torch.empty_like(x).reshape(-1, self.width)
        some = max(1, IN_CACHE // self.width)
        for part, place in zip(torch.split(rows, some), torch.split(out, some), strict=True):
            wide = part.float()
            wide.mul_(inverse_rms(wide, self.eps))
            place.copy_(wide if self.weight is None else wide.mul_(self.weight))
        return out.reshape(x.shape)


def needs_graph(x: Tensor) -> bool:
    """Whether `x` is worked on for training, for a compiler or on a GPU.

    Fused kernels and gradients are for those; elsewhere a CPU is fastest with few passes over
    memory that it need not ask for, which is what this package does where this is False.
    """
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu"


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """[..., 1] float32 reciprocals of the root mean square of the last axis."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
