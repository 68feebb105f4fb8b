"""Rays through triangles: with open3d, or with trimesh where that is not there.

Shape suffixes: M rays or points, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shapes.extras import load_mesh_package, load_open3d
from shapes.mesh import Floats, Ints


@dataclass(frozen=True)
class Hits:
    """Where rays first meet a surface.

    Attributes:
        distance: [M], infinite where nothing is met.
        face: [M] faces, -1 where nothing is met.
        weights: [M, 3] barycentric weights of the corners.
    """

    distance: Floats
    face: Ints
    weights: Floats


class Scene:
    """Triangles that rays can be shot at.

    Args:
        vertices: [V, 3], of about unit size.
        faces: [F, 3].
    """

    def __init__(self, vertices: Floats, faces: Ints) -> None:
        self.vertices, self.faces = vertices, faces
        corners = vertices[faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.areas = np.linalg.norm(cross, axis=1) / 2
        self.normals = cross / np.maximum(2 * self.areas, 1e-300)[:, None]
        self._scene: Any = None
        try:
            open3d = load_open3d()
        except ImportError:
            trimesh = load_mesh_package("trimesh")
            self._mesh = trimesh.Trimesh(vertices, faces, process=False)
        else:
            self._scene = open3d.t.geometry.RaycastingScene()
            self._scene.add_triangles(vertices.astype(np.float32), faces.astype(np.uint32))

    def crossings(self, origins: Floats, direction: Floats) -> Ints:
        """[M] outward minus inward crossings of rays of one direction.

        For a closed surface that is how often it surrounds each origin.
        """
        ray, face, _ = self._intersections(origins, direction)
        sign = np.sign(self.normals[face] @ direction)
        return np.asarray(np.bincount(ray, sign, minlength=len(origins)), np.int64)

    def columns(self, origins: Floats, axis: int, places: Floats) -> NDArray[np.bool_]:
        """[M, N] whether a closed surface surrounds each of N increasing places of M columns.

        Args:
            origins: [M, 3] below all places.
            axis: Along which the columns run.
            places: [N] coordinates on that axis.
        """
        ray, face, distance = self._intersections(origins, np.eye(3)[axis])
        below = np.searchsorted(places, origins[ray, axis] + distance)
        width = len(places) + 1
        sign = np.sign(self.normals[face, axis])
        crossed = np.bincount(ray * width + below, sign, minlength=len(origins) * width)
        later = crossed.reshape(-1, width)[:, ::-1].cumsum(axis=1)[:, ::-1]
        return np.asarray(later[:, 1:] > 0.5)

    def _intersections(self, origins: Floats, direction: Floats) -> tuple[Ints, Ints, Floats]:
        """Ray, face and distance of everything that rays of one direction meet."""
        if self._scene is not None:
            found = self._scene.list_intersections(_rays(origins, direction))
            ray, face = (found[k].numpy().astype(np.int64) for k in ("ray_ids", "primitive_ids"))
            return ray, face, found["t_hit"].numpy().astype(np.float64)
        directions = np.broadcast_to(direction, origins.shape)
        points, ray, face = self._mesh.ray.intersects_location(origins, directions)
        return ray, face, (points - origins[ray]) @ direction

    def first_hits(self, origins: Floats, directions: Floats) -> Hits:
        """What each ray of unit direction meets first."""
        if self._scene is not None:
            found = self._scene.cast_rays(_rays(origins, directions))
            distance = found["t_hit"].numpy().astype(np.float64)
            face = found["primitive_ids"].numpy().astype(np.int64)
            uv = found["primitive_uvs"].numpy().astype(np.float64)
            met = np.isfinite(distance)
            weights = np.stack([1 - uv.sum(axis=1), uv[:, 0], uv[:, 1]], axis=1)
            return Hits(distance, np.where(met, face, -1), weights)
        points, ray, face_of = self._mesh.ray.intersects_location(
            origins, directions, multiple_hits=False
        )
        many = len(origins)
        hits = Hits(np.full(many, np.inf), np.full(many, -1, np.int64), np.zeros((many, 3)))
        hits.distance[ray] = np.linalg.norm(points - origins[ray], axis=1)
        hits.face[ray] = face_of
        triangles = load_mesh_package("trimesh.triangles")
        hits.weights[ray] = triangles.points_to_barycentric(
            self.vertices[self.faces[face_of]], points
        )
        return hits


def _rays(origins: Floats, directions: Floats) -> NDArray[np.float32]:
    directions = np.broadcast_to(directions, origins.shape)
    return np.concatenate([origins, directions], axis=1).astype(np.float32)
