"""DART: drop what repeats a few pivots.

Source: Wen et al. 2025, arXiv:2502.11494.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from video.compress.assign import rows_of
from video.compress.budget import evenly
from video.compress.plan import Plan
from video.compress.score import deciding, norms
from video.compress.select import mask, top


def pivots(keys: Tensor, count: int) -> Tensor:
    """Tokens with the keys of largest L1 norm, largest first: [B, count] of [B, N, C]."""
    return top(deciding(keys).abs().sum(-1), count, order="score")


def least_similar(
    x_BND: Tensor, pivots_BPD: Tensor, taken_BN: Tensor, counts: Sequence[int]
) -> Tensor:
    """Let pivots, one after the other, take the tokens that are least like them.

    Args:
        x_BND: Tokens.
        pivots_BPD: Pivots, in the order in which they choose.
        taken_BN: Tokens that are taken already.
        counts: How many each pivot takes.

    Returns:
        [B, N] bool, all that are taken in the end.
    """
    dots = deciding(pivots_BPD) @ deciding(x_BND).transpose(1, 2)
    similarity = dots / (norms(pivots_BPD)[..., None] * norms(x_BND)[:, None])
    for i, count in enumerate(counts):
        free = (-similarity[:, i]).masked_fill(taken_BN, -torch.inf)
        taken_BN = taken_BN.scatter(1, top(free, count), True)
    return taken_BN


def dart(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    metric: Tensor | None = None,
    num_pivots: int = 4,
    ratio: float = 0.778,
) -> Plan:
    """Keep a few pivots, and of the other tokens of the video those least like them.

    The published code has further pivots among text, and lets pivots choose in the order of a
    Python set; here they do by the norm of their keys.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly.
        metric: [B, T, N, C] keys; the tokens by default.
        num_pivots: How many.
        ratio: Without `keep`: share of the tokens that goes.
    """
    total = x_BTND.shape[1] * x_BTND.shape[2]
    keep = max(1, total - int(total * ratio)) if keep is None else keep
    x = x_BTND.flatten(1, 2)
    first = pivots((x_BTND if metric is None else metric).flatten(1, 2), min(num_pivots, keep))
    counts = evenly(keep - first.shape[1], first.shape[1])
    taken = least_similar(x, rows_of(x, first), mask(first, total), counts)
    return Plan.keep(top(taken.float(), keep), total)
