"""Put trained weights into the package, with card and log: the last step of `make weights`."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from omnitok.checkpoint import load_checkpoint, save_checkpoint
from omnitok.hub import SHIPPED
from omnitok.metrics.validation import validator
from omnitok.pixels import to_float
from omnitok.train.state import Checkpoints
from tools.ship_shapes import WEAK_SHAPES, score_shapes, summarise_meshes
from video.data.crops import centre_clip
from video.data.datasets import read_corpus

LOGS = Path(__file__).parents[1] / "docs" / "weights"
WEAKNESSES = (
    "Small: trained for under an hour on two CPU cores. Fine texture (foliage, gravel, crowds) and "
    "small text turn soft; fast motion smears. Not trained on medical, satellite or document "
    "images, nor on faces in particular. No perceptual loss, so it prefers soft to invented detail."
)


def summarise(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each source and licence of the training split."""
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: {"files": 0, "megapixels": 0})
    for entry in manifest["files"]:
        if entry["split"] == "train":
            row = rows[entry["source"], entry["licence"]]
            row["files"] += 1
            row["megapixels"] += entry["pixels"] / 1e6
    return [
        {
            "source": source,
            "licence": licence,
            "files": row["files"],
            "megapixels": round(row["megapixels"], 1),
        }
        for (source, licence), row in sorted(rows.items())
    ]


def ship(name: str, runs: Path, corpus: Path) -> dict[str, Any]:
    """Store the weights of a run in half precision, score them, and write card and log."""
    run = runs / name
    saved = Checkpoints(run / "checkpoints", 1).load()
    if saved is None:
        raise SystemExit(
            f"{run} holds no checkpoint; train it first: python -m tools.train_weights"
        )
    step, state = saved
    model, _ = load_checkpoint(run / "weights.safetensors")
    target = SHIPPED / f"{name}.safetensors"
    digest = save_checkpoint(target, model, dtype=torch.float16)
    model, _ = load_checkpoint(target)
    clips = {
        f"{kind}_{name}": [
            to_float(centre_clip(item, frames, 256)[None], torch.float32)
            for item in read_corpus(corpus / "val", f"{kind}s")
        ]
        for kind, name, frames in (("video", "33x256x256", 33), ("image", "256x256", 1))
    }
    scores: dict[str, Any] = dict(validator(clips)(model))
    score = f"{scores['psnr_video_33x256x256']:.2f} dB PSNR on held-out clips"
    data = summarise(json.loads((corpus / "manifest.json").read_text()))
    held_out = [e["key"] for e in json.loads((corpus / "val/videos.json").read_text())]
    bad_at = WEAKNESSES
    if model.config.planes is not None:
        scores |= score_shapes(target, corpus)
        score += f", {scores['closed']['iou']:.3f} IoU on held-out closed meshes"
        data += summarise_meshes(corpus)
        held_out += [e["key"] for e in json.loads((corpus / "val/shapes.json").read_text())]
        bad_at += f" {WEAK_SHAPES}"
    config = state["config"]
    card = {
        "name": name,
        "weights_sha256": digest,
        "licence": "Apache-2.0",
        "score": score,
        "scores": scores,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {
            "command": f"python -m tools.train_weights {name}",
            "config": config,
            "seed": config["seed"],
            "steps": step,
            "seconds": round(state["seconds"]),
            "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "torch": str(torch.__version__),
            "log": f"docs/weights/{name}.csv",
        },
        "data": data,
        "held_out": held_out,
        "bad_at": bad_at,
    }
    target.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    LOGS.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "log.csv", LOGS / f"{name}.csv")
    return card


def main() -> None:
    """Parse the command line and ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", default="runs", type=Path)
    parser.add_argument("--corpus", default="corpus", type=Path)
    args = parser.parse_args()
    for name in args.names:
        print(json.dumps(ship(name, args.runs, args.corpus)["scores"]))


if __name__ == "__main__":
    main()
