"""What is inside of a shape: closed, open, made of many parts, a sheet, or points.

A closed surface surrounds a point as often as rays from it cross outwards more than inwards. For an
open one that number is a fraction, found from a field over the whole box and corrected near the
surface; inside is where it is clearly above one half (it is one half on one side of a flat sheet).
What encloses nothing is given a thickness.

Shape suffixes: M points, A axes, N cells of a side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from shapes.extras import load_mesh_package
from shapes.mesh import Floats
from shapes.rays import Scene
from shapes.sample import Surface
from shapes.solid import Solid

DIRECTIONS = np.array([[0.31, 0.48, 0.82], [-0.77, 0.59, -0.24], [0.11, -0.83, 0.55]])
FIELD = 80  # cells of a side of the winding field
NEAR = 2.0  # cells of it within which the surface corrects it
SURE = 0.6  # how often an open surface surrounds what is inside
PLATE = 1 / 64  # half the thickness that a sheet is given
THINNEST = {"closed": 1 / 500, "open": 1 / 32}  # mean thickness of what encloses something
STEP = 500_000  # rays shot at a time


class Inside:
    """Tells inside from outside; everything lies in the box from -1 to 1.

    Args:
        solid: Repaired triangles in the box; None for a cloud.
        surface: Points of it.

    Attributes:
        kind: "closed", "open" or "sheet".
    """

    def __init__(self, solid: Solid | None, surface: Surface) -> None:
        self._surface = surface
        self._scene: Scene | None = None
        self._tree: Any = None
        self._field: torch.Tensor | None = None
        self.kind = "closed" if solid is not None and solid.closed else "open"
        if solid is not None and solid.closed:
            self._scene = Scene(solid.vertices, solid.faces)
        cells = self.grid(64)
        thickness = 2 * cells.sum() * (2 / 64) ** 3 / max(surface.area.sum(), 1e-12)
        if thickness < THINNEST[self.kind]:
            self.kind = "sheet"

    def __call__(self, points: Floats) -> NDArray[np.bool_]:
        """[M] whether each point [M, 3] is inside."""
        parts = [self._ask(points[start : start + STEP]) for start in range(0, len(points), STEP)]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def grid(self, cells: int) -> NDArray[np.bool_]:
        """[N, N, N] whether the centres of the cells of the box are inside, in the order x y z."""
        centres = (np.arange(cells) + 0.5) / cells * 2 - 1
        if self.kind == "closed" and self._scene is not None:
            return self._scan(centres)
        lattice = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1)
        return self(lattice.reshape(-1, 3)).reshape((cells,) * 3)

    def _ask(self, points: Floats) -> NDArray[np.bool_]:
        if self.kind == "sheet":
            return self._in_plate(points)
        if self._scene is None:
            return self._by_field(points)
        one, two = (self._scene.crossings(points, d / np.linalg.norm(d)) for d in DIRECTIONS[:2])
        unsure = np.flatnonzero(one != two)
        if len(unsure):  # a ray met an edge
            third = DIRECTIONS[2] / np.linalg.norm(DIRECTIONS[2])
            one[unsure] = np.median(
                [one[unsure], two[unsure], self._scene.crossings(points[unsure], third)], axis=0
            )
        return one > 0

    # closed

    def _scan(self, centres: Floats) -> NDArray[np.bool_]:
        """Every column of cells by one ray along each axis; the majority of the three counts."""
        assert self._scene is not None
        many = len(centres)
        votes = np.zeros((many,) * 3, np.int8)
        shift = (2 / many) * np.array([1.7e-3, 2.9e-3])  # keeps rays off edges that lie on cells
        for axis in range(3):
            a, b = np.meshgrid(centres + shift[0], centres + shift[1], indexing="ij")
            origins = np.insert(np.stack([a.ravel(), b.ravel()], axis=1), axis, -2.0, axis=1)
            inside = self._scene.columns(origins, axis, centres)
            votes += np.moveaxis(inside.reshape(many, many, many), -1, axis)
        return votes >= 2

    # open

    def _by_field(self, points: Floats) -> NDArray[np.bool_]:
        if self._field is None:
            self._field = winding_field(self._surface, FIELD)
        field, reach = self._field, NEAR * 2 / FIELD
        winding = _interpolate(field, points)
        distance, index = self._nearest(points, reach)
        near = np.isfinite(distance)
        foot, normal = (a[index[near]] for a in (self._surface.points, self._surface.normals))
        # on the surface the field is the mean of its two sides, which differ by one
        inner = np.einsum("mi,mi->m", points[near] - foot, normal) < 0
        winding[near] = _interpolate(field, foot) + np.where(inner, 0.5, -0.5)
        return winding > SURE

    def _in_plate(self, points: Floats) -> NDArray[np.bool_]:
        """Whether points are close above or below the surface."""
        distance, index = self._nearest(points, 2 * PLATE)
        near = np.flatnonzero(np.isfinite(distance))
        foot, normal = (a[index[near]] for a in (self._surface.points, self._surface.normals))
        inside = np.zeros(len(points), bool)
        inside[near] = np.abs(np.einsum("mi,mi->m", points[near] - foot, normal)) < PLATE
        return inside

    def _nearest(self, points: Floats, reach: float) -> tuple[Floats, NDArray[np.int64]]:
        """Distance and number of the nearest point of the surface, infinite beyond `reach`."""
        if self._tree is None:
            self._tree = load_mesh_package("scipy.spatial").cKDTree(self._surface.points)
        distance, index = self._tree.query(points, distance_upper_bound=reach, workers=-1)
        return distance, index


def winding_field(surface: Surface, cells: int) -> torch.Tensor:
    """[N, N, N] how often a surface of points surrounds the centres of the cells of the box.

    The sum over all points of area times the solid angle it fills is a convolution, done by
    Fourier transforms over twice the box.

    Source: Barill et al. 2018, doi:10.1145/3197517.3201337, eq. 10.
    """
    source = _splat(surface, cells)
    offsets = torch.fft.fftfreq(2 * cells, 1 / (2 * cells)) * (2 / cells)
    x, y, z = torch.meshgrid(offsets, offsets, offsets, indexing="ij")
    cube = (x * x + y * y + z * z).pow(1.5).mul_(4 * torch.pi)
    cube[0, 0, 0] = torch.inf
    total: torch.Tensor | None = None
    for axis, offset in enumerate((x, y, z)):
        term = torch.fft.rfftn(source[axis], (2 * cells,) * 3).mul_(torch.fft.rfftn(-offset / cube))
        total = term if total is None else total.add_(term)
    assert total is not None
    field: torch.Tensor = torch.fft.irfftn(total, (2 * cells,) * 3)
    return field[:cells, :cells, :cells].contiguous()


def _splat(surface: Surface, cells: int) -> torch.Tensor:
    """[3, N, N, N] area-weighted normals, each spread over the eight cells around its point."""
    place = (torch.from_numpy(surface.points) + 1) / 2 * cells - 0.5
    low = place.floor()
    part = place - low
    value = torch.from_numpy(surface.normals * surface.area[:, None])
    grid = torch.zeros(3, cells**3, dtype=torch.float64)
    for corner in range(8):
        step = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        share = torch.where(step.bool(), part, 1 - part).prod(dim=1)
        index = (low.long() + step).clamp(0, cells - 1)
        flat = (index[:, 0] * cells + index[:, 1]) * cells + index[:, 2]
        grid.index_add_(1, flat, (value * share[:, None]).T)
    return grid.view(3, cells, cells, cells).float()


def _interpolate(field: torch.Tensor, points: Floats) -> Floats:
    """[M] values between the centres of the cells."""
    place = torch.from_numpy(points).float().flip(1).view(1, 1, 1, -1, 3)  # columns first
    sampled = F.grid_sample(
        field[None, None], place, align_corners=False, padding_mode="border"
    ).flatten()
    return sampled.double().numpy()
