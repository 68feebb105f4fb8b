"""Losses on feature maps of a trained network: LPIPS and Gram matrices.

Shape suffixes: N pictures, C channels, H and W places of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnitok.losses.base import Loss, LossConfig, LossInputs
from omnitok.losses.trunk import Trunk


@dataclass(kw_only=True, slots=True)
class PerceptualConfig(LossConfig):
    """LPIPS, or distance of Gram matrices, by its name.

    Attributes:
        network: File of the network, made by `python -m tools.feature_nets`.
        frames: Frames of each clip, drawn at random; None for all.
        side: Scale them to this many pixels square; None for their own size.
        fast: Convolve in bfloat16; on a CPU with AMX two to three times as fast.
    """

    network: str
    frames: int | None = 1
    side: int | None = None
    fast: bool = False

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.check_positive("frames", "side")


def lpips(trunk: Trunk, maps: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Learned perceptual distance, from feature maps of two sets of pictures.

    Source: Zhang et al. 2018, arXiv:1801.03924, eq. 1, version 0.1 of the weights.

    Returns:
        [N] float32; 0 for equal pictures.
    """
    total = maps[0].new_zeros(len(maps[0]))
    for head_C, a_NCHW, b_NCHW in zip(trunk.heads(), maps, wanted, strict=True):
        difference = (_unit(a_NCHW) - _unit(b_NCHW)).square()
        total = total + torch.einsum("nchw,c->nhw", difference, head_C).mean((1, 2))
    return total


def _unit(x_NCHW: Tensor) -> Tensor:
    """Each place's features with a length of 1."""
    length: Tensor = torch.linalg.vector_norm(x_NCHW, dim=1, keepdim=True)
    return x_NCHW / (length + 1e-10)


def gram(x_NCHW: Tensor) -> Tensor:
    """[N, C, C] products of channels, averaged over places and divided by the channels."""
    x_NCP = x_NCHW.float().flatten(2)
    return x_NCP @ x_NCP.transpose(1, 2) / (x_NCP.shape[1] * x_NCP.shape[2])


def gram_distance(maps: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Squared Frobenius distance of Gram matrices, summed over layers.

    Source: Gatys et al. 2015, arXiv:1508.06576, eq. 4, with the matrices divided by C * H * W as
    the loss of AToken (arXiv:2509.14476) needs for its published weight.

    Returns:
        [N] float32.
    """
    distances = [
        (gram(a) - gram(b)).square().sum((1, 2)) for a, b in zip(maps, wanted, strict=True)
    ]
    return torch.stack(distances).sum(0)


class _Perceptual(Loss):
    config: PerceptualConfig

    def __init__(self, config: PerceptualConfig, trunk: Trunk) -> None:
        super().__init__(config)
        self.trunk = trunk

    def maps(self, inputs: LossInputs) -> tuple[list[Tensor], list[Tensor]]:
        config = self.config
        return inputs.trunk_features(self.trunk, config.frames, config.side, config.fast)


class LPIPS(_Perceptual):
    """Mean perceptual distance of frames."""

    def forward(self, inputs: LossInputs) -> Tensor:
        """The mean over frames."""
        with torch.autocast(inputs.recon.device.type, enabled=False):
            return lpips(self.trunk, *self.maps(inputs)).mean()


class Gram(_Perceptual):
    """Mean distance of the textures of frames, without an adversary."""

    def forward(self, inputs: LossInputs) -> Tensor:
        """The mean over frames."""
        with torch.autocast(inputs.recon.device.type, enabled=False):
            return gram_distance(*self.maps(inputs)).mean()
