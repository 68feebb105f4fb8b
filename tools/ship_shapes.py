"""Put the weights of a 3D run into the package with card and log, once they are scored.

python -m tools.ship_shapes runs/tiny-3d
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import omnitok
from omnitok.checkpoint import load_checkpoint, save_checkpoint
from omnitok.hub import SHIPPED
from tools.bench_shapes import THICK, Item, model_method, scores, thickness
from tools.bench_shapes import held_out as closed_items

LOGS = Path(__file__).parents[1] / "docs" / "weights"
COMMAND = (
    "omnitok train model=tiny-3d curriculum=tiny-3d data=meshes "
    "start_from=runs/tiny-kl/weights.safetensors -o runs/tiny-3d"
)
WEAKNESSES = (
    "Small: trained on a few hundred meshes for under an hour on one CPU core. Sheet metal and "
    "wires thinner than 1/64 of the box come back broken or not at all; edges are rounded at that "
    "scale; colours are soft, and two sides of a thin part bleed into each other."
)


def scored(path: Path, items: list[Item]) -> dict[str, Any]:
    """Means over held-out closed meshes, all and those thicker than a cell of the raster."""
    names = ("iou", "f_score_0.01", "f_score_0.02", "chamfer_l1", "normals")
    values = scores(model_method(omnitok.load(path)), items)
    thick = [thickness(item.mesh) >= THICK for item in items]
    return {
        label: {
            "meshes": len(some),
            **{n: round(float(v), 4) for n, v in zip(names, some.mean(axis=0), strict=True)},
        }
        for label, some in (("closed", values), ("closed_and_thick", values[thick]))
    }


def card_of(name: str, run: Path, corpus: Path, digest: str) -> dict[str, Any]:
    """Facts about the weights, apart from their scores."""
    model, _ = load_checkpoint(run / "weights.safetensors")
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    train = json.loads((corpus / "train" / "shapes.json").read_text())
    counts = Counter((entry["source"], entry["licence"]) for entry in train)
    return {
        "name": name,
        "weights_sha256": digest,
        "licence": "Apache-2.0",
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {
            "command": COMMAND,
            "start_from": "tiny-kl",
            "seed": 0,
            "steps": int(rows[-1][0]) + 1,
            "hardware": f"{platform.machine()} CPU, 1 thread",
            "torch": str(torch.__version__),
            "log": f"docs/weights/{name}.csv",
        },
        "data": [
            {"source": source, "licence": licence, "meshes": count}
            for (source, licence), count in sorted(counts.items())
        ],
        "held_out": [
            entry["key"] for entry in json.loads((corpus / "val" / "shapes.json").read_text())
        ],
        "bad_at": WEAKNESSES,
    }


def main() -> None:
    """Store, score, and write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--name", default="tiny-3d")
    args = parser.parse_args()
    model, _ = load_checkpoint(args.run / "weights.safetensors")
    target = SHIPPED / f"{args.name}.safetensors"
    digest = save_checkpoint(target, model, dtype=torch.float16)
    items, _ = closed_items(args.corpus)
    card = card_of(args.name, args.run, args.corpus, digest)
    card["scores"] = scored(target, items)
    card["score"] = f"{card['scores']['closed']['iou']:.3f} IoU on held-out closed meshes"
    target.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    shutil.copy(args.run / "log.csv", LOGS / f"{args.name}.csv")
    print(json.dumps(card["scores"], indent=1))


if __name__ == "__main__":
    main()
