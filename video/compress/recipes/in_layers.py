"""Decisions inside a language model, as pure functions of its attention and hidden states.

SparseVLM: Zhang et al. 2024, arXiv:2410.04417. AIM: Zhong et al. 2024, arXiv:2412.03248. FastV and
PyramidDrop (Chen et al. 2024, arXiv:2403.06764; Xing et al. 2024, arXiv:2410.17247) keep the best
of the last row of attention, for which `select.top` is enough.
"""

import torch
from torch import Tensor

from video.compress.assign import rows_of
from video.compress.plan import Plan
from video.compress.recipes.chat_univi import cluster
from video.compress.score import deciding
from video.compress.select import top


def text_raters(text_BLD: Tensor, visual_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Text tokens that look at what is seen more than text does on average (SparseVLM).

    Returns:
        [B, L] scores, and [B, L] bool.
    """
    logits = deciding(visual_BND) @ deciding(text_BLD).transpose(1, 2)
    score = logits.softmax(-1).mean(1)
    return score, score > score.mean(1, keepdim=True)


def rated(attention_BLN: Tensor, raters_BL: Tensor) -> Tensor:
    """Attention to visual tokens, averaged over the text tokens that rate: [B, N]."""
    weight = raters_BL.to(attention_BLN.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    return (weight[:, None] @ attention_BLN)[:, 0]


def recycle(
    x_BND: Tensor, score_BN: Tensor, keep: int, share: float = 0.3, upstream_ties: bool = False
) -> Plan:
    """Keep the best tokens, and of the best of the others the means of a few clusters (SparseVLM).

    Args:
        x_BND: Visual tokens.
        score_BN: As `rated` gives it.
        keep: Tokens that stay as they are.
        share: Of the others, how many are clustered, by score.
        upstream_ties: As `assign.density_peaks` takes it.
    """
    N = x_BND.shape[1]
    best = top(score_BN, keep)
    kept = Plan.keep(best, N)
    left = score_BN.scatter(1, best, -torch.inf)
    some = top(left, int((N - best.shape[1]) * share))
    if not some.shape[1]:
        return kept
    count = some.shape[1] // 10 + 1
    step = cluster(rows_of(x_BND, some), count, count, upstream_ties=upstream_ties)
    return Plan.concat([kept, Plan.keep(some, N).then(step)])


def pagerank(logits: Tensor, temperature: float = 0.1, steps: int = 5) -> Tensor:
    """Importance of tokens as pages that link to what they attend to (AIM).

    Args:
        logits: [B, H, N, N] before the softmax.
        temperature: Of the softmax.
        steps: Multiplications, from the same importance for all.

    Returns:
        [B, N], the root mean square over heads.
    """
    links = (deciding(logits) / temperature).softmax(-1)
    rank = links.new_full((*links.shape[:-2], 1, links.shape[-1]), 1 / links.shape[-1])
    for _ in range(steps):
        rank = rank @ links
    return rank[..., 0, :].square().mean(1).sqrt()
