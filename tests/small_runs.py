"""A corpus and a run that are small enough to train in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnitok.train.config import DatasetConfig, TrainConfig, from_dict
from omnitok.train.log import read_log
from video.data.datasets import find_items
from video.data.items import FileItem

SMALL = {
    "preset": "tiny-kl",
    "encoder": {"width": 64, "heads": 1, "layers": ["local"], "mlp_hidden": 64},
    "decoder": {"width": 64, "heads": 1, "layers": ["local", "shifted"], "mlp_hidden": 64},
}
VQ = {"kind": "vq", "dim": 6, "codebook_size": 32}
FSQ = {"kind": "fsq", "dim": 6, "levels": [8, 8, 8, 5, 5, 5]}
LOSSES = {"rmse": 1.0, "kl": 1e-6}


def smooth(rng, frames, height, width):
    """Pictures with low frequencies that drift: something to learn."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(frames)[:, None, None]
    waves = [
        np.sin(x * rng.uniform(0.02, 0.3) + y * rng.uniform(0.02, 0.3) + t * 0.3 + c)
        for c in range(3)
    ]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


def write_corpus(root: Path) -> Path:
    """Four pictures and four videos of 12 frames, as a memory-mapped corpus."""
    rng = np.random.default_rng(0)
    for kind, frames in (("images", 1), ("videos", 12)):
        index, flat, offset = [], [], 0
        for n in range(4):
            item = smooth(rng, frames, 48, 56 + n)
            index.append({"offset": offset, "frames": frames, "height": 48, "width": 56 + n})
            flat.append(item.tobytes())
            offset += item.size
        (root / f"{kind}.bin").write_bytes(b"".join(flat))
        (root / f"{kind}.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Its items by kind."""
    root = write_corpus(tmp_path_factory.mktemp("corpus"))
    return find_items(DatasetConfig(path=str(root)))


def with_a_broken_one(root: Path) -> dict[str, list[Any]]:
    """The items of a corpus, and a picture that is not there."""
    items = find_items(DatasetConfig(path=str(root)))
    items["images"].append(FileItem(str(root / "gone.png"), weight=60.0))
    return items


def run_dict(steps: int = 12, **changes: Any) -> dict[str, Any]:
    """Two stages: images; images, pans and videos."""
    mix = [
        {"kind": kind, "batch": 2, "sizes": [[frames, 32, 32]]}
        for kind, frames in (("images", 1), ("pans", 5), ("videos", 5))
    ]
    return {
        "model": SMALL,
        "stages": [
            {"name": "images", "steps": 2, "mix": mix[:1], "losses": LOSSES},
            {"name": "all", "steps": steps - 2, "mix": mix, "losses": LOSSES},
        ],
        "optim": {"warmup": 2, "ema": 0.8},
        "save_every": 5,
        "workers": 0,
        **changes,
    }


def run_config(steps: int = 12, **changes: Any) -> TrainConfig:
    """`run_dict` as a config."""
    return from_dict(TrainConfig, run_dict(steps, **changes))


def losses(out: Path) -> list[float]:
    """The loss of every step in a run's log."""
    return [float(row["loss"]) for row in read_log(out / "log.csv")]


def two_process_config(kind: str = "copy", network: str = "") -> TrainConfig:
    """A run whose numbers can be compared between one process and two.

    Args:
        kind: "copy" or "shard" the weights; or "games", with losses that draw random numbers and
            look at all clips of a batch.
        network: File of a perceptual network, for "games".
    """
    values = run_dict(8, shard=kind == "shard", save_every=4, eval_every=3, autocast=False)
    values["log_every"] = 2  # some steps are scored without being logged
    if kind == "games":
        game = {"weight": 0.1, "width": 4, "depth": 1, "adaptive": True, "lecam": 0.1}
        values["stages"][1]["losses"] = {
            "l1": 1.0,
            "kl": 1e-6,
            "lpips": {"weight": 0.1, "network": network, "side": 64},
            "gan2d": {**game, "lecam_decay": 0.5},
            "gan3d": {**game, "skip_below": 0.01},
        }
    return from_dict(TrainConfig, values)
