"""Videos of any size and length, made from a real clip that plays forth and back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import video
from tools.commands.demonstrating import CLIP


def real_frames(height: int, width: int) -> Tensor:
    """The demo clip as uint8 [T, 3, H, W], scaled and cut to size."""
    x = video.read(CLIP).frames.float()
    scale = max(height / x.shape[2], width / x.shape[3])
    scaled = [max(height, round(x.shape[2] * scale)), max(width, round(x.shape[3] * scale))]
    x = F.interpolate(x, scaled, mode="bicubic", antialias=True)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    x = x[:, :, top : top + height, left : left + width]
    return x.round_().clamp_(0, 255).to(torch.uint8)


def forth_and_back(frames: Tensor) -> Iterator[Tensor]:
    """Frames without end and without a jump."""
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    while True:
        yield from frames[order]


def make_video(path: Path, frames: Tensor, count: int, fps: int = 30) -> Path:
    """Write `count` frames of a clip that plays forth and back."""
    with video.VideoWriter(path, fps=fps) as writer:
        for frame in islice(forth_and_back(frames), count):
            writer.write(frame[None])
    return path
