"""Coloured meshes for AToken: pictures from all sides, voxels with patches, Gaussian splats.

Shape suffixes: V views, H and W pixels, N voxels, P values of a patch, L latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnitok.interop.atoken_gaussians import GaussianDecoder
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.tokens import Placement
from shapes.extras import ShapesError
from shapes.mesh import Floats, Mesh
from shapes.rays import Scene
from shapes.render import FIELD, Camera, camera_at
from shapes.sample import MARGIN, colors_at, into_box, placement_of
from shapes.splats import Splats
from shapes.voxels import voxels_of_views

SIDE = 256  # pixels of a view
NOTHING = -1.0  # depth where there is no surface
RADIUS = 0.5  # of AToken's box


@dataclass(frozen=True, eq=False)
class Voxels:
    """The surface of a shape as AToken takes it.

    Attributes:
        coords: [N, 4] int64: object (0), x, y, z.
        pixels: [N, P] float32 colours from 0 to 1.
        resolution: Voxels on a side of the box.
        placement: Where the shape lies: AToken's box from -0.5 to 0.5 holds it without a margin.
    """

    coords: Tensor
    pixels: Tensor
    resolution: int
    placement: Placement


def sphere_of_cameras(views: int) -> list[Camera]:
    """Cameras spread evenly around the box, all looking at its middle."""
    number = np.arange(views) + 0.5
    height = 1 - 2 * number / views
    angle = number * np.pi * (1 + 5**0.5)
    across = np.sqrt(1 - height**2)
    places = np.stack([np.sin(angle) * across, height, np.cos(angle) * across], axis=1)
    return [camera_at(place) for place in places]


def voxelise(mesh: Mesh, views: int = 24, resolution: int = 64, patch: int = 16) -> Voxels:
    """Render a mesh from all sides and keep its surface as voxels with patches of colour.

    Args:
        mesh: With faces.
        views: Pictures to take of it.
        resolution: Voxels on a side of the box.
        patch: Side in pixels of what a voxel carries: that of the tokenizer's patches.

    Raises:
        ShapesError: It is a cloud.
    """
    if mesh.is_cloud:
        raise ShapesError("points without faces cannot be rendered for AToken; give a mesh")
    placement = placement_of(mesh)
    placement = replace(placement, scale=2 * MARGIN * placement.scale)  # longest side 1
    mesh = into_box(mesh, placement)
    scene, cameras = Scene(mesh.vertices, mesh.faces), sphere_of_cameras(views)
    shots = [_shoot(mesh, scene, camera) for camera in cameras]
    focus = 0.5 / np.tan(np.radians(FIELD / 2))
    intrinsics = np.array([[focus, 0, 0.5], [0, focus, 0.5], [0, 0, 1]])
    coords, values = voxels_of_views(
        np.stack([colors for colors, _ in shots]),
        np.stack([depth for _, depth in shots]),
        np.stack([_to_camera(camera) for camera in cameras]),
        np.broadcast_to(intrinsics, (views, 3, 3)),
        resolution=resolution,
        radius=RADIUS,
        patch=patch,
    )
    numbered = torch.from_numpy(np.insert(coords, 0, 0, axis=1))
    return Voxels(numbered, torch.from_numpy(values).float() / 255, resolution, placement)


def _shoot(mesh: Mesh, scene: Scene, camera: Camera) -> tuple[NDArray[np.uint8], Floats]:
    """Colours on black and depth along the view's axis; rays pass through pixel corners."""
    rays = camera.rays(SIDE, corner=True)
    # the box has half the size of the one that cameras are placed for
    hits = scene.first_hits(np.broadcast_to(camera.eye * RADIUS, rays.shape), rays)
    met = np.flatnonzero(hits.face >= 0)
    colors = np.zeros((SIDE * SIDE, 3), np.uint8)
    colors[met] = colors_at(mesh, hits.face[met], hits.weights[met])
    depth = np.full(SIDE * SIDE, NOTHING)
    depth[met] = hits.distance[met] * (rays[met] @ camera.ahead)
    return colors.reshape(SIDE, SIDE, 3), depth.reshape(SIDE, SIDE)


def _to_camera(camera: Camera) -> Floats:
    """[4, 4] world to camera: x right, y down, z forward."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([camera.right, -camera.up, camera.ahead])
    matrix[:3, 3] = -matrix[:3, :3] @ (camera.eye * RADIUS)
    return matrix


@torch.no_grad()
def splats_of(tok: ATokenTokenizer, decoder: GaussianDecoder, voxels: Voxels) -> Splats:
    """A shape through AToken and back as Gaussians, in the coordinates of its source."""
    z_NL = tok.encode_voxels(voxels.pixels, voxels.coords)
    if tok.codebook_size is not None:
        z_NL = tok.model.quantizer(z_NL).z_q
    return decode_splats(tok, decoder, z_NL, voxels.coords, voxels.placement)


@torch.no_grad()
def decode_splats(
    tok: ATokenTokenizer,
    decoder: GaussianDecoder,
    z_NL: Tensor,
    coords: Tensor,
    placement: Placement,
) -> Splats:
    """Latents of voxels, after quantization if discrete, to Gaussians where the source lies.

    Raises:
        ShapesError: The decoder is not one for what the tokenizer makes.
    """
    x_NP = tok.decode_voxels(z_NL, coords)
    if x_NP.shape[1] != decoder.config.latent_channels:
        raise ShapesError(
            f"the Gaussian decoder takes voxels of {decoder.config.latent_channels} values, but "
            f"the tokenizer makes {x_NP.shape[1]} of each; use the decoder of the same patches"
        )
    coords = coords.to(x_NP.device)
    (found,) = decoder.gaussians(decoder(x_NP, coords), coords)
    splats = Splats(**found.splats())
    return replace(
        splats,
        xyz=(splats.xyz * placement.scale + placement.offset).astype(np.float32),
        log_scale=(splats.log_scale + np.log(placement.scale)).astype(np.float32),
    )
