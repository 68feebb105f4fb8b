"""Training clips cut from pictures and videos: moving crops, sizes, colours.

Shape suffixes: T frames, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Rng = np.random.Generator


def span(rng: Rng, total: int, frames: int, step: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[T] numbers of frames `step` apart from a random start; a video too short bounces.

    Args:
        rng: Source of the start.
        total: Frames of the video.
        frames: How many to pick.
        step: Distance between two of them, in frames.
    """
    offsets = np.floor(np.arange(frames) * step + 0.5).astype(np.int64)
    start = int(rng.integers(max(1, total - int(offsets[-1]))))
    wave = (start + offsets) % max(1, 2 * (total - 1))
    return np.asarray(np.minimum(wave, 2 * (total - 1) - wave) if total > 1 else 0 * wave)


def window(rng: Rng, height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part with the shape of `size`.

    Its scale lies between full resolution and the whole frame, small scales rarer.
    """
    largest = min(height / size[0], width / size[1])
    scale = 1 + (largest - 1) * rng.random() ** 2 if largest > 1 else largest
    part = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
    top, left = rng.integers(height - part[0] + 1), rng.integers(width - part[1] + 1)
    return int(top), int(left), *part


def resize(clip_THWC: Pixels, size: tuple[int, int]) -> Pixels:
    """Scale to exactly `size`, antialiased."""
    if clip_THWC.shape[1:3] == size:
        return clip_THWC
    x = torch.from_numpy(np.ascontiguousarray(clip_THWC)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size, mode="bilinear", antialias=True)
    return x.round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def pan(rng: Rng, image: Pixels, frames: int, size: tuple[int, int]) -> Pixels:
    """[T, H, W, 3]: a window that drifts, zooms and turns over a photograph, as a hand-held camera.

    Args:
        rng: Source of the movement.
        image: [H, W, 3].
        frames: Length.
        size: (H, W) of the window.
    """
    height, width = image.shape[:2]
    scale = min(1 + 1.5 * rng.random() ** 2, height / size[0], width / size[1])
    side = max(size) * scale
    t = torch.linspace(-0.5, 0.5, frames)
    travel = torch.from_numpy(rng.normal(size=2)).float() * max(size) * rng.random() * 0.6
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
    axes = [(torch.arange(n) + 0.5 - n / 2) * scale for n in size]
    y, x = torch.meshgrid(*axes, indexing="ij")
    y, x = y * zoom[:, None, None], x * zoom[:, None, None]
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    rows = centre[:, 0, None, None] + cos * y - sin * x
    columns = centre[:, 1, None, None] + sin * y + cos * x
    grid = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], dim=-1)
    # a window that is beside a small picture still sees its edge
    top, left = int(rows.min().clamp(0, height - 1)), int(columns.min().clamp(0, width - 1))
    bottom, right = int(rows.max().clamp_min(0)) + 2, int(columns.max().clamp_min(0)) + 2
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
