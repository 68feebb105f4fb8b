"""Losses on pixels.

Shape suffixes: B batch, C colours, T frames, H and W pixels.
"""

from __future__ import annotations

from torch import Tensor


def rmse_per_clip(recon_BCTHW: Tensor, target_BCTHW: Tensor, eps: float = 1e-4) -> Tensor:
    """Mean over clips of the root of each clip's mean squared error.

    Lies between the mean squared error, which hard clips dominate, and its logarithm (the mean
    PSNR), which easy clips dominate.

    Args:
        recon_BCTHW: Decoded pixels.
        target_BCTHW: Pixels in [-1, 1].
        eps: Added to each mean square; keeps the gradient of flat clips bounded.

    Returns:
        Scalar.
    """
    square = (recon_BCTHW.float() - target_BCTHW.float()).square()
    return (square.flatten(1).mean(dim=1) + eps).sqrt().mean()
