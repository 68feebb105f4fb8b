"""DyCoke: temporal token "merging", which prunes.

Source: Tao et al. 2025, arXiv:2411.15024. Unlike in the published code, an odd last frame is kept
and short clips work.
"""

import torch
from torch import Tensor

from video.compress.budget import evenly
from video.compress.plan import Plan
from video.compress.score import deciding, norms


def dycoke(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    k: float = 0.7,
    upstream_ends: bool = False,
) -> Plan:
    """Keep whole frames at intervals, and of those between what changed most since.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly. Whole frames then come every 4, or every 8, 16 ..
            where the budget does not reach for more.
        k: Without `keep`: share of a frame between that goes.
        upstream_ends: Do as the published code at the end of a clip: drop an odd last frame, and
            keep the third frame of the last group of four whole where the clip ends with it.

    Returns:
        Outputs of a frame follow each other from the most changed to the least.
    """
    B, T, N, _ = x_BTND.shape
    period = 4
    while keep is not None and -(-T // period) * N > keep and period < T:
        period *= 2
    dropped = T % 2 if upstream_ends and T > 1 else 0
    reference = [t - 1 if t % 2 else t - t % period for t in range(T - dropped)]
    if upstream_ends and T % 4 == 0:
        reference[T - 2] = T - 2
    between = [t for t, other in enumerate(reference) if t != other]
    counts = [N] * len(reference)
    whole = (len(reference) - len(between)) * N
    if keep is not None and keep < whole:  # period >= T: part of the first frame, evenly
        index = torch.arange(keep, device=x_BTND.device) * N // keep
        return Plan.keep(index.expand(B, keep), T * N)
    rest = len(between) * int((1 - k) * N) if keep is None else keep - whole
    for t, count in zip(between, evenly(rest, len(between)), strict=True):
        counts[t] = count
    length = norms(x_BTND)
    score = torch.zeros_like(length)
    for t in between:
        score[:, t] = (deciding(x_BTND[:, t]) * deciding(x_BTND[:, reference[t]])).sum(-1)
    score[:, : len(reference)] /= length[:, : len(reference)] * length[:, reference]
    rank = score.argsort(dim=2, stable=True)
    index = torch.cat([rank[:, t, :count] + t * N for t, count in enumerate(counts)], dim=1)
    return Plan.keep(index, T * N)
