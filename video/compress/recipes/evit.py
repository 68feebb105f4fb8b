"""EViT: what is not attended to becomes one token.

Source: Liang et al. 2022, arXiv:2202.07800.
"""

from math import ceil

import torch
from torch import Tensor

from video.compress.budget import Pick, per_frame
from video.compress.plan import Plan
from video.compress.score import per_token
from video.compress.select import others, top


def evit_step(attention_PN: Tensor, keep: int, fuse: bool = True) -> Plan:
    """Keep the `keep` tokens of highest attention, highest first, then the sum of the others.

    Args:
        attention_PN: Of a class token to the others, which it is not among.
        keep: Tokens that stay as they are.
        fuse: Add a last token: the others, weighted by their attention as it is.
    """
    P, N = attention_PN.shape
    best = top(attention_PN, keep, order="score")
    keep = best.shape[1]
    if not fuse or keep == N:
        return Plan.keep(best, N)
    rest = others(best, N)
    weight = attention_PN.gather(1, rest)
    fused = rest.gather(1, weight.argmax(dim=1, keepdim=True))
    device, ones = best.device, torch.ones_like(best, dtype=weight.dtype)
    return Plan(
        batch=torch.arange(P, device=device).repeat_interleave(N),
        out=torch.arange(N, device=device).clamp(max=keep).repeat(P),
        src=torch.cat([best, rest], dim=1).flatten(),
        weight=torch.cat([ones, weight], dim=1).flatten(),
        rep=torch.cat([best, fused], dim=1),
        size=torch.cat([ones, ones.new_full((P, 1), N - keep)], dim=1),
        num_in=N,
    )


def evit(x_BTND: Tensor, keep: int | None = None, *, attention: Tensor, rate: float = 0.7) -> Plan:
    """Keep the tokens of each frame that are attended to, and sum up the others in one.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; the one of the others is among them.
        attention: [B, T, N] of a class token, or what each token receives.
        rate: Without `keep`: share of the tokens that stays.
    """
    B, T, N, _ = x_BTND.shape
    score = per_token(attention, x_BTND)
    keep = T * min(N, ceil(rate * N) + 1) if keep is None else keep

    def decide(pick: Pick, count: int) -> Plan:
        return evit_step(pick(score), count if count == N else count - 1)

    return per_frame(B, T, N, keep, decide)
