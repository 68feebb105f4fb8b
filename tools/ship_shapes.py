"""What the card of weights with a 3D stage says beside that of others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import omnitok
from tools.bench_shapes import THICK, held_out, model_method, scores, thickness

WEAK_SHAPES = (
    "3D: seen a few hundred meshes. Sheet metal and wires much thinner than 1/32 of the longest "
    "side come back broken or not at all; edges are rounded at that scale; colours are soft, and "
    "two sides of a thin part bleed into each other."
)
NAMES = ("iou", "f_score_0.01", "f_score_0.02", "chamfer_l1", "normals")


def score_shapes(path: Path, corpus: Path) -> dict[str, Any]:
    """Means over held-out closed meshes, all and those thicker than a cell of the raster."""
    items, _ = held_out(corpus)
    values = scores(model_method(omnitok.load(path)), items)
    thick = [thickness(item.mesh) >= THICK for item in items]
    return {
        label: {
            "meshes": len(some),
            **{n: round(float(v), 4) for n, v in zip(NAMES, some.mean(axis=0), strict=True)},
        }
        for label, some in (("closed", values), ("closed_and_thick", values[thick]))
    }


def summarise_meshes(corpus: Path) -> list[dict[str, Any]]:
    """One row for each source and licence of the training meshes."""
    train = json.loads((corpus / "train" / "shapes.json").read_text())
    counts = Counter((entry["source"], entry["licence"]) for entry in train)
    return [
        {"source": source, "licence": licence, "meshes": count}
        for (source, licence), count in sorted(counts.items())
    ]
