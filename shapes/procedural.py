"""Shapes and colours made by rule: training data where real meshes are few.

Shape suffixes: M points, A axes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shapes.extract import lattice, marching_cubes
from shapes.mesh import Bytes, Floats, Mesh

LATTICE = 80
PRIMITIVES = ("box", "ellipsoid", "cylinder", "capsule", "torus", "cone")


def random_shape(seed: int, parts: int | None = None, lattice_points: int = LATTICE) -> Mesh:
    """A closed, coloured mesh of one to six parts that are joined, melted together or cut away.

    Args:
        seed: Of everything random.
        parts: How many parts, all of them joined.
        lattice_points: On a side of the box; the square of it is about a tenth of the faces.
    """
    rng = np.random.default_rng(seed)
    points = lattice(lattice_points).double().numpy()
    field = np.full(len(points), 1e3)
    for number in range(parts or rng.integers(1, 7)):
        part = _primitive(points, rng)
        blend = rng.choice([0.0, 0.1])
        if parts is None and number and rng.random() < 0.3:
            carved = -_smooth_min(-field, part, blend)
            field = carved if (carved < 0).mean() > 0.01 else field
        else:
            field = _smooth_min(field, part, blend)
    mesh = marching_cubes(-field.reshape((lattice_points,) * 3))
    if mesh is None:  # everything was cut away or is smaller than a cell
        return random_shape(seed + 1_000_003, parts, lattice_points)
    return paint(mesh, seed)


def paint(mesh: Mesh, seed: int) -> Mesh:
    """The mesh with smooth random colours by position."""
    size = np.abs(mesh.vertices).max()
    return replace(mesh, colors=_pattern(mesh.vertices / size, np.random.default_rng([seed, 1])))


def _pattern(points: Floats, rng: np.random.Generator) -> Bytes:
    """[M, 3] colours: two blended by waves across space."""
    colors = rng.uniform(0, 255, (2, 3))
    waves = rng.normal(0, rng.choice([1.0, 3.0, 6.0]), (3, 2))
    share = np.sin(points @ waves + rng.uniform(0, 6.3, 2)).mean(axis=1, keepdims=True)
    share = 0.5 + 0.5 * np.tanh(rng.choice([1.0, 8.0]) * share)
    return np.asarray(np.rint(colors[0] * share + colors[1] * (1 - share)), np.uint8)


def _smooth_min(a: Floats, b: Floats, blend: float) -> Floats:
    """The smaller distance, rounded off where both are alike."""
    if blend == 0:
        return np.minimum(a, b)
    mix = np.maximum(blend - np.abs(a - b), 0) / blend
    return np.minimum(a, b) - mix * mix * blend / 4


def _primitive(points: Floats, rng: np.random.Generator) -> Floats:
    """[M] about the signed distance to a part of random kind, size, place and direction."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    if rng.random() < 0.4:
        turn = np.eye(3)[rng.permutation(3)]
    p = (points - rng.uniform(-0.45, 0.45, 3)) @ turn
    size = rng.uniform(0.08, 0.45, 3)
    around = np.linalg.norm(p[:, :2], axis=1)
    kind = PRIMITIVES[rng.integers(len(PRIMITIVES))]
    if kind == "box":
        over = np.abs(p) - size
        outer = np.linalg.norm(np.maximum(over, 0), axis=1)
        return np.asarray(outer + np.minimum(over.max(axis=1), 0))
    if kind == "ellipsoid":
        near = np.linalg.norm(p / size, axis=1)
        return np.asarray((near - 1) * size.min())
    if kind == "capsule":
        axis = np.stack([*p.T[:2], p[:, 2] - p[:, 2].clip(-size[2], size[2])], axis=1)
        return np.asarray(np.linalg.norm(axis, axis=1) - size[0] / 2)
    if kind == "torus":
        ring = np.stack([around - size[0] - 0.1, p[:, 2]], axis=1)
        return np.asarray(np.linalg.norm(ring, axis=1) - size[1] / 3 - 0.02)
    radius = size[0] if kind == "cylinder" else size[0] * (0.5 - p[:, 2] / (2 * size[2]))
    return np.asarray(np.maximum(around - radius, np.abs(p[:, 2]) - size[2]))
