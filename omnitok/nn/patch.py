"""Pixels to patches and back.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, G groups, N patches of a group,
P values of a patch, in the order (frame, row, column, colour).
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Patch = tuple[int, int, int]


def grid_of(size: tuple[int, int], patch: Patch) -> tuple[int, int]:
    """(h, w) in patches of frames of (H, W) pixels; partial patches count."""
    return -(-size[0] // patch[1]), -(-size[1] // patch[2])


def pad_frames(x_BCTHW: Tensor, patch: Patch, frames: int) -> Tensor:
    """Repeat edge pixels up to whole patches, and the last frame up to `frames` frames."""
    t, h, w = x_BCTHW.shape[2:]
    rows, columns = grid_of((h, w), patch)
    pad = (0, columns * patch[2] - w, 0, rows * patch[1] - h, 0, frames - t)
    return F.pad(x_BCTHW, pad, mode="replicate") if any(pad) else x_BCTHW


def patchify(x_BCTHW: Tensor, patch: Patch) -> Tensor:
    """[B, C, T, H, W] of whole patches to [B, G, N, P]."""
    t, h, w = patch
    pattern = "b c (g t) (y h) (x w) -> b g (y x) (t h w c)"
    return rearrange(x_BCTHW, pattern, t=t, h=h, w=w)


def unpatchify(x_BGNP: Tensor, patch: Patch, grid: tuple[int, int]) -> Tensor:
    """[B, G, N, P] to [B, C, T, H, W]; `grid` is (h, w) in patches."""
    t, h, w = patch
    pattern = "b g (y x) (t h w c) -> b c (g t) (y h) (x w)"
    return rearrange(x_BGNP, pattern, t=t, h=h, w=w, y=grid[0], x=grid[1])
