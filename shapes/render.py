"""Pictures of shapes without a screen: rays and simple shading, the same on every machine.

Shape suffixes: V views, H and W pixels, M rays, A axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shapes.mesh import Bytes, Floats, Mesh
from shapes.rays import Scene
from shapes.sample import colors_at

Pixels = NDArray[np.uint8]
ELEVATION = 20.0  # degrees above the horizon that the turntable is seen from
FIELD = 40.0  # degrees of the picture
DISTANCE = 3.9  # of the eye from the middle of the box from -1 to 1, which then fits
LIGHT = 0.35  # of a surface that is seen edge-on


@dataclass(frozen=True)
class Camera:
    """A view of the box from -1 to 1.

    Attributes:
        eye: [3] where it is.
        right: [3] direction of the picture's rows.
        up: [3] against the direction of its columns.
        ahead: [3] direction it looks in.
    """

    eye: Floats
    right: Floats
    up: Floats
    ahead: Floats

    def rays(self, size: int, corner: bool = False) -> Floats:
        """[H * W, 3] unit directions through middles or upper left corners of pixels, by rows."""
        place = (np.arange(size) + (0 if corner else 0.5)) / size * 2 - 1
        down, across = np.meshgrid(place, place, indexing="ij")
        reach = np.tan(np.radians(FIELD / 2))
        rays = self.ahead + reach * (across[..., None] * self.right - down[..., None] * self.up)
        rays = rays.reshape(-1, 3)
        return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def camera_at(direction: Floats) -> Camera:
    """A camera in a direction [3] of unit length from the middle; the y axis points up."""
    ahead = -direction
    right = np.cross(ahead, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    return Camera(DISTANCE * direction, right, np.cross(right, ahead), ahead)


def turntable(views: int) -> list[Camera]:
    """Cameras on a circle around the y axis."""
    tilt = np.radians(ELEVATION)
    angles = np.arange(views) * 2 * np.pi / views
    flat = np.cos(tilt)
    return [camera_at(np.array([flat * np.sin(a), np.sin(tilt), flat * np.cos(a)])) for a in angles]


def render(mesh: Mesh, views: int = 4, size: int = 256) -> Pixels:
    """[V, H, W, 3] pictures on white of a shape that lies in the box from -1 to 1."""
    if mesh.is_cloud:
        return np.stack([_points(mesh, camera, size) for camera in turntable(views)])
    scene = Scene(mesh.vertices, mesh.faces)
    return np.stack([_surface(mesh, scene, camera, size) for camera in turntable(views)])


def _surface(mesh: Mesh, scene: Scene, camera: Camera, size: int) -> Pixels:
    rays = camera.rays(size)
    hits = scene.first_hits(np.broadcast_to(camera.eye, rays.shape), rays)
    met = np.flatnonzero(hits.face >= 0)
    face = hits.face[met]
    facing = np.abs(np.einsum("ma,ma->m", scene.normals[face], rays[met]))
    picture = np.full((size * size, 3), 255, np.uint8)
    picture[met] = _shade(colors_at(mesh, face, hits.weights[met]), facing)
    return picture.reshape(size, size, 3)


def _points(mesh: Mesh, camera: Camera, size: int) -> Pixels:
    """A cloud as squares of a few pixels, near ones over far ones."""
    seen = mesh.vertices - camera.eye
    depth = seen @ camera.ahead
    reach = depth * np.tan(np.radians(FIELD / 2))
    column, row = (seen @ camera.right) / reach, -(seen @ camera.up) / reach
    place = (np.stack([row, column], axis=1) + 1) / 2 * size
    colors = np.full((len(depth), 3), 128, np.uint8) if mesh.colors is None else mesh.colors
    shaded = _shade(colors, 1 - (depth - DISTANCE + 1).clip(0, 2) / 2)
    picture = np.full((size, size, 3), 255, np.uint8)
    order = np.argsort(-depth)
    for step in np.ndindex(2, 2):
        at = (place[order] + step).astype(np.int64).clip(0, size - 1)
        picture[at[:, 0], at[:, 1]] = shaded[order]
    return picture


def _shade(colors: Bytes, facing: Floats) -> Bytes:
    bright = LIGHT + (1 - LIGHT) * facing
    return np.asarray(np.rint(colors * bright[:, None]), np.uint8)
