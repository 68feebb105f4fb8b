"""The 3D stage in figures: `python -m tools.bench_shapes [quality primitives pixels speed]`.

quality     held-out meshes of the corpus that are closed: IoU, F-score, Chamfer distance, normals,
            beside principal components of occupancy grids with as many numbers
primitives  unions of two primitives, as the reference in the literature note was measured on
pixels      pictures and clips through tiny-kl and through the weights with the 3D stage
speed       a mesh of 100,000 faces through tokenize and decode, labels of 200,000 points, memory
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

import omnitok
import shapes
from omnitok import Tokenizer
from omnitok.tokens import Placement
from omnitok.train.pca import PCA
from shapes.compare import compare_meshes
from shapes.datasets import Prepared
from shapes.extract import best_level, marching_cubes
from shapes.files import encode, look_at, parts_of
from shapes.inside import Inside
from shapes.mesh import Mesh
from shapes.procedural import random_shape
from shapes.raster import Raster
from shapes.sample import into_box, out_of_box, placement_of, sample_surface
from shapes.solid import repair
from tools.bench_figures import HEAD, Figure
from tools.commands.eval_table import table
from tools.train_config import read_config
from tools.train_run import Validator

POINTS = 100_000
THICK = 1 / 32
BLOCK = 8  # cells on a side of a block of the baseline
REFERENCE = 0.757  # IoU of the small raster transformer on unions of two primitives, 1500 steps
SEEDS = range(90_000, 90_048)  # of shapes that no training saw


@dataclass(frozen=True, eq=False)
class Item:
    """A shape to score on.

    Attributes:
        mesh: As its file has it.
        raster: What tokenizers see of it.
        placement: Where it lies.
    """

    mesh: Mesh
    raster: Raster
    placement: Placement


Method = Callable[[Item], Mesh | None]


@dataclass(frozen=True)
class GridPCA:
    """Principal components of 64 x 64 x 64 grids of how much of a cell is inside.

    Attributes:
        pca: Of a whole grid, or of its blocks.
        block: Cells on a side of what it was fitted to.
        rank: Components kept of each.
    """

    pca: PCA
    block: int
    rank: int

    @classmethod
    def fit(cls, grids: list[Tensor], block: int, values: int) -> GridPCA:
        """Fit so that a grid becomes this many values at most."""
        blocks = (len(grids[0]) // block) ** 3
        rank = values // blocks
        if block < len(grids[0]):
            return cls(PCA.fit(_cut(grid, block) for grid in grids), block, rank)
        x = torch.stack([grid.flatten() for grid in grids])  # more cells than grids
        mean = x.mean(dim=0)
        _, std, components = torch.linalg.svd(x - mean, full_matrices=False)
        return cls(PCA(mean, components, std), block, min(rank, len(grids) - 1))

    def reconstruct(self, grid: Tensor) -> Tensor:
        """The grid from its components."""
        side = len(grid) // self.block
        found = self.pca.reconstruct(self.pca.project(_cut(grid, self.block), self.rank))
        pattern = "(x y z) (a b c) -> (x a) (y b) (z c)"
        sizes = {"x": side, "y": side, "a": self.block, "b": self.block}
        return rearrange(found, pattern, **sizes)


def _cut(grid: Tensor, block: int) -> Tensor:
    pattern = "(x a) (y b) (z c) -> (x y z) (a b c)"
    return rearrange(grid, pattern, a=block, b=block, c=block)


def mesh_of_grid(grid: Tensor, share: Tensor) -> Mesh | None:
    """The surface of a grid of cells that fills the box, at the level that fits the shape best."""
    level = torch.tensor(best_level(torch.logit(grid, eps=1e-3), share)).sigmoid()
    mesh = marching_cubes(grid.numpy(), float(level))
    if mesh is None:
        return None
    return replace(mesh, vertices=mesh.vertices * (1 - 1 / len(grid)))  # centres of cells


def model_method(tok: Tokenizer) -> Method:
    """Tokens and back; None where nothing is left."""

    def run(item: Item) -> Mesh | None:
        try:
            return shapes.detokenize(tok, encode(tok, item.raster, item.placement))
        except shapes.ShapesError:
            return None

    return run


def pca_method(linear: GridPCA) -> Method:
    """The same raster through the baseline."""

    def run(item: Item) -> Mesh | None:
        share = item.raster.share
        found = mesh_of_grid(linear.reconstruct(share), share)
        return None if found is None else out_of_box(found, item.placement)

    return run


def scores(method: Method, items: list[Item]) -> NDArray[np.float64]:
    """[items, 5] IoU, F(0.01), F(0.02), Chamfer-L1 and normals of each item."""
    rows = []
    for item in items:
        found = method(item)
        if found is None:
            rows.append([0.0, 0.0, 0.0, 1.0, 0.0])
            continue
        result = compare_meshes(item.mesh, found, POINTS)
        gaps = result.distances
        rows.append(
            [
                result.iou or 0.0,
                gaps.f_score(0.01),
                gaps.f_score(0.02),
                gaps.chamfer_l1,
                gaps.normal_consistency,
            ]
        )
    return np.array(rows)


def thickness(mesh: Mesh) -> float:
    """Twice the volume over the area, in the box: how thick a plate would be."""
    solid = repair(into_box(mesh, placement_of(mesh)))
    a, b, c = solid.triangles.transpose(1, 0, 2)
    cross = np.cross(b - a, c - a)
    volume = np.einsum("fi,fi->", a, cross) / 6
    return float(4 * volume / np.linalg.norm(cross, axis=1).sum())


def held_out(corpus: Path) -> tuple[list[Item], int]:
    """The held-out meshes of a corpus that are closed, and how many there are in all."""
    items = []
    entries = json.loads((corpus / "val" / "shapes.json").read_text())
    for entry in entries:
        mesh = shapes.read(entry["path"])
        if repair(mesh).closed:
            raster = Prepared.load(corpus / "val" / entry["file"]).raster
            items.append(Item(mesh, raster, placement_of(mesh)))
    return items, len(entries)


def quality(tok: Tokenizer, corpus: Path, most: int | None) -> list[str]:
    """The table of held-out closed meshes."""
    items, count = held_out(corpus)
    if most is not None:
        items = items[:: -(-len(items) // most)]
    train = json.loads((corpus / "train" / "shapes.json").read_text())
    grids = [Prepared.load(corpus / "train" / entry["file"]).raster.share for entry in train]
    values = 768 * tok.model.quantizer.dim
    block, whole = (GridPCA.fit(grids, side, values) for side in (BLOCK, len(grids[0])))
    methods = {
        f"{tok.config.name}, 768 tokens, {values:,} values": model_method(tok),
        f"PCA of whole grids, {whole.rank:,} values": pca_method(whole),
        f"PCA of {BLOCK}^3 blocks, {block.rank * 512:,} values": pca_method(block),
    }
    return [
        f"{len(items)} closed of {count} held-out meshes, {POINTS:,} points each, box from -1 to 1",
        "",
        *score_table(methods, items),
    ]


def score_table(methods: dict[str, Method], items: list[Item]) -> list[str]:
    """Means of each method over all shapes, and over those thicker than a cell of the raster."""
    rows = ["method|shapes|IoU|F(0.01)|F(0.02)|Chamfer-L1|normals|median IoU".split("|")]
    thick = np.array([thickness(item.mesh) >= THICK for item in items])
    for name, method in methods.items():
        found = scores(method, items)
        for label, some in ((f"all {len(items)}", found), (f"{thick.sum()} thick", found[thick])):
            values = [*some.mean(axis=0), np.median(some[:, 0])]
            rows.append([name, label, *(f"{value:.4f}" for value in values)])
            print(rows[-1], file=sys.stderr, flush=True)
    return table(rows)


def primitives(tok: Tokenizer) -> list[str]:
    """Unions of two primitives."""
    items = []
    for seed in SEEDS:
        mesh = random_shape(seed, parts=2)
        raster, placement, _ = look_at(mesh, parts_of(tok))
        items.append(Item(mesh, raster, placement))
    return [
        f"{len(items)} unions of two primitives; the small raster transformer is reported with "
        f"an IoU of {REFERENCE} on such shapes",
        "",
        *score_table({f"{tok.config.name}, 768 tokens": model_method(tok)}, items),
    ]


def pixels(tok: Tokenizer) -> list[str]:
    """Held-out pictures and clips of the corpus before and after the 3D stage."""
    config = read_config(["data=corpus"])
    models = {"tiny-kl": omnitok.load("tiny-kl").model, tok.config.name: tok.model}
    with TemporaryDirectory() as pictures:
        scorer = Validator(config, Path(pictures), torch.device("cpu"))
        found = {name: scorer(model, 0) for name, model in models.items()}
    keys = list(found["tiny-kl"])
    rows = [[name, *(f"{values[key]:.2f}" for key in keys)] for name, values in found.items()]
    return table([["weights", *keys], *rows])


def speed(tok: Tokenizer) -> list[str]:
    """Processor seconds, after a small shape has loaded what is needed, and memory."""
    shapes.detokenize(tok, shapes.tokenize(tok, random_shape(1)), 16)
    mesh = random_shape(0, lattice_points=160)
    start = process_time()
    shapes.detokenize(tok, shapes.tokenize(tok, mesh), 128)
    seconds = process_time() - start
    boxed = into_box(mesh, placement_of(mesh))
    solid = repair(boxed)
    inside = Inside(solid, sample_surface(boxed, solid, POINTS))
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 3))
    start = process_time()
    inside(points)
    labels = process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = [
        Figure(
            name=f"tokenize and decode, {len(mesh.faces):,} faces, 128^3",
            measured=f"{seconds:.2f} CPU s",
            against="10 s",
            ratio=seconds / 10,
            most=1.0,
        ),
        Figure(
            name="labels of 200,000 points",
            measured=f"{labels:.2f} CPU s",
            against="1 s",
            ratio=labels,
            most=1.0,
        ),
        Figure(
            name="peak memory of the process",
            measured=f"{peak:.2f} GB",
            against="2 GB",
            ratio=peak / 2,
            most=1.0,
        ),
    ]
    return table([HEAD, *(figure.row for figure in figures)])


def main() -> None:
    """Run what is named, and print a table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if none is given")
    parser.add_argument("--model", default="tiny-3d", metavar="NAME|PATH")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, help="only this many held-out meshes, for a look")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tok = omnitok.load(args.model)
    benches = {
        "quality": lambda: quality(tok, args.corpus, args.most),
        "primitives": lambda: primitives(tok),
        "pixels": lambda: pixels(tok),
        "speed": lambda: speed(tok),
    }
    if unknown := sorted(set(args.names) - set(benches)):
        parser.error(f"there is no bench {unknown[0]!r}; choose of {', '.join(benches)}")
    for name in args.names or benches:
        print(f"\n### {name}\n", *benches[name](), sep="\n", flush=True)


if __name__ == "__main__":
    main()
