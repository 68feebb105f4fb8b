"""Pixels to patches and back.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, G groups, N patches of a group,
P values of a patch, in the order (frame, row, column, colour).
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.native import kernels
from omnitok.nn.linear import linear, takes_half

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


def embed(layer: nn.Linear, x_BCTHW: Tensor, patch: Patch) -> Tensor:
    """What `layer` makes of patches: [B, G, N, D]."""
    if takes_half(x_BCTHW, layer) and x_BCTHW.shape[:2] == (1, 3):
        return kernels.linear(layer, kernels.Patches(x_BCTHW[0], patch))[None]
    return linear(layer, patchify(x_BCTHW, patch))


def paint(layer: nn.Linear, x_BGND: Tensor, patch: Patch, grid: tuple[int, int]) -> Tensor:
    """What `layer` makes of tokens, as pixels [B, C, T, H, W]; `grid` is (h, w) in patches."""
    t, h, w = patch
    if takes_half(x_BGND, layer) and len(x_BGND) == 1 and layer.out_features == 3 * t * h * w:
        x_CTHW = x_BGND.new_empty(3, x_BGND.shape[1] * t, grid[0] * h, grid[1] * w)
        return kernels.linear(layer, x_BGND[0], out=kernels.Patches(x_CTHW, patch))[None]
    return unpatchify(linear(layer, x_BGND), patch, grid)
