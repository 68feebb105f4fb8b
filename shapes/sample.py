"""Points on and around a shape that lies in the box from -1 to 1.

Shape suffixes: V vertices, F faces, M points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from omnitok.token_facts import Placement
from shapes.extras import ShapesError, load_mesh_package
from shapes.mesh import Bytes, Floats, Ints, Mesh, look_up
from shapes.solid import Solid

MARGIN = 0.95  # of the box: where the longest side of a shape ends
GREY = 128
NEIGHBOURS = 12  # of a point of a cloud, to find its normal and its share of the area
NEAR = ((0.05, 0.5), (0.01, 0.5))  # standard deviation and weight of points near a surface


@dataclass(frozen=True)
class Surface:
    """Points spread evenly over a surface.

    Attributes:
        points: [M, 3].
        normals: [M, 3] of unit length, outwards.
        colors: [M, 3], grey where the shape has none.
        area: Area that a point stands for, [M].
    """

    points: Floats
    normals: Floats
    colors: Bytes
    area: Floats


@dataclass(frozen=True)
class Queries:
    """Points in the box, to be labelled.

    Attributes:
        points: [M, 3].
        weights: [M] of their errors in training.
    """

    points: Floats
    weights: Floats


def placement_of(mesh: Mesh) -> Placement:
    """Where a mesh lies: the middle of its bounding box, and the unit that makes it fit."""
    used = mesh.vertices if mesh.is_cloud else mesh.vertices[mesh.faces.ravel()]
    low, high = used.min(axis=0), used.max(axis=0)
    middle = low / 2 + high / 2
    scale = float((high / 2 - low / 2).max()) / MARGIN
    return Placement(
        scale=scale,
        offset=(float(middle[0]), float(middle[1]), float(middle[2])),
        colors=mesh.has_colors,
    )


def into_box(mesh: Mesh, placement: Placement) -> Mesh:
    """The mesh moved and scaled into the box."""
    return replace(mesh, vertices=(mesh.vertices - placement.offset) / placement.scale)


def out_of_box(mesh: Mesh, placement: Placement) -> Mesh:
    """The inverse of `into_box`."""
    return replace(mesh, vertices=mesh.vertices * placement.scale + placement.offset)


def sample_surface(mesh: Mesh, solid: Solid | None, count: int, seed: int = 0) -> Surface:
    """Points of a mesh, spread by area; of a cloud, its own points.

    Args:
        mesh: In the box.
        solid: Its repaired triangles; None for a cloud.
        count: How many; of a cloud at most.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    if solid is None:
        return _cloud_surface(mesh, count, rng)
    corners = mesh.vertices[mesh.faces[solid.source]]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    size = np.linalg.norm(cross, axis=1)
    if not size.sum() > 0:
        raise ShapesError("its faces have no area; nothing can be done with lines and points")
    # one draw in each of `count` equal shares of the area: more even than free draws
    place = (np.arange(count) + rng.random(count)) / count
    chosen = np.searchsorted(np.cumsum(size) / size.sum(), place).clip(max=len(size) - 1)
    u, v = rng.random((2, count))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    weights = np.stack([1 - u - v, u, v], axis=1)
    sign = np.where(solid.flipped[chosen], -1.0, 1.0) / np.maximum(size[chosen], 1e-300)
    return Surface(
        points=np.einsum("mk,mki->mi", weights, corners[chosen]),
        normals=cross[chosen] * sign[:, None],
        colors=colors_at(mesh, solid.source[chosen], weights),
        area=np.full(count, size.sum() / 2 / count),
    )


def colors_at(mesh: Mesh, face: Ints, weights: Floats) -> Bytes:
    """[M, 3] colours at [M, 3] barycentric weights of [M] faces; grey where there are none."""
    if mesh.texture is not None:
        uv = np.einsum("mk,mki->mi", weights, mesh.texture.uv[face])
        return look_up(mesh.texture.image, uv)
    if mesh.colors is None:
        return np.full((len(face), 3), GREY, np.uint8)
    corners = mesh.colors[mesh.faces[face]].astype(np.float64)
    mixed = np.rint(np.einsum("mk,mki->mi", weights, corners)).clip(0, 255)
    return np.asarray(mixed, np.uint8)


def _cloud_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> Surface:
    """Points of a cloud with normals, estimated where they are missing, and areas."""
    points = mesh.vertices
    chosen = np.arange(len(points))
    if len(points) > count:
        chosen = np.sort(rng.choice(len(points), count, replace=False))
    points = points[chosen]
    if len(points) < 2 * NEIGHBOURS:
        raise ShapesError(
            f"{len(points)} points are too few to tell a surface; give at least {2 * NEIGHBOURS}"
        )
    tree = load_mesh_package("scipy.spatial").cKDTree(points)
    distance, index = tree.query(points, NEIGHBOURS, workers=-1)
    spread = points[index] - points[index].mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(np.einsum("mka,mkb->mab", spread, spread))
    if mesh.normals is not None:
        normals = mesh.normals[chosen]
        normals = normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    else:
        normals = _oriented(points, vectors[:, :, 0], index)
    colors = np.full((len(points), 3), GREY, np.uint8)
    if mesh.colors is not None:
        colors = mesh.colors[chosen]
    area = np.pi * distance[:, -1] ** 2 / NEIGHBOURS
    return Surface(points, normals, colors, area)


def _oriented(points: Floats, normals: Floats, index: Ints) -> Floats:
    """Turn normals outwards: alike along a tree of neighbours, outwards where it is highest.

    Source: Hoppe et al. 1992, doi:10.1145/133994.134011, section 3.3.
    """
    sparse = load_mesh_package("scipy.sparse")
    graph = load_mesh_package("scipy.sparse.csgraph")
    many = len(points)
    one = np.repeat(np.arange(many), index.shape[1])
    two = index.ravel()
    cost = 1 + 1e-6 - np.abs(np.einsum("mi,mi->m", normals[one], normals[two]))
    links = sparse.coo_matrix((cost, (one, two)), (many, many)).tocsr()
    _, part = graph.connected_components(links, directed=False)
    tree = graph.minimum_spanning_tree(links)
    turned = normals.copy()
    for root in _highest(points, part):
        order, before = graph.breadth_first_order(tree, root, directed=False)
        if turned[root, 2] < 0:
            turned[root] *= -1
        for node in order[1:]:
            if turned[node] @ turned[before[node]] < 0:
                turned[node] *= -1
    return turned


def _highest(points: Floats, part: Ints) -> Ints:
    """The highest point of each part."""
    order = np.lexsort([points[:, 2], part])
    last = np.flatnonzero(np.diff(part[order], append=-1))
    return np.asarray(order[last])


def draw_queries(surface: Surface, count: int, seed: int = 0) -> Queries:
    """Half of the points anywhere in the box, a quarter near the surface, a quarter at it."""
    rng = np.random.default_rng(seed)
    near = count // 4
    points = [rng.uniform(-1, 1, (count - near * len(NEAR), 3))]
    weights = [np.ones(len(points[0]))]
    for deviation, weight in NEAR:
        at = surface.points[rng.integers(len(surface.points), size=near)]
        points.append((at + rng.normal(0, deviation, at.shape)).clip(-1, 1))
        weights.append(np.full(near, weight))
    return Queries(np.concatenate(points), np.concatenate(weights))
