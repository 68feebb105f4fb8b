"""Posed views with depth to voxels that carry a patch of pixels each.

Shape suffixes: V views, H and W pixels, C colours, P values of a patch, M points, N voxels, A axes.

Source: Lu et al. 2025 (AToken), arXiv:2509.14476, and its published packing script.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
MAX_POINTS = 500_000


def voxels_of_views(
    pixels_VHWC: NDArray[np.uint8],
    depth_VHW: Floats,
    to_camera: Floats,
    intrinsics: Floats,
    *,
    resolution: int = 64,
    radius: float = 0.5,
    patch: int = 16,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Voxels that hold a point of a surface, each with the patch of its nearest view.

    Occlusion and the edges of views play no part in the choice of a view.

    Args:
        pixels_VHWC: Square views on black.
        depth_VHW: Distance along the view's axis, of any size; negative where there is nothing.
        to_camera: [V, 4, 4] world to camera, x right, y down, z forward.
        intrinsics: [V, 3, 3] in units of the view's side.
        resolution: Voxels on a side of the box.
        radius: Half the side of the box around the origin.
        patch: Side of a patch in pixels.
        seed: Of the choice among more than MAX_POINTS points.

    Returns:
        [N, 3] voxels in the order of (x, y, z), and [N, P] patches in the order (row, column,
        colour), zero where no view shows the voxel's centre.

    Raises:
        ValueError: The arrays do not describe the same number of square views of whole patches.
    """
    views, height, width = pixels_VHWC.shape[:3]
    if height != width or height % patch or len(depth_VHW) != views:
        raise ValueError(
            f"got {views} views of {height}x{width} pixels and {len(depth_VHW)} depth maps; "
            f"expected as many of each, square and of whole {patch}x{patch} patches"
        )
    world = _back_project(depth_VHW, to_camera, intrinsics)
    if len(world) > MAX_POINTS:
        world = np.random.default_rng(seed).permutation(world)[:MAX_POINTS]
    cells = np.floor((world + radius) / (2 * radius) * resolution).astype(np.int64)
    cells = np.unique(cells[((cells >= 0) & (cells < resolution)).all(axis=1)], axis=0)
    centres = ((cells + 0.5) / resolution * 2 - 1) * radius
    seen_VNA = np.einsum("vab,nb->vna", to_camera[:, :3, :3], centres) + to_camera[:, None, :3, 3]
    image_VNA = np.einsum("vab,vnb->vna", intrinsics, seen_VNA)
    nearest = seen_VNA[..., 2].argmin(axis=0)
    shown = image_VNA[nearest, np.arange(len(cells))]
    side = height // patch
    with np.errstate(divide="ignore", invalid="ignore"):  # a centre in the plane of a camera
        column, row = np.rint(shown[:, :2] / shown[:, 2:] * (side - 1)).T
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    patches = pixels_VHWC.reshape(views, side, patch, side, patch, -1).swapaxes(2, 3)
    values = np.zeros((len(cells), patch * patch * pixels_VHWC.shape[3]), np.uint8)
    place = (nearest[inside], row[inside].astype(np.int64), column[inside].astype(np.int64))
    values[inside] = patches[place].reshape(inside.sum(), -1)
    return cells, values


def _back_project(depth_VHW: Floats, to_camera: Floats, intrinsics: Floats) -> Floats:
    """[M, 3] points of the world at the corners of all pixels that have a depth."""
    view, row, column = np.nonzero(depth_VHW >= 0)
    depth = depth_VHW[view, row, column]
    height, width = depth_VHW.shape[1:]
    image = np.stack([column / width, row / height, np.ones(len(row))], axis=1)
    rays = np.einsum("vab->vba", np.linalg.inv(intrinsics))
    camera = np.einsum("mb,mba->ma", image, rays[view]) * depth[:, None]
    to_world = np.linalg.inv(to_camera)
    turned: Floats = np.einsum("mab,mb->ma", to_world[view, :3, :3], camera)
    return turned + to_world[view, :3, 3]
