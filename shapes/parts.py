"""Thin parts made by rule, as machines are built of: plates, channels, trays, tubes, frames, gears.

Shape suffixes: M points, A axes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shapes.extract import lattice, marching_cubes
from shapes.mesh import Floats, Mesh
from shapes.procedural import paint

LATTICE = 96
THICKNESS = (0.015, 0.05)  # half of it; a cell of the raster is 1/32
MOST_HOLES = 6


def random_part(seed: int, lattice_points: int = LATTICE) -> Mesh:
    """A closed, coloured mesh of a part with thin walls, along the axes for the most part.

    Args:
        seed: Of everything random.
        lattice_points: On a side of the box that its surface is found on.
    """
    rng = np.random.default_rng([seed, 2])
    points = lattice(lattice_points).numpy()
    turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if rng.random() < 0.25:
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    kind = KINDS[rng.integers(len(KINDS))]
    field = kind(points @ turn.astype(np.float32), rng)
    mesh = marching_cubes(-field.reshape((lattice_points,) * 3))
    return paint(mesh, seed) if mesh is not None else random_part(seed + 1_000_003, lattice_points)


def _box(p: Floats, middle: Floats, half: Floats) -> Floats:
    over = np.abs(p - middle) - half
    outer = np.linalg.norm(np.maximum(over, 0), axis=1)
    return np.asarray(outer + np.minimum(over.max(axis=1), 0))


def _rod(p: Floats, start: Floats, end: Floats, radius: float) -> Floats:
    along = end - start
    share = ((p - start) @ along / max(float(along @ along), 1e-9)).clip(0, 1)
    return np.asarray(np.linalg.norm(p - start - share[:, None] * along, axis=1) - radius)


def _drilled(field: Floats, p: Floats, axis: int, rng: np.random.Generator) -> Floats:
    """With holes through it along an axis."""
    across = [a for a in range(3) if a != axis]
    for _ in range(rng.integers(MOST_HOLES + 1)):
        middle, radius = rng.uniform(-0.7, 0.7, 2), rng.uniform(0.04, 0.2)
        field = np.maximum(field, radius - np.linalg.norm(p[:, across] - middle, axis=1))
    return field


def _plate(p: Floats, rng: np.random.Generator) -> Floats:
    half = np.array([0.9, rng.uniform(0.3, 0.9), rng.uniform(*THICKNESS)])
    if rng.random() < 0.3:  # round
        field = np.maximum(np.linalg.norm(p[:, :2], axis=1) - 0.9, np.abs(p[:, 2]) - half[2])
    else:
        field = _box(p, np.zeros(3), half)
    return _drilled(field, p, 2, rng)


def _channel(p: Floats, rng: np.random.Generator) -> Floats:
    """Plates at right angles: L, U, Z, I or T in section."""
    thick, wide, high = rng.uniform(*THICKNESS), rng.uniform(0.25, 0.9), rng.uniform(0.15, 0.7)
    long = rng.uniform(0.3, 0.9)
    field = _drilled(_box(p, np.zeros(3), np.array([long, wide, thick])), p, 2, rng)
    for side in rng.choice([-1, 1], rng.integers(1, 3)) * rng.choice([1.0, 1.0, 0.0], 1):
        up = rng.choice([-1, 1]) * (high - thick)
        wall = np.array([long, thick, high])
        field = np.minimum(field, _box(p, np.array([0, side * (wide - thick), up]), wall))
    return _drilled(field, p, 1, rng) if rng.random() < 0.5 else field


def _tray(p: Floats, rng: np.random.Generator) -> Floats:
    """A box without a lid, or a closed hollow one with a window."""
    half, thick = rng.uniform(0.25, 0.9, 3), 2 * rng.uniform(*THICKNESS)
    lift = np.array([0, 0, thick if rng.random() < 0.7 else 0.0])
    hollow = _box(p, lift, half - thick + lift * 2)
    field = np.maximum(_box(p, np.zeros(3), half), -hollow)
    return _drilled(field, p, int(rng.integers(3)), rng)


def _tube(p: Floats, rng: np.random.Generator) -> Floats:
    around = np.linalg.norm(p[:, :2], axis=1)
    radius, thick = rng.uniform(0.15, 0.85), rng.uniform(*THICKNESS)
    long = rng.uniform(0.05, 0.9)
    field = np.maximum(np.abs(around - radius) - thick, np.abs(p[:, 2]) - long)
    if rng.random() < 0.5:  # a flange or a floor
        wide = radius + rng.uniform(-0.1, 0.3)
        floor = np.maximum(around - wide, np.abs(p[:, 2] + long) - thick)
        field = np.minimum(field, floor)
    return _drilled(field, p, int(rng.integers(3)), rng)


def _frame(p: Floats, rng: np.random.Generator) -> Floats:
    """Rods from joint to joint."""
    joints = rng.uniform(-0.8, 0.8, (rng.integers(3, 8), 3)) * rng.choice([1.0, 0.3], 3)
    radius = rng.uniform(0.025, 0.08)
    field = np.full(len(p), 1e3)
    for start, end in zip(joints, np.roll(joints, 1, axis=0), strict=True):
        field = np.minimum(field, _rod(p, start, end, radius))
    return field


def _wheel(p: Floats, rng: np.random.Generator) -> Floats:
    """A rim, a hub and spokes; or a gear."""
    around, angle = np.linalg.norm(p[:, :2], axis=1), np.arctan2(p[:, 1], p[:, 0])
    teeth, thick = int(rng.integers(5, 24)), rng.uniform(0.03, 0.25)
    hole = rng.uniform(0.05, 0.3)
    if rng.random() < 0.5:
        edge = 0.8 + 0.07 * np.tanh(3 * np.sin(teeth * angle))
        flat = np.maximum(np.maximum(around - edge, hole - around), np.abs(p[:, 2]) - thick)
        return np.asarray(flat)
    rim = np.linalg.norm(np.stack([around - 0.8, p[:, 2]], axis=1), axis=1) - thick / 2
    hub = np.maximum(np.abs(around - hole) - 0.05, np.abs(p[:, 2]) - thick)
    field = np.minimum(rim, hub)
    for turn in np.arange(teeth // 2 + 2) * (2 * np.pi / (teeth // 2 + 2)):
        way = np.array([np.cos(turn), np.sin(turn), 0.0])
        field = np.minimum(field, _rod(p, hole * way, 0.8 * way, rng.uniform(0.02, 0.04)))
    return np.asarray(field)


KINDS: tuple[Callable[[Floats, np.random.Generator], Floats], ...] = (
    _plate, _channel, _tray, _tube, _frame, _wheel,
)  # fmt: skip
