"""Meshes and point clouds: what they are made of, and their files.

Shape suffixes: V vertices, F faces, M points.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shapes.extras import ShapesError, load_mesh_package

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb", ".gltf")
POINT_SUFFIXES = (".xyz", ".npz")
WRITTEN = (".ply", ".obj", ".stl", ".glb")
STAND_IN = 100  # grey level of trimesh's own picture
MAX_FACES = 20_000_000


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture on a mesh.

    Attributes:
        uv: [F, 3, 2] place of each corner of each face, from the lower left.
        image: [H, W, 3] colours.
    """

    uv: Floats
    image: Bytes


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface of triangles, or a cloud of points where there are no faces.

    Attributes:
        vertices: [V, 3] in the coordinates of the file.
        faces: [F, 3] corners of each triangle, anticlockwise from outside; F may be 0.
        colors: [V, 3] red, green, blue of each vertex, or None.
        normals: [V, 3] outward directions of a cloud's points, or None.
        texture: Colours of a mesh by a picture, or None.
    """

    vertices: Floats
    faces: Ints = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    colors: Bytes | None = None
    normals: Floats | None = None
    texture: Texture | None = None

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or not len(self.vertices):
            raise ShapesError(f"vertices are {self.vertices.shape}; expected [V, 3], V at least 1")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ShapesError(f"faces are {self.faces.shape}; expected triangles [F, 3]")
        if len(self.faces) and not (
            0 <= self.faces.min() and self.faces.max() < len(self.vertices)
        ):
            raise ShapesError(
                f"faces name vertices {self.faces.min()} to {self.faces.max()} of "
                f"{len(self.vertices)}; the file is damaged, export it again"
            )

    @property
    def is_cloud(self) -> bool:
        """Whether there are points only."""
        return not len(self.faces)

    @property
    def has_colors(self) -> bool:
        """Whether the surface has colours."""
        return self.colors is not None or self.texture is not None


def read(path: str | os.PathLike[str]) -> Mesh:
    """Read a mesh (ply, obj, stl, off, glb, gltf) or points (ply, xyz, npz).

    An xyz file has lines of x y z, or x y z and a normal, or x y z, a normal and colours from 0 to
    255; an npz file has `points` and may have `normals` and `colors`.

    Raises:
        ShapesError: The file is missing, damaged, empty or of another kind.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*MESH_SUFFIXES, *POINT_SUFFIXES):
        kinds = " ".join((*MESH_SUFFIXES, *POINT_SUFFIXES))
        raise ShapesError(f"{path} is no 3D file that can be read; expected one of {kinds}")
    try:
        if not path.is_file():
            raise ShapesError(f"{path} does not exist; check the name")
        mesh = {".xyz": _read_xyz, ".npz": _read_npz}.get(suffix, _read_mesh)(path)
    except ShapesError as error:
        text = str(error)
        raise ShapesError(text if str(path) in text else f"{path}: {text}") from error
    except MemoryError:
        raise
    except Exception as error:  # the readers of ten formats fail in as many ways
        raise ShapesError(
            f"{path} cannot be read ({type(error).__name__}: {str(error)[:120]}); it is damaged or "
            "of another format, export it again"
        ) from error
    return _finite(path, mesh)


def _finite(path: Path, mesh: Mesh) -> Mesh:
    """The mesh without what cannot be drawn; refuses one without extent."""
    fit: NDArray[np.bool_] = np.isfinite(mesh.vertices) & (np.abs(mesh.vertices) < 1e30)
    good_V = np.asarray(fit.all(axis=1))
    keep_F = np.asarray(good_V[mesh.faces].all(axis=1))
    used = mesh.vertices[mesh.faces[keep_F].ravel()] if len(mesh.faces) else mesh.vertices[good_V]
    side = np.ptp(used, axis=0).max() if len(used) else 0.0
    if not side > 1e-30:
        raise ShapesError(
            f"{path} has no extent: its {len(mesh.vertices)} vertices lie in one point (a Draco "
            "file needs to be decoded first) or are not finite"
        )
    if good_V.all():
        return mesh
    texture = mesh.texture and Texture(mesh.texture.uv[keep_F], mesh.texture.image)
    if mesh.is_cloud:
        return Mesh(
            mesh.vertices[good_V],
            colors=None if mesh.colors is None else mesh.colors[good_V],
            normals=None if mesh.normals is None else mesh.normals[good_V],
        )
    vertices = np.where(good_V[:, None], mesh.vertices, used[0])
    return Mesh(vertices, mesh.faces[keep_F], mesh.colors, None, texture)


def _read_mesh(path: Path) -> Mesh:
    trimesh = load_mesh_package("trimesh")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = trimesh.load_scene(str(path), process=False)
        parts = [part for part in loaded.dump() if len(getattr(part, "vertices", ()))]
    meshes = [_of_trimesh(part) for part in parts if len(getattr(part, "faces", ()))]
    clouds = [_of_cloud(part) for part in parts if not len(getattr(part, "faces", ()))]
    if not meshes and not clouds:
        raise ShapesError("holds no triangles and no points; export it again")
    mesh = join(meshes or clouds)
    if len(mesh.faces) > MAX_FACES:
        raise ShapesError(f"has {len(mesh.faces)} faces; at most {MAX_FACES} are read")
    return mesh


