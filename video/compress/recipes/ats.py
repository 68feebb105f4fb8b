"""ATS: tokens sampled along their cumulative score.

Source: Fayyaz et al. 2022, arXiv:2111.15667.
"""

import torch
from torch import Tensor

from video.compress.budget import Pick, per_frame
from video.compress.plan import Plan
from video.compress.score import deciding, norms, per_token
from video.compress.select import top


def ats_score(attention: Tensor, values: Tensor) -> Tensor:
    """Attention times the length of the values, as shares of a frame.

    Args:
        attention: [..., N] of a class token, summed over heads.
        values: [..., N, C] of all heads.
    """
    score = deciding(attention) * norms(values)
    return score / score.sum(-1, keepdim=True).clamp(min=1e-12)


def inverse_sample(score_PN: Tensor, heights: int, drop: int = 0) -> Tensor:
    """Which tokens the cumulative score is nearest to at even heights, eq. 5 and 6.

    Args:
        score_PN: Not negative.
        heights: How many heights; a token may be nearest to several.
        drop: So many tokens of lowest score cannot be chosen.

    Returns:
        [P, N] bool.
    """
    order = score_PN.argsort(dim=1, stable=True)
    sums = score_PN.gather(1, order).cumsum(1)
    low, high = sums.amin(1, keepdim=True), sums.amax(1, keepdim=True)
    sums = (sums - low) / (high - low).clamp(min=1e-12)
    first = sums.where(sums > 0, 2).amin(1, keepdim=True).clamp(max=1)
    step = torch.linspace(0, 1, heights, device=sums.device, dtype=sums.dtype)
    wanted = first + (1 - first) * step
    chosen = (wanted[:, :, None] - sums[:, None, drop:]).abs().argmin(dim=2)
    place = order[:, drop:].gather(1, chosen)
    return torch.zeros_like(score_PN, dtype=torch.bool).scatter(1, place, True)


def ats_keep(score_PN: Tensor, chosen_PN: Tensor) -> Plan:
    """Keep the chosen tokens, of lowest score first; padded where samples differ."""
    N = score_PN.shape[1]
    rank = score_PN.argsort(dim=1, stable=True).argsort(dim=1)
    slot = rank.where(chosen_PN, N).argsort(dim=1, stable=True)
    K = int(chosen_PN.sum(1).max())
    rep = slot[:, :K].where(torch.arange(K, device=slot.device) < chosen_PN.sum(1)[:, None], -1)
    batch, out = (rep >= 0).nonzero(as_tuple=True)
    return Plan.build(batch, out, rep[batch, out], torch.ones_like(score_PN[batch, out]), rep, N)


def ats(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    values: Tensor | None = None,
    heights: int | None = None,
) -> Plan:
    """Sample tokens of each frame evenly along the sum of their scores.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly: where sampling finds fewer, the best others fill up.
        attention: [B, T, N] of a class token, or what each token receives.
        values: [B, T, N, C] of the attention; the tokens by default.
        heights: Without `keep`: samples of each frame; half as many as tokens by default. Fewer
            tokens may be kept, and another number of each frame.
    """
    B, T, N, _ = x_BTND.shape
    score = ats_score(per_token(attention, x_BTND), x_BTND if values is None else values)
    if keep is None:
        flat = score.flatten(0, 1)
        heights = min(N, -(-N // 2) if heights is None else heights)
        return ats_keep(flat, inverse_sample(flat, heights, N - heights)).fold(T).dense()

    def decide(pick: Pick, count: int) -> Plan:
        some = pick(score)
        chosen = inverse_sample(some, count, N - count)
        index = top(some + 2 * chosen, count)  # scores are at most 1
        filled = torch.zeros_like(chosen).scatter(1, index, True)
        return ats_keep(some, filled)

    return per_frame(B, T, N, keep, decide)
