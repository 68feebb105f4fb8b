"""Shapes as training data: prepared once, kept on disk, drawn from at every step.

Shape suffixes: see `omnitok.planes`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omnitok.checkpoint import replacing
from omnitok.config import PlanesConfig
from omnitok.planes import PlaneBatch
from shapes.extras import ShapesError
from shapes.inside import Inside
from shapes.mesh import Mesh
from shapes.raster import Raster, rasterize
from shapes.sample import draw_queries, into_box, placement_of, sample_surface
from shapes.solid import repair

SURFACE = 200_000  # points that a shape is looked at by
QUERIES = 100_000
KEPT = 20_000  # points of the surface kept for colours


@dataclass(frozen=True, eq=False)
class Prepared:
    """One shape, ready to train on.

    Attributes:
        raster: What the encoder sees.
        points: [M, 3] float16 queries.
        inside: [M] bool.
        weights: [M] float16.
        surface: [S, 3] float16 points on the surface.
        colors: [S, 3] uint8.
        colored: Whether the colours are the shape's own.
    """

    raster: Raster
    points: Tensor
    inside: Tensor
    weights: Tensor
    surface: Tensor
    colors: Tensor
    colored: bool

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {
            "shares": self.raster.shares,
            "views": self.raster.views.contiguous(),
            "points": self.points,
            "inside": self.inside,
            "weights": self.weights,
            "surface": self.surface,
            "colors": self.colors,
            "colored": torch.tensor([self.colored]),
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: str | Path) -> Prepared:
        """Read a file written by `save`; the tensors stay in the file until used.

        Raises:
            ShapesError: It is not such a file.
        """
        try:
            with safe_open(str(path), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            raster = Raster(tensors.pop("shares"), tensors.pop("views"))
            colored = bool(tensors.pop("colored"))
            return cls(raster=raster, colored=colored, **tensors)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ShapesError(f"{path} is no prepared shape ({error}); prepare it again") from error


def prepare(mesh: Mesh, config: PlanesConfig, seed: int = 0) -> Prepared:
    """Raster, labelled queries and coloured surface points of a mesh or cloud.

    Raises:
        ShapesError: There is no surface in it.
    """
    mesh = into_box(mesh, placement_of(mesh))
    solid = None if mesh.is_cloud else repair(mesh)
    surface = sample_surface(mesh, solid, SURFACE, seed)
    inside = Inside(solid, surface)
    queries = draw_queries(surface, QUERIES, seed)
    points = torch.from_numpy(queries.points).half()
    some = np.random.default_rng(seed).permutation(len(surface.points))[:KEPT]
    return Prepared(
        raster=rasterize(inside, surface, config),
        points=points,
        inside=torch.from_numpy(inside(points.double().numpy())),
        weights=torch.from_numpy(queries.weights).half(),
        surface=torch.from_numpy(surface.points[some]).half(),
        colors=torch.from_numpy(surface.colors[some].copy()),
        colored=mesh.has_colors,
    )


def prepared(mesh: Mesh, config: PlanesConfig, cache: str | Path, seed: int = 0) -> Prepared:
    """`prepare`, kept in the folder `cache` under a hash of the mesh and the settings."""
    digest = hashlib.sha256(json.dumps([str(config), seed, SURFACE, QUERIES, KEPT]).encode())
    texture = mesh.texture and (mesh.texture.uv, mesh.texture.image)
    for array in (mesh.vertices, mesh.faces, mesh.colors, mesh.normals, *(texture or ())):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
    path = Path(cache) / f"{digest.hexdigest()[:32]}.safetensors"
    if not path.exists():
        prepare(mesh, config, seed).save(path)
    return Prepared.load(path)


def draw(
    shape: Prepared, points: int, surface: int, rng: np.random.Generator, turn: bool
) -> PlaneBatch:
    """Random points of a shape, and its raster, without the batch axis.

    Args:
        shape: What to draw from.
        points: Queries.
        surface: Coloured points of the surface.
        rng: Of the draws.
        turn: Whether to turn and mirror the shape at random by the symmetries of the box.
    """
    # a run from a random place of the shuffled lists: nothing but this is read from the file
    some = torch.from_numpy(rng.integers(len(shape.points), size=points))
    seen = torch.from_numpy(rng.integers(len(shape.surface), size=surface))
    raster, places, seen_places = shape.raster.planes(), shape.points[some], shape.surface[seen]
    if turn:
        order = torch.from_numpy(rng.permutation(3))
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=3))
        raster = turned(shape.raster, order, signs).planes()
        places, seen_places = (
            (p.double()[:, order] * signs).float() for p in (places, seen_places)
        )
    return PlaneBatch(
        raster=raster,
        points=places.float(),
        inside=shape.inside[some].float(),
        weights=shape.weights[some].float(),
        surface=seen_places.float(),
        colors=shape.colors[seen].float() / 255,
        colored=torch.tensor(float(shape.colored)),
    )


def turned(raster: Raster, order: Tensor, signs: Tensor) -> Raster:
    """The raster of a shape whose new axis a is its old axis order[a], times signs[a]."""
    axes = [int(a) for a in order]
    flips = [a for a in range(3) if signs[a] < 0]
    shares = raster.shares.permute(axes).flip(flips)
    views = []
    for row, column in ((0, 1), (0, 2), (1, 2)):
        old = sorted((axes[row], axes[column]))
        view = raster.views[{(0, 1): 0, (0, 2): 1, (1, 2): 2}[(old[0], old[1])]]
        if axes[row] > axes[column]:
            view = view.transpose(1, 2)
        view = view.flip([1 + i for i, a in enumerate((row, column)) if signs[a] < 0])
        (axis,) = {0, 1, 2} - {row, column}
        low, high = (view[3:6], view[0:3]) if signs[axis] < 0 else (view[0:3], view[3:6])
        normals = view[6:9][axes] * signs.to(view.dtype)[:, None, None]
        views.append(torch.cat([low, high, normals, view[9:]]))
    return Raster(shares, torch.stack(views))