def _of_trimesh(part: Any) -> Mesh:
    """One part of a scene, with its colours."""
    vertices, faces = np.asarray(part.vertices, np.float64), np.asarray(part.faces, np.int64)
    visual = part.visual
    if visual.kind == "texture" and getattr(visual, "uv", None) is not None:
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None and not _is_stand_in(image):
            uv = np.asarray(visual.uv, np.float64)[faces]
            pixels = np.asarray(image.convert("RGB"))
            tint = getattr(material, "baseColorFactor", None)
            if tint is not None:
                pixels = (pixels * (np.asarray(tint)[:3] / 255)).astype(np.uint8)
            return Mesh(vertices, faces, texture=Texture(uv, pixels))
    if visual.kind == "face":
        return Mesh(
            vertices[faces.ravel()],
            np.arange(faces.size).reshape(-1, 3),
            np.repeat(np.asarray(visual.face_colors)[:, :3], 3, axis=0),
        )
    if visual.kind == "vertex":
        return Mesh(vertices, faces, np.array(visual.vertex_colors)[:, :3])
    color = getattr(getattr(visual, "material", None), "main_color", None)
    given = visual.kind == "texture" and color is not None and not np.ptp(color[:3]) == 0
    colors = np.tile(np.asarray(color)[:3].astype(np.uint8), (len(vertices), 1)) if given else None
    return Mesh(vertices, faces, colors)


def _is_stand_in(image: Any) -> bool:
    """Whether a picture is the grey one that trimesh puts in for a missing file."""
    return image.size == (2, 2) and not (np.asarray(image.convert("RGB")) != STAND_IN).any()


def _of_cloud(part: Any) -> Mesh:
    vertices = np.asarray(part.vertices, np.float64)
    colors = np.asarray(getattr(part, "colors", ()))
    raw = part.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    normals = None
    if raw is not None and {"nx", "ny", "nz"} <= set(raw.dtype.names or ()):
        normals = np.stack([raw[name].ravel() for name in ("nx", "ny", "nz")], axis=1)
    return Mesh(
        vertices,
        colors=colors[:, :3].astype(np.uint8) if len(colors) == len(vertices) else None,
        normals=None if normals is None else normals.astype(np.float64),
    )


def _read_xyz(path: Path) -> Mesh:
    table = np.loadtxt(path, comments="#", ndmin=2)
    if table.shape[1] not in (3, 6, 9) or not len(table):
        raise ShapesError(f"has {table.shape[1]} numbers in a line; expected 3, 6 or 9")
    normals = table[:, 3:6] if table.shape[1] > 3 else None
    colors = table[:, 6:].clip(0, 255).astype(np.uint8) if table.shape[1] > 6 else None
    return Mesh(table[:, :3], colors=colors, normals=normals)


def _read_npz(path: Path) -> Mesh:
    with np.load(path, allow_pickle=False) as arrays:
        if "points" not in arrays:
            raise ShapesError(f"holds {sorted(arrays)}; expected an array 'points' [M, 3]")
        points = np.asarray(arrays["points"], np.float64)
        extra = {name: arrays[name] for name in ("normals", "colors") if name in arrays}
    for name, values in extra.items():
        if values.shape != points.shape:
            raise ShapesError(f"has {name} {values.shape} for points {points.shape}; make them one")
    colors = extra.get("colors")
    if colors is not None and colors.dtype != np.uint8:
        raise ShapesError(f"has colors of {colors.dtype}; expected uint8 from 0 to 255")
    normals = extra.get("normals")
    return Mesh(
        points, colors=colors, normals=None if normals is None else normals.astype(np.float64)
    )


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh of several; where only some have colours, the others are grey.

    Several textures become colours of corners, since one picture could not hold them.
    """
    if len(meshes) == 1:
        return meshes[0]
    if any(mesh.has_colors for mesh in meshes):
        meshes = [with_vertex_colors(mesh) for mesh in meshes]
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    colors = [mesh.colors for mesh in meshes if mesh.colors is not None]
    normals = [mesh.normals for mesh in meshes if mesh.normals is not None]
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=False)]),
        np.concatenate(colors) if colors else None,
        np.concatenate(normals) if len(normals) == len(meshes) else None,
    )


def with_vertex_colors(mesh: Mesh) -> Mesh:
    """The same mesh with colours at its vertices, grey where it has none; no texture."""
    if mesh.texture is not None:
        corners = mesh.faces.ravel()
        colors = look_up(mesh.texture.image, mesh.texture.uv.reshape(-1, 2))
        faces = np.arange(corners.size).reshape(-1, 3)
        return Mesh(mesh.vertices[corners], faces, colors)
    if mesh.colors is not None:
        return mesh
    grey = np.full((len(mesh.vertices), 3), 128, np.uint8)
    return Mesh(mesh.vertices, mesh.faces, grey, mesh.normals)


def look_up(image: Bytes, uv_M2: Floats) -> Bytes:
    """[M, 3] colours of a picture, which repeats, at [M, 2] places from its lower left."""
    height, width = image.shape[:2]
    u, v = (uv_M2 % 1.0).T
    column = np.minimum((u * width).astype(np.int64), width - 1)
    row = np.minimum(((1 - v) * height).astype(np.int64), height - 1)
    colors: Bytes = image[row, column]
    return colors


def write(path: str | os.PathLike[str], mesh: Mesh) -> None:
    """Write ply, obj, stl (without colours) or glb, whole or not at all.

    Raises:
        ShapesError: The name ends otherwise.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITTEN:
        raise ShapesError(f"{path} cannot be written; choose one of {' '.join(WRITTEN)}")
    trimesh = load_mesh_package("trimesh")
    if mesh.texture is not None:
        mesh = with_vertex_colors(mesh)
    part = (
        trimesh.PointCloud(mesh.vertices, mesh.colors)
        if mesh.is_cloud
        else trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colors, process=False)
    )
    data = part.export(file_type=suffix[1:])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
