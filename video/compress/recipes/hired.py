"""HiRED: the budget goes where the first layer looks.

Source: Arif et al. 2024, arXiv:2408.10945.
"""

from math import isqrt

import torch
from torch import Tensor

from video.compress.budget import share
from video.compress.merge import keep_ranked
from video.compress.plan import Plan
from video.compress.score import per_token
from video.compress.select import top


def cells(rows: int, columns: int, h: int, w: int, device: torch.device) -> Tensor:
    """The crop that each place of the thumbnail falls into: [h * w] int64."""
    row = torch.arange(h, device=device) * rows // h
    column = torch.arange(w, device=device) * columns // w
    return (row[:, None] * columns + column).flatten()


def picture_side(num_pictures: int, num_tokens: int, crops: tuple[int, int]) -> int:
    """Rows and columns of the tokens of a thumbnail and of its crops.

    Raises:
        ValueError: The crops are not as many as they should be, or no squares.
    """
    side, num_crops = isqrt(num_tokens), crops[0] * crops[1]
    if num_crops != num_pictures - 1 or side * side != num_tokens:
        raise ValueError(
            f"crops={crops} and {num_pictures} pictures of {num_tokens} tokens; expected 1 + "
            f"{num_crops} square pictures"
        )
    return side


def hired(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    first_layer: Tensor | None = None,
    crops: tuple[int, int] | None = None,
    rate: float = 0.2,
    alpha: float = 0.5,
    upstream_cells: bool = False,
) -> Plan:
    """Keep the best tokens of each frame or crop; the first layer says how many.

    Args:
        x_BTND: Tokens; a thumbnail and then its crops, or the frames of a video.
        keep: Outputs of each sample, exactly.
        attention: [B, T, N] of a class token in a late layer, heads summed.
        first_layer: The same of the first layer; `attention` by default.
        crops: Rows and columns of the crops behind the thumbnail. Without, frames share the
            budget by how many of the best `1 - alpha` of all tokens of the first layer they have.
        rate: Without `keep`: share that stays, where the shares of crops are rounded down.
        alpha: Share of the budget that the thumbnail takes.
        upstream_cells: Do as the published code does, to which the places of a thumbnail belong to
            crops one after the other, whatever their row and column.
    """
    B, T, N, _ = x_BTND.shape
    score = per_token(attention, x_BTND)
    first = score if first_layer is None else per_token(first_layer, x_BTND)
    total = int(T * N * rate) if keep is None else keep
    thumbnail = 0
    if crops is None:
        best = top(first.flatten(1), max(1, int((1 - alpha) * T * N)))
        cell, parts = torch.arange(T, device=score.device).repeat_interleave(N), T
    else:
        side = picture_side(T, N, crops)
        thumbnail, parts = min(N, int(total * alpha)), T - 1
        best = top(first[:, 0], max(1, int((1 - alpha) * N)))
        cell = cells(*crops, side, side, score.device)
        if upstream_cells:
            cell = torch.arange(N, device=score.device) * parts // N
    votes = torch.zeros(B, parts, device=score.device)
    votes = votes.scatter_add(1, cell[best], torch.ones_like(best, dtype=votes.dtype))
    left = total - thumbnail
    if keep is None:
        counts = (left * votes / votes.sum(1, keepdim=True)).long().clamp(max=N)
        counts[:, 0] += counts.sum(1) + thumbnail == 0
    else:
        left = min(left, parts * N)
        counts, thumbnail = share(left, votes, N), total - left
    if crops is not None:
        counts = torch.cat([counts.new_full((B, 1), thumbnail), counts], dim=1)
    return keep_ranked(score, counts, keep)
