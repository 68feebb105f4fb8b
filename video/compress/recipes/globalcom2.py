"""GlobalCom2: a thumbnail tells its crops what to keep.

Source: Liu et al. 2025, arXiv:2501.05179.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from video.compress.budget import share
from video.compress.merge import keep_ranked
from video.compress.plan import Plan
from video.compress.recipes.hired import cells, picture_side
from video.compress.score import TINY, per_token


def crop_ratios(sums_BP: Tensor, base: float = 0.25, temperature: float = 10.0) -> Tensor:
    """Share of its tokens that each crop keeps, by the attention that its place has in all."""
    p = (sums_BP / temperature).softmax(-1)
    ratios: Tensor = base * (1 + p - p.mean(-1, keepdim=True))
    return ratios.clamp(max=1)


def thumbnail_score(score_BN: Tensor, side: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The scores of a thumbnail, enlarged to the size of all crops side by side: [B, h, w]."""
    map_ = score_BN.view(-1, 1, *side)
    return F.interpolate(map_, size=size, mode="bilinear", align_corners=False)[:, 0]


def both_scores(local: Tensor, thumbnail: Tensor) -> Tensor:
    """Sum of two kinds of scores of the same tokens, each of length 1 over a crop."""
    return F.normalize(local, dim=-1, eps=TINY) + F.normalize(thumbnail, dim=-1, eps=TINY)


def globalcom2(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    crops: tuple[int, int] | None = None,
    base: float = 0.25,
    temperature: float = 10.0,
) -> Plan:
    """Keep of each crop, or frame, what it and the thumbnail attend to.

    Args:
        x_BTND: Tokens; a thumbnail and then its crops, or the frames of a video.
        keep: Outputs of each sample, exactly.
        attention: [B, T, N] of a class token, or what each token receives.
        crops: Rows and columns of the crops behind the thumbnail. Without, frames share the budget
            by the attention that they have in all.
        base: Without `keep`: share that stays, on average.
        temperature: The higher, the more alike the crops are treated.
    """
    B, T, N, _ = x_BTND.shape
    score = per_token(attention, x_BTND)
    ratios = crop_ratios(score.sum(2), base, temperature)
    if crops is not None:
        rows, columns = crops
        side = picture_side(T, N, crops)
        first = score[:, 0]
        cell = cells(rows, columns, side, side, score.device).expand(B, N)
        sums = first.new_zeros(B, T - 1).scatter_add(1, cell, first)
        ratios = crop_ratios(sums, base, temperature)
        ratios = torch.cat([torch.full_like(ratios[:, :1], base), ratios], dim=1)
        whole = thumbnail_score(first, (side, side), (rows * side, columns * side))
        parts = whole.view(B, rows, side, columns, side).transpose(2, 3).reshape(B, T - 1, N)
        score = torch.cat([score[:, :1], both_scores(score[:, 1:], parts)], dim=1)
    counts = (N * ratios).long().clamp(min=1) if keep is None else share(keep, ratios, N)
    return keep_ranked(score, counts, keep)
