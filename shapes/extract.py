"""From a field over the box to a mesh.

Shape suffixes: N lattice points on a side, V vertices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shapes.extras import load_mesh_package
from shapes.mesh import Mesh

CHUNK = 65_536  # points that are decoded at a time
LEVELS = sorted((step / 4 for step in range(-12, 5)), key=abs)  # logits: thin parts stay low
WORTH = 0.005  # overlap that another level than 0 must bring


def lattice(points: int) -> Tensor:
    """[N ** 3, 3] points of the box from -1 to 1, its faces included, in the order x y z."""
    line = torch.linspace(-1, 1, points)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)


def marching_cubes(field: NDArray[np.floating], level: float = 0.0) -> Mesh | None:
    """The surface of a field that is above `level` inside, given on a `lattice` [N, N, N].

    It is closed: what lies outside the box counts as outside. None where there is no surface.

    Source: Lewiner et al. 2003, doi:10.1080/10867651.2003.10487582, by scikit-image.
    """
    measure = load_mesh_package("skimage.measure")
    # the layer around the box is as far below the level as the strongest inside is above it
    low = min(float(field.min()), 2 * level - float(field.max()))
    padded = np.pad(np.asarray(field, np.float32), 1, constant_values=low)
    if not padded.min() < level < padded.max():
        return None
    step = 2 / (len(field) - 1)
    vertices, faces, _, _ = measure.marching_cubes(
        padded, level, spacing=(step,) * 3, gradient_direction="ascent"
    )
    vertices = (vertices - step - 1).astype(np.float64).clip(-1, 1)
    return Mesh(vertices, faces.astype(np.int64))


def best_level(field: Tensor, share: Tensor) -> float:
    """The level whose surface overlaps a shape most: 0, or one of `LEVELS` that is clearly better.

    Args:
        field: [N, N, N] logits at the centres of equal parts of the cells of a raster.
        share: [R, R, R] how much of each cell is inside, from 0 to 1.
    """
    parts = len(field) // len(share)
    overlaps = []
    for level in LEVELS:
        found = F.avg_pool3d((field > level).float()[None], parts)[0]
        both, either = torch.minimum(found, share).sum(), torch.maximum(found, share).sum()
        overlaps.append(both / either.clamp_min(1e-6))
    plain, *others = torch.stack(overlaps).tolist()
    best = max(others)  # of equal ones the nearest to 0
    return LEVELS[1 + others.index(best)] if best > plain + WORTH else 0.0


def evaluate(field_at: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """A function of [M, 3] points, some at a time, as one tensor on the CPU."""
    return torch.cat([field_at(part).float().cpu() for part in torch.split(points, CHUNK)])
