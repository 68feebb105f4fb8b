"""Pooling of frames to a size.

Source: M3: Cai et al. 2024, arXiv:2405.17430. Dynamic-VLM: Wang et al. 2024, arXiv:2412.09530.
"""

from math import isqrt

import torch.nn.functional as F
from torch import Tensor

from video.compress import pool
from video.compress.budget import Keep, Pick, per_frame
from video.compress.plan import Plan
from video.compress.positions import frame_grid


def _banded(x_BTND: Tensor, keep: Keep, h: int, w: int) -> Plan:
    """Frames in windows, `keep` in all."""
    B, T, N, _ = x_BTND.shape

    def decide(pick: Pick, count: int) -> Plan:
        label = pool.bands(h, w, count, x_BTND.device)
        return pool.average(label, (1, h, w), len(pick(x_BTND[..., 0, 0])))

    return per_frame(B, T, N, keep, decide)


def m3(
    x_BTND: Tensor,
    keep: Keep | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    scale: int = 36,
) -> Plan:
    """Average square windows of each frame: nested scales of the same picture.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample (or frame), exactly, in windows that are then about square.
        grid: (h, w) of a frame.
        scale: Without `keep`: tokens of each frame, as far as whole windows allow.
    """
    B, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    if keep is not None:
        return _banded(x_BTND, keep, h, w)
    kernel = max(1, int((N / scale) ** 0.5))
    kernel = min(kernel, h, w)
    return pool.linear(lambda e: F.avg_pool2d(e, kernel), h, w, B * T, x_BTND).fold(T)


def dynamic_vlm(
    x_BTND: Tensor,
    keep: Keep | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    most: int = 64,
    total: int = 3840,
) -> Plan:
    """Average windows of each frame, fewer the longer the video is.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample (or frame), exactly.
        grid: (h, w) of a frame.
        most: Without `keep`: most tokens of a frame.
        total: Without `keep`: most tokens of the video, while each frame has one.
    """
    B, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    if keep is not None:
        return _banded(x_BTND, keep, h, w)
    side = max(1, isqrt(max(1, min(total // T, most))))
    size = (min(side, h), min(side, w))
    return pool.linear(lambda e: F.adaptive_avg_pool2d(e, size), h, w, B * T, x_BTND).fold(T)
