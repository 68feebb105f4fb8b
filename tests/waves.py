"""Smooth pictures and clips to score, and a corpus of them."""

import json
from pathlib import Path

import numpy as np


def waves(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """[T, H, W, 3] uint8 waves that move."""
    t, y, x, c = np.meshgrid(*(np.arange(n) for n in (frames, height, width, 3)), indexing="ij")
    rng = np.random.default_rng(seed)
    total = sum(np.sin(x * a + y * b + t * c0 + c) for a, b, c0 in rng.normal(0, 0.3, (6, 3)))
    return np.clip(128 + 25 * total, 0, 255).astype(np.uint8)


def write_corpus(root: Path) -> Path:
    """Two clips and two pictures in each split, as `python -m tools.corpus` lays them out."""
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir(parents=True)
        for kind, frames, size in (("images", 1, 160), ("videos", 24, 144)):
            entries, blob = [], b""
            for item in range(2):
                pixels = waves(frames, size, size + 16, 10 * number + item)
                where = {"offset": len(blob), "height": size, "width": size + 16}
                facts = {"frames": frames, "fps": 25.0} if kind == "videos" else {}
                entries.append({"key": f"{split}-{kind}-{item}", **facts, **where})
                blob += pixels.tobytes()
            (root / split / f"{kind}.bin").write_bytes(blob)
            (root / split / f"{kind}.json").write_text(json.dumps(entries))
    return root
