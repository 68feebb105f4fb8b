"""How published systems read features off three planes; ours is in `omnitok.planes`.

Shape suffixes: B batch, P planes, C channels, R cells on a side, M points, A axes (x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from omnitok.planes import sample_planes


@dataclass(frozen=True)
class Convention:
    """Which coordinates a system looks up on its planes, and how.

    Attributes:
        axes: (row, column) of each plane, of (x, y, z).
        align_corners: Whether the ends of the box are the centres of the outermost cells.
        padding: What lies beyond them.
        radius: Half the side of the box.
    """

    axes: tuple[tuple[int, int], ...]
    align_corners: bool = False
    padding: str = "zeros"
    radius: float = 1.0

    def places(self, points_BMA: Tensor) -> Tensor:
        """[B, P, M, 2] (row, column) from -1 to 1."""
        return torch.stack([points_BMA[..., list(axes)] / self.radius for axes in self.axes], dim=1)

    def sample(self, planes_BPCRR: Tensor, points_BMA: Tensor) -> Tensor:
        """[B, P, M, C] features."""
        return sample_planes(
            planes_BPCRR,
            self.places(points_BMA),
            align_corners=self.align_corners,
            padding=self.padding,
        )


# Chan et al. 2022, arXiv:2112.07945: published weights were trained with a third plane that repeats
# x and z, so that y and z never meet
EG3D = Convention(((1, 0), (2, 0), (0, 2)))
# Wu et al. 2024, arXiv:2405.14832, and OpenLRM: the same with the third plane put right
DIRECT3D = Convention(((1, 0), (2, 0), (1, 2)))
# Tochilkin et al. 2024, arXiv:2403.02151
TRIPOSR = Convention(((1, 0), (2, 0), (2, 1)), radius=0.87)


@dataclass(frozen=True)
class ConvONet:
    """The planes of convolutional occupancy networks, in a box from -0.5 to 0.5 with a margin.

    Source: Peng et al. 2020, arXiv:2003.04618, and its published code.

    Attributes:
        padding: Margin as a share of the box.
    """

    padding: float = 0.1

    def places(self, points_BMA: Tensor, axes: tuple[int, int]) -> Tensor:
        """[B, M, 2] (column, row) from 0 to just below 1."""
        place = points_BMA[..., list(axes)] / (1 + self.padding + 1e-5) + 0.5
        return torch.where(place >= 1, 1 - 1e-5, place).clamp_min(0)

    def cells(self, points_BMA: Tensor, axes: tuple[int, int], side: int) -> Tensor:
        """[B, M] number of the cell of each point, rows one after the other."""
        column, row = (self.places(points_BMA, axes) * side).long().unbind(-1)
        return column + side * row

    def scatter(
        self, features_BMC: Tensor, points_BMA: Tensor, axes: tuple[int, int], side: int
    ) -> Tensor:
        """[B, C, R, R] mean of the features in each cell; 0 where there are none."""
        many, _, channels = features_BMC.shape
        index = self.cells(points_BMA, axes, side)[..., None]
        total = features_BMC.new_zeros(many, side * side, channels)
        total.scatter_add_(1, index.expand_as(features_BMC), features_BMC)
        count = features_BMC.new_zeros(many, side * side, 1)
        count.scatter_add_(1, index, torch.ones_like(features_BMC[..., :1]))
        return rearrange(total / count.clamp_min(1), "b (y x) c -> b c y x", y=side)

    def sample(self, plane_BCRR: Tensor, points_BMA: Tensor, axes: tuple[int, int]) -> Tensor:
        """[B, C, M] features."""
        places = 2 * self.places(points_BMA, axes)[:, None].flip(-1) - 1
        return sample_planes(plane_BCRR[:, None], places, align_corners=True)[:, 0].mT
