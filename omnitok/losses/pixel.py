"""Losses on pixels, all of [B, 3, T, H, W].

Shape suffixes: B batch, C colours, T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from omnitok.losses.base import Loss, LossConfig, LossInputs


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


def charbonnier(recon_BCTHW: Tensor, target_BCTHW: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + eps^2): the absolute difference, smooth at 0.

    Source: Charbonnier et al. 1994, Two deterministic half-quadratic regularization algorithms.
    """
    square = (recon_BCTHW.float() - target_BCTHW.float()).square()
    return (square + eps**2).sqrt().mean()


def logit_laplace(recon_BCTHW: Tensor, target_BCTHW: Tensor) -> Tensor:
    """What OmniTokenizer adds to squared differences under this name.

    Pixels from 0 to 1 are squeezed into 0.1 to 0.9, as for the logit-Laplace likelihood of Ramesh
    et al. 2021, arXiv:2102.12092, appendix A.3; of that, the published code has the absolute
    difference alone.
    """
    return 0.8 * F.l1_loss(recon_BCTHW / 2, target_BCTHW / 2)


@dataclass(kw_only=True, slots=True)
class PixelConfig(LossConfig):
    """Distance of pixels: l1, l2, rmse (see `rmse_per_clip`) or logit_laplace, by its name."""


@dataclass(kw_only=True, slots=True)
class HuberConfig(LossConfig):
    """Huber loss: squares up to `delta`, absolute differences beyond it, divided by `delta`.

    Attributes:
        delta: Where the one turns into the other, of a range of 2.
    """

    delta: float = 0.1

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.check_positive("delta")


@dataclass(kw_only=True, slots=True)
class CharbonnierConfig(LossConfig):
    """Charbonnier loss.

    Attributes:
        eps: Below it, of a range of 2, differences count as squares.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.check_positive("eps")


class PixelLoss(Loss):
    """A function of reconstruction and target."""

    def __init__(self, config: LossConfig, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(config)
        self.distance = distance

    def forward(self, inputs: LossInputs) -> Tensor:
        """The mean over all pixels."""
        return self.distance(inputs.recon.float(), inputs.target.float())


def l1(config: PixelConfig) -> PixelLoss:
    """Mean absolute difference."""
    return PixelLoss(config, F.l1_loss)


def l2(config: PixelConfig) -> PixelLoss:
    """Mean squared difference."""
    return PixelLoss(config, F.mse_loss)


def rmse(config: PixelConfig) -> PixelLoss:
    """See `rmse_per_clip`."""
    return PixelLoss(config, rmse_per_clip)


def logit_laplace_loss(config: PixelConfig) -> PixelLoss:
    """See `logit_laplace`."""
    return PixelLoss(config, logit_laplace)


def huber(config: HuberConfig) -> PixelLoss:
    """See `HuberConfig`."""
    return PixelLoss(config, lambda a, b: F.smooth_l1_loss(a, b, beta=config.delta))


def charbonnier_loss(config: CharbonnierConfig) -> PixelLoss:
    """See `charbonnier`."""
    return PixelLoss(config, lambda a, b: charbonnier(a, b, config.eps))
