"""Shapes with known insides, and a small model that codes them well."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import trimesh

from omnitok.config import PlanesConfig, StackConfig, TokenizerConfig
from omnitok.model import Autoencoder
from omnitok.planes_start import start_planes
from omnitok.quantize.base import QuantizerConfig
from omnitok.tokenizer import Tokenizer
from shapes.datasets import turned
from shapes.extract import lattice, marching_cubes
from shapes.inside import Inside
from shapes.mesh import Mesh
from shapes.raster import rasterize
from shapes.sample import into_box, placement_of, sample_surface
from shapes.solid import repair

PLANES = PlanesConfig(side=8, bins=32, features=8, hidden=16)


def of_trimesh(mesh: trimesh.Trimesh) -> Mesh:
    return Mesh(np.array(mesh.vertices), np.array(mesh.faces))


def box(x: float = 0.8, y: float = 0.4, z: float = 0.2) -> Mesh:
    return of_trimesh(trimesh.creation.box((x, y, z)))


def sphere(level: int = 3) -> Mesh:
    return of_trimesh(trimesh.creation.icosphere(level))


def shoe() -> Mesh:
    """A left shoe of sole, shaft and toe: no turn makes it its mirror image."""
    points = lattice(40).double().numpy()
    boxes = [
        ((-0.4, -0.6, -0.9), (0.2, -0.2, 0.9)),
        ((-0.4, -0.6, -0.9), (0.2, 0.7, -0.1)),
        ((-0.4, -0.6, 0.2), (0.7, -0.2, 0.9)),
    ]
    depth = [np.minimum(points - low, np.array(high) - points).min(axis=1) for low, high in boxes]
    mesh = marching_cubes(np.max(depth, axis=0).reshape(40, 40, 40))
    assert mesh is not None
    return mesh


def mirrored(mesh: Mesh, axis: int = 0) -> Mesh:
    sign = np.ones(3)
    sign[axis] = -1
    return replace(mesh, vertices=mesh.vertices * sign, faces=mesh.faces[:, ::-1])


@cache
def shape_tokenizer(kind: str = "kl") -> Tokenizer:
    """A tokenizer with a 3D stage that starts as the principal components of a few boxes."""
    stack = StackConfig(width=64, heads=1, layers=("local",), mlp_hidden=64)
    quantizer = QuantizerConfig(kind="kl", dim=32)
    if kind == "fsq":
        quantizer = QuantizerConfig(kind="fsq", dim=6, levels=(8, 8, 8, 5, 5, 5))
    torch.manual_seed(0)
    config = TokenizerConfig(
        name=f"small-{kind}", encoder=stack, decoder=stack, quantizer=quantizer, planes=PLANES
    )
    model = Autoencoder(config)
    rasters = []
    for mesh in (box(), shoe(), sphere()):
        mesh = into_box(mesh, placement_of(mesh))
        solid = repair(mesh)
        surface = sample_surface(mesh, solid, 5000)
        raster = rasterize(Inside(solid, surface), surface, PLANES)
        for order in ((0, 1, 2), (2, 0, 1)):
            for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, -1)):
                moved = turned(raster, torch.tensor(order), torch.tensor(signs).float())
                rasters.append(moved.planes()[None])
    start_planes(model, rasters)
    return Tokenizer(model.requires_grad_(False), f"{len(kind):064x}")
