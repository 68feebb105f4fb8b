"""Random clips for training, from a corpus that is memory-mapped.

A corpus folder holds `images.bin` (RGB photographs, HWC, back to back) and `videos.bin` (clips,
THWC), each with a JSON list of what lies where; `python -m tools.corpus` makes one.

Shape suffixes: B batch, T frames, H and W pixels, C colours.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from omnitok.train.config import SourceConfig, StageConfig, TrainConfig

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Corpus:
    """The photographs and clips of one split.

    Args:
        root: Folder with images.bin, images.json, videos.bin and videos.json.

    Raises:
        FileNotFoundError: One of them is missing.
    """

    def __init__(self, root: str | Path) -> None:
        self.images = _read_items(Path(root), "images")
        self.videos = _read_items(Path(root), "videos")


def _read_items(root: Path, kind: str) -> list[Pixels]:
    index, data = root / f"{kind}.json", root / f"{kind}.bin"
    if not index.exists() or not data.exists():
        raise FileNotFoundError(f"{root} has no {kind}.json and {kind}.bin; run: make corpus")
    flat = np.memmap(data, dtype=np.uint8, mode="r")
    items = []
    for entry in json.loads(index.read_text()):
        shape = (entry.get("frames", 1), entry["height"], entry["width"], 3)
        start = entry["offset"]
        items.append(flat[start : start + int(np.prod(shape))].reshape(shape))
    return items


class ClipSampler:
    """Batches of random crops. Batch s depends on (seed, s) alone, so a run can resume anywhere.

    Items are drawn in proportion to the square root of their pixels: long clips do not drown short
    ones.
    """

    def __init__(self, corpus: Corpus, config: TrainConfig) -> None:
        self.corpus, self.config = corpus, config
        self._odds = {
            name: _odds(items)
            for name, items in (("images", corpus.images), ("videos", corpus.videos))
        }
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Tensor]] | None = None

    def batch(self, step: int) -> Tensor:
        """[B, 3, T, H, W] uint8 of a step; the next one is prepared meanwhile."""
        if self._next is not None and self._next[0] == step:
            clips = self._next[1].result()
        else:
            clips = self.draw(step)
        if step + 1 < self.config.steps:
            self._next = (step + 1, self._pool.submit(self.draw, step + 1))
        return clips

    def draw(self, step: int) -> Tensor:
        """[B, 3, T, H, W] uint8 of a step."""
        rng = np.random.default_rng([self.config.seed, step])
        source = _choose(rng, self.config.stage_at(step))
        clips = [self._clip(rng, source) for _ in range(source.batch)]
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)

    def _clip(self, rng: np.random.Generator, source: SourceConfig) -> Pixels:
        kind = "videos" if source.kind == "videos" else "images"
        items = getattr(self.corpus, kind)
        item = items[rng.choice(len(items), p=self._odds[kind])]
        if source.kind == "pans":
            clip = _pan(rng, item[0], source.frames, source.size)
        else:
            clip = _crop(rng, item, source.frames, source.size)
        if rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if source.frames > 1 and rng.random() < 0.3:
            clip = clip[::-1]
        return np.ascontiguousarray(clip)


def _odds(items: list[Pixels]) -> np.ndarray[Any, np.dtype[np.float64]]:
    weight = np.sqrt(np.array([item.size for item in items], dtype=np.float64))
    return np.asarray(weight / weight.sum())


def _choose(rng: np.random.Generator, stage: StageConfig) -> SourceConfig:
    weights = np.array([source.weight for source in stage.mix])
    return stage.mix[rng.choice(len(weights), p=weights / weights.sum())]


def _crop(rng: np.random.Generator, item: Pixels, frames: int, size: int) -> Pixels:
    """A crop at a random scale, time and speed. Clips too short bounce back and forth."""
    total, height, width = item.shape[:3]
    # between full resolution and the whole short side, small scales rarer
    scale = max(1.0, min(height, width) / size * rng.random() ** 2)
    side = min(int(size * scale), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    speed = 1 if rng.random() < 0.7 else int(rng.integers(2, 4))
    span = (frames - 1) * speed
    start = rng.integers(max(1, total - span))
    wave = (start + np.arange(frames) * speed) % max(1, 2 * (total - 1))
    times = np.minimum(wave, 2 * (total - 1) - wave) if total > 1 else np.zeros(frames, int)
    crop = item[times][:, top : top + side, left : left + side]
    return crop if side == size else _resize(crop, size)


def _resize(crop: Pixels, size: int) -> Pixels:
    x = torch.from_numpy(np.ascontiguousarray(crop)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _pan(rng: np.random.Generator, image: Pixels, frames: int, size: int) -> Pixels:
    """A square window that drifts, zooms and turns over a photograph, as a hand-held camera."""
    height, width = image.shape[:2]
    side = size * min(1 + 1.5 * rng.random() ** 2, min(height, width) / size)
    t = torch.linspace(-0.5, 0.5, frames)
    travel = torch.from_numpy(rng.normal(size=2)).float() * size * rng.random() * 0.6
    zoom = torch.exp(t * float(rng.normal()) * 0.15)
    turn = t * float(rng.normal()) * 0.15
    reach = 0.5 * side * 1.25 + travel.abs() * 0.5
    low, high = reach, torch.tensor([height, width]) - reach
    middle = torch.where(
        high > low,
        low + torch.from_numpy(rng.random(2)).float() * (high - low),
        torch.tensor([height, width]) / 2,
    )
    shake = torch.from_numpy(rng.normal(size=(frames, 2))).float() * rng.random() ** 3
    centre = middle + t[:, None] * travel + shake
    axis = (torch.arange(size) + 0.5 - size / 2) * side / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    y, x = y * zoom[:, None, None], x * zoom[:, None, None]
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    rows = centre[:, 0, None, None] + cos * y - sin * x
    columns = centre[:, 1, None, None] + sin * y + cos * x
    grid = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], dim=-1)
    top, left = int(rows.min().clamp_min(0)), int(columns.min().clamp_min(0))
    bottom, right = int(rows.max()) + 2, int(columns.max()) + 2
    part = image[top:bottom, left:right]
    grid = (grid + 1) * torch.tensor([width, height]) - torch.tensor([left, top]) * 2
    grid = grid / torch.tensor([part.shape[1], part.shape[0]]) - 1
    source = torch.from_numpy(np.array(part)).permute(2, 0, 1).float()
    out = F.grid_sample(
        source.expand(frames, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )
    return out.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def centre_clip(item: Pixels, frames: int, size: int) -> Tensor:
    """The first frames of an item, short side scaled to `size`, centre crop.

    Args:
        item: [T, H, W, 3] uint8.
        frames: How many; fewer if the item is shorter.
        size: Side of the square in pixels.

    Returns:
        [3, T, size, size] uint8.
    """
    x = torch.from_numpy(np.array(item[:frames])).permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    scale = size / min(height, width)
    scaled = (max(size, round(height * scale)), max(size, round(width * scale)))
    x = F.interpolate(x, scaled, mode="bilinear", antialias=True)
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    x = x[:, :, top : top + size, left : left + size].round_()
    return x.to(torch.uint8).transpose(0, 1).contiguous()
