"""A shape as three many-channel pictures: what the planes of the tokenizer take in.

Shape suffixes: P planes (xy, xz, yz), C channels, R cells on a side, M points, A axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from omnitok.config import PlanesConfig
from omnitok.planes import AXES
from shapes.extras import ShapesError
from shapes.inside import Inside
from shapes.sample import Surface

FINER = 2  # cells on a side of a cell, in which inside is looked at
VIEWS = 10  # channels: colours from both sides, mean normal, number of points


@dataclass(frozen=True, eq=False)
class Raster:
    """Everything about a shape that the encoder sees, small enough to keep.

    Attributes:
        shares: [R, R, R] uint8 in x y z: how many of the FINER ** 3 parts of a cell are inside.
        views: [P, VIEWS, R, R] float16: what the surface looks like along the third axis, from
            below and from above.
    """

    shares: Tensor
    views: Tensor

    @property
    def share(self) -> Tensor:
        """[R, R, R] float32 how much of each cell is inside, from 0 to 1."""
        return self.shares.float() / FINER**3

    def planes(self) -> Tensor:
        """[P, C, R, R] float32, the bins along the third axis first."""
        share = self.share
        bins = torch.stack([share.permute(2, 0, 1), share.permute(1, 0, 2), share])
        return torch.cat([bins, self.views.float()], dim=1)


def rasterize(inside: Inside, surface: Surface, config: PlanesConfig) -> Raster:
    """The raster of a shape in the box from -1 to 1.

    Raises:
        ShapesError: The tokenizer wants other channels.
    """
    cells = config.raster
    if config.bins != cells or config.views != VIEWS:
        raise ShapesError(
            f"the tokenizer takes {config.bins} bins and {config.views} views of {cells} cells; "
            f"expected {cells} bins and {VIEWS} views"
        )
    fine = torch.from_numpy(inside.grid(FINER * cells)).to(torch.uint8)
    pattern = "(x a) (y b) (z c) -> x y z (a b c)"
    parts = {"a": FINER, "b": FINER, "c": FINER}
    shares = rearrange(fine, pattern, **parts).sum(dim=-1, dtype=torch.uint8)
    sides = np.stack([_views(surface, axes, cells) for axes in AXES])
    return Raster(shares, torch.from_numpy(sides).half())


def _views(surface: Surface, axes: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """[VIEWS, R, R]: colours of the lowest and highest points, mean normal, log count."""
    place = ((surface.points[:, axes] + 1) / 2 * cells).astype(np.int64).clip(0, cells - 1)
    cell = place[:, 0] * cells + place[:, 1]
    (axis,) = {0, 1, 2} - set(axes)
    order = np.argsort(surface.points[:, axis], kind="stable")
    view = np.zeros((cells * cells, VIEWS), np.float32)
    colors = surface.colors / 255
    view[cell[order[::-1]], 0:3] = colors[order[::-1]]  # the last one written stays
    view[cell[order], 3:6] = colors[order]
    count = np.bincount(cell, minlength=cells * cells)
    for a in range(3):
        total = np.bincount(cell, surface.normals[:, a], minlength=cells * cells)
        view[:, 6 + a] = total / np.maximum(count, 1)
    view[:, 9] = np.log1p(count * (cells * cells / len(surface.points))) / 2
    return view.T.reshape(VIEWS, cells, cells)
