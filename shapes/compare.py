"""Two shapes compared in the frame of the first one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shapes.inside import Inside
from shapes.mesh import Mesh
from shapes.metrics import Distances, distances, iou
from shapes.sample import Surface, into_box, placement_of, sample_surface
from shapes.solid import Solid, repair

POINTS = 100_000


@dataclass(frozen=True)
class ShapeComparison:
    """How close shape B is to shape A.

    Attributes:
        distances: In the box in which A's longest side is 1.9.
        iou: Of what is inside, at points spread evenly over that box; None where a shape is not
            closed.
        scale: Length of A's file for a length of 1 in the box.
        seed: Of the points.
    """

    distances: Distances
    iou: float | None
    scale: float
    seed: int


def compare_meshes(a: Mesh, b: Mesh, points: int = POINTS, seed: int = 0) -> ShapeComparison:
    """Compare two meshes or clouds at this many points of each.

    Raises:
        ShapesError: One of them has no surface.
    """
    place = placement_of(a)
    (surface_a, solid_a), (surface_b, solid_b) = (
        _looked_at(into_box(mesh, place), points, seed + n) for n, mesh in enumerate((a, b))
    )
    found = distances(surface_b.points, surface_a.points, surface_b.normals, surface_a.normals)
    both = None
    if solid_a is not None and solid_b is not None and solid_a.closed and solid_b.closed:
        at = np.random.default_rng(seed).uniform(-1, 1, (points, 3))
        inside = [
            Inside(solid, surface)(at)
            for solid, surface in ((solid_a, surface_a), (solid_b, surface_b))
        ]
        both = float(iou(inside[0], inside[1]))
    return ShapeComparison(found, both, place.scale, seed)


def _looked_at(mesh: Mesh, points: int, seed: int) -> tuple[Surface, Solid | None]:
    solid = None if mesh.is_cloud else repair(mesh)
    return sample_surface(mesh, solid, points, seed), solid
