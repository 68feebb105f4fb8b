"""Token-level correlation: frames that repeat themselves keep less.

Source: Zhang et al. 2024, arXiv:2407.14439. Known from the paper only: how much stays follows from
how much of a picture repeats, and which tokens from what a class token attends to; the details are
ours.
"""

import torch
from torch import Tensor

from video.compress.budget import share
from video.compress.merge import keep_ranked
from video.compress.plan import Plan
from video.compress.score import blocks, cosine_matrix, per_token


def novelty(x_PND: Tensor, threshold: float) -> Tensor:
    """Share of the tokens of each frame that no token before them in it is like: [P]."""
    P, N, _ = x_PND.shape
    earlier = torch.ones(N, N, dtype=torch.bool, device=x_PND.device).tril(-1)
    parts = [
        (cosine_matrix(x_PND[part], x_PND[part]) > threshold).logical_and_(earlier).any(2)
        for part in blocks(P, N * N, x_PND, scale=64)
    ]
    return 1 - torch.cat(parts).float().mean(1)


def token_correlation(
    x_BTND: Tensor, keep: int | None = None, *, attention: Tensor, threshold: float = 0.8
) -> Plan:
    """Keep the best tokens of each frame, more of those frames that repeat themselves less.

    Known from the paper only.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly, shared over frames by how little they repeat.
            Without, as many of each frame as no token before them is like.
        attention: [B, T, N] of a class token, or what each token receives.
        threshold: Cosine above which tokens are alike.
    """
    B, T, N, _ = x_BTND.shape
    fresh = novelty(x_BTND.flatten(0, 1), threshold).view(B, T)
    counts = (N * fresh).round().long() if keep is None else share(keep, fresh, N)
    return keep_ranked(per_token(attention, x_BTND), counts, keep)
