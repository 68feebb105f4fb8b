"""From triangles as files have them to a surface whose inside can be told.

Shape suffixes: V vertices, F faces, E directed edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shapes.extras import load_mesh_package
from shapes.mesh import Floats, Ints, Mesh

WELD = 1e-6  # of the longest side: vertices closer than this are one


@dataclass(frozen=True, eq=False)
class Solid:
    """The welded triangles of a mesh, turned the same way round.

    Attributes:
        vertices: [V, 3].
        faces: [F, 3] without degenerate or repeated ones.
        source: [F] which face of the mesh each one was.
        flipped: [F] whether it runs the other way round than there.
        closed: Whether every edge is run through as often one way as the other, so that every
            point is inside a whole number of times.
        notes: A sentence for everything that was repaired.
    """

    vertices: Floats
    faces: Ints
    source: Ints
    flipped: NDArray[np.bool_]
    closed: bool
    notes: tuple[str, ...]

    @property
    def triangles(self) -> Floats:
        """[F, 3, 3] corners."""
        return self.vertices[self.faces]


def repair(mesh: Mesh) -> Solid:
    """Weld, drop what has no area or is there twice, and turn all faces outwards.

    Faces that share an edge are made to run the same way round where their surface allows it, then
    parts that are inside out are turned, except those that bound a cavity of another part.
    """
    notes = []
    vertices, faces = _weld(mesh)
    source = np.arange(len(faces))
    keep = _sound(vertices, faces)
    if not keep.all():
        notes.append(f"{(~keep).sum()} faces without area or there twice were left out")
        faces, source = faces[keep], source[keep]
    flipped = np.zeros(len(faces), bool)
    if not _balanced(faces):
        turned = _consistent(faces)
        if turned.any() and _open_edges(_flip(faces, turned)) < _open_edges(faces):
            faces, flipped = _flip(faces, turned), turned
            notes.append(f"{turned.sum()} faces ran the other way round than their neighbours")
    outward = _outward(vertices, faces)
    if outward.any():
        faces, flipped = _flip(faces, outward), flipped ^ outward
        notes.append(f"{outward.sum()} faces looked inwards and were turned")
    closed = _balanced(faces)
    if not closed:
        notes.append(f"not closed: {_open_edges(faces)} edges have a face on one side only")
    return Solid(vertices, faces, source, flipped, closed, tuple(notes))


def _weld(mesh: Mesh) -> tuple[Floats, Ints]:
    """Vertices that lie in one place become one."""
    low = mesh.vertices.min(axis=0)
    step = max(np.ptp(mesh.vertices, axis=0).max() * WELD, 1e-300)
    cells = np.rint((mesh.vertices - low) / step).astype(np.int64)
    key = (cells[:, 0] << 42) ^ (cells[:, 1] << 21) ^ cells[:, 2]  # each below 2 ** 21
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return mesh.vertices[first], inverse.reshape(-1)[mesh.faces]


def _sound(vertices: Floats, faces: Ints) -> NDArray[np.bool_]:
    """[F] whether a face has three corners and is the only one with them.

    A face may have a twin that runs the other way round, unless most do: then the surface was
    written double-sided.
    """
    a, b, c = faces.T
    keep: NDArray[np.bool_] = (a != b) & (b != c) & (c != a)
    sided = faces[
        np.arange(len(faces))[:, None], (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3
    ]
    once = _first_of(sided)
    either = _first_of(np.sort(faces, axis=1))
    return keep & (either if either.sum() < 0.75 * once.sum() else once)


def _first_of(rows: Ints) -> NDArray[np.bool_]:
    """[F] whether a row of three numbers below 2 ** 32 is the first of those equal to it."""
    order = np.lexsort(rows.T)
    new = np.ones(len(rows), bool)
    new[order[1:]] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    return new


def _edges(faces: Ints) -> tuple[Ints, Ints]:
    """[E] undirected edge numbers and directions (+1 or -1); edges of a face follow each other."""
    pairs = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    _, edge = np.unique((low << 32) | high, return_inverse=True)
    return edge.reshape(-1), np.where(pairs[:, 0] < pairs[:, 1], 1, -1)


def _balance(faces: Ints) -> Ints:
    edge, direction = _edges(faces)
    return np.bincount(edge, direction).astype(np.int64)


def _balanced(faces: Ints) -> bool:
    return bool(len(faces)) and not _balance(faces).any()


def _open_edges(faces: Ints) -> int:
    return int(np.count_nonzero(_balance(faces)))


def _flip(faces: Ints, turned: NDArray[np.bool_]) -> Ints:
    return np.where(turned[:, None], faces[:, ::-1], faces)


def _neighbours(faces: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Pairs of faces at edges that two faces share, and whether they run opposite ways there."""
    edge, direction = _edges(faces)
    order = np.argsort(edge, kind="stable")
    starts = np.flatnonzero(np.diff(edge[order], prepend=-1))
    double = starts[np.diff(starts, append=len(order)) == 2]
    one, two = order[double], order[double + 1]
    return np.stack([one // 3, two // 3], axis=1), direction[one] != direction[two]


def _consistent(faces: Ints) -> NDArray[np.bool_]:
    """[F] which faces to turn, so that neighbours run the same way round along a spanning tree."""
    sparse = load_mesh_package("scipy.sparse")
    graph = load_mesh_package("scipy.sparse.csgraph")
    pairs, agrees = _neighbours(faces)
    many = len(faces)
    # a doubled cover: each face as it is and turned; neighbours are joined where they agree
    one = np.concatenate([pairs[:, 0], pairs[:, 0] + many])
    two = np.where(agrees, pairs[:, 1], pairs[:, 1] + many)
    two = np.concatenate([two, np.where(agrees, pairs[:, 1] + many, pairs[:, 1])])
    links = sparse.coo_matrix((np.ones(len(one), np.int8), (one, two)), (2 * many, 2 * many))
    _, label = graph.connected_components(links, directed=False)
    # of each surface, the copy that turns fewer faces; of a one-sided one both are the same
    kept, turned = label[:many], label[many:]
    size = np.bincount(kept, minlength=label.max() + 1)
    prefers = (size[turned] > size[kept]) | ((size[turned] == size[kept]) & (turned < kept))
    result: NDArray[np.bool_] = prefers
    return result


def _outward(vertices: Floats, faces: Ints) -> NDArray[np.bool_]:
    """[F] which faces belong to a part that is inside out and no cavity of another part."""
    sparse = load_mesh_package("scipy.sparse")
    graph = load_mesh_package("scipy.sparse.csgraph")
    pairs, _ = _neighbours(faces)
    links = sparse.coo_matrix((np.ones(len(pairs), np.int8), pairs.T), (len(faces),) * 2)
    count, part = graph.connected_components(links, directed=False)
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    a, b, c = (vertices[faces] - middle).transpose(1, 0, 2)
    volume = np.einsum("fi,fi->f", a, np.cross(b, c)) / 6
    inward = np.bincount(part, volume, minlength=count) < 0
    if not inward.any() or count == 1:
        return np.asarray(inward[part])
    low, high = (_by_part(fold, vertices[faces], part, count) for fold in (np.minimum, np.maximum))
    for number in np.flatnonzero(inward).tolist():
        around = ((low <= low[number]) & (high >= high[number])).all(axis=1) & ~inward
        if around.any() and _winding_around(vertices, faces, part, number, around) > 0.5:
            inward[number] = False
    return np.asarray(inward[part])


def _by_part(fold: np.ufunc, corners: Floats, part: Ints, count: int) -> Floats:
    """[parts, 3] least or largest coordinates of the corners of each part."""
    result = np.full((count, 3), np.inf if fold is np.minimum else -np.inf)
    for corner in range(3):
        fold.at(result, part, corners[:, corner])
    return result


def _winding_around(
    vertices: Floats, faces: Ints, part: Ints, number: int, around: NDArray[np.bool_]
) -> float:
    """How often the parts `around` surround part `number`."""
    point = vertices[faces[np.flatnonzero(part == number)[0], 0]]
    return float(winding_numbers(vertices[faces[around[part]]], point[None])[0])


def winding_numbers(triangles: Floats, points: Floats) -> Floats:
    """[M] how often closed or open triangles surround points; exact, M times F work.

    Source: Jacobson et al. 2013, doi:10.1145/2461912.2461916; solid angles of van Oosterom and
    Strackee 1983.

    Args:
        triangles: [F, 3, 3] corners.
        points: [M, 3].
    """
    total = np.zeros(len(points))
    step = max(1, 4_000_000 // max(1, len(points)))
    for start in range(0, len(triangles), step):
        corners = triangles[start : start + step, :, None] - points  # [F, 3, M, 3]
        a, b, c = corners.transpose(1, 0, 2, 3)
        la, lb, lc = np.linalg.norm(corners, axis=-1).transpose(1, 0, 2)
        dots = [np.einsum("fmi,fmi->fm", x, y) for x, y in ((a, b), (b, c), (c, a))]
        up = np.einsum("fmi,fmi->fm", a, np.cross(b, c))
        down = la * lb * lc + dots[0] * lc + dots[1] * la + dots[2] * lb
        total += np.arctan2(up, down).sum(axis=0) / (2 * np.pi)
    return total
