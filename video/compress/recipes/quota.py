"""QuoTA: frames get tokens by how relevant they are.

Source: Luo et al. 2025, arXiv:2503.08689.
"""

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from video.compress import pool
from video.compress.budget import share
from video.compress.plan import Plan
from video.compress.positions import frame_grid
from video.compress.recipes.tome import tome_to
from video.compress.score import cosine_matrix

HOW = ("bilinear", "adaptive", "sample", "merge", "windows")


def frame_counts(weights: Sequence[float], total: int, most: int | None = None) -> list[int]:
    """Tokens of each frame, rounded down.

    Args:
        weights: Relevance of each frame.
        total: Tokens of all frames.
        most: Of a frame; what is above goes to the others, the first ones first.
    """
    shares = [w / sum(weights) for w in weights]
    if most is not None:
        cap = most / total
        excess = sum(max(0.0, s - cap) for s in shares)
        shares = [min(s, cap) for s in shares]
        for i, s in enumerate(shares):
            given = min(excess, cap - s)
            shares[i], excess = s + given, excess - given
    return [int(total * s) for s in shares]


def frame_side(count: int) -> tuple[int, int]:
    """Rows and columns of at most `count` tokens, one row more than columns where it fits."""
    side = isqrt(count)
    return (side + 1, side) if side * (side + 1) <= count else (side, side)


def shrink(x_ND: Tensor, count: int, how: str, h: int, w: int) -> Plan:
    """One frame to about `count` tokens, or exactly for "sample", "merge" and "windows"."""
    N = len(x_ND)
    count = min(count, N)
    if how == "merge":
        return tome_to(x_ND[None], count)
    if how == "windows":
        return pool.average(pool.bands(h, w, count, x_ND.device), (1, h, w), 1)
    if how == "sample":
        index = torch.linspace(0, N - 1, count, dtype=torch.float64, device=x_ND.device)
        return Plan.keep((index + 1e-9).long()[None], N)
    if how not in HOW:
        raise ValueError(f"how={how!r}; choose of {', '.join(map(repr, HOW))}")
    size = frame_side(count)
    size = (min(size[0], h), min(size[1], w))
    if how == "adaptive":
        return pool.linear(lambda e: F.adaptive_avg_pool2d(e, size), h, w, 1, x_ND)
    return pool.linear(lambda e: F.interpolate(e, size=size, mode="bilinear"), h, w, 1, x_ND)


def by_counts(x_TND: Tensor, counts: Sequence[int], how: str, h: int, w: int) -> Plan:
    """All frames of a sample, each to its own count; frames of count 0 vanish."""
    T, N, _ = x_TND.shape
    plans = []
    for t, count in enumerate(counts):
        if count:
            index = torch.arange(t * N, (t + 1) * N, device=x_TND.device)[None]
            plans.append(Plan.keep(index, T * N).then(shrink(x_TND[t], count, how, h, w)))
    return Plan.concat(plans)


def quota(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    text: Tensor,
    grid: tuple[int, ...] | None = None,
    how: str = "windows",
    total: float = 0.25,
) -> Plan:
    """Give each frame tokens by how relevant it is, and shrink it to those.

    The published method asks a vision-language model how relevant a frame is, and squares the
    answer; here it is the cosine of frame and text, from 0 to 100, squared. Where there are such
    answers, `frame_counts` and `by_counts` take them.

    Args:
        x_BTND: Tokens, in the space of the text.
        keep: Outputs of each sample, exactly ("bilinear" and "adaptive" then become "windows").
        text: [B, L, D].
        grid: (h, w) of a frame.
        how: "bilinear", "adaptive" (pooling), "sample", "merge" (ToMe), or "windows".
        total: Without `keep`: share of the tokens that stays, before rounding down.
    """
    _, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    cosine = cosine_matrix(x_BTND.mean(2), text.mean(1, keepdim=True))[..., 0]
    weights = (50 * (1 + cosine)).square() + 1e-6
    if keep is not None:
        how = "windows" if how in ("bilinear", "adaptive") else how
        counts = share(keep, weights, N).tolist()
    else:
        all_ = max(1, int(total * T * N))
        counts = [frame_counts(row, all_, N) for row in weights.tolist()]
        counts = [row if any(row) else [1, *row[1:]] for row in counts]
    return Plan.stack([by_counts(x, row, how, h, w) for x, row in zip(x_BTND, counts, strict=True)])
