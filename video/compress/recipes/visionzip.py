"""VisionZip: what is attended to stays, the rest gathers.

Source: Yang et al. 2024, arXiv:2412.04467.
"""

import torch
from torch import Tensor

from video.compress.assign import best_match, rows_of
from video.compress.budget import Pick, per_frame
from video.compress.merge import partition
from video.compress.plan import Plan
from video.compress.score import per_token
from video.compress.select import others, top


def visionzip_step(
    score_PN: Tensor,
    metric_PNC: Tensor,
    dominant: int,
    contextual: int,
    norm: str = "target_plus_mean",
) -> Plan:
    """Keep the `dominant` best tokens, and gather the rest in `contextual` of them.

    Args:
        score_PN: Attention that each token receives.
        metric_PNC: What similarity is measured on.
        dominant: Tokens that stay as they are.
        contextual: Tokens, at even distances among the rest, that the others join.
        norm: "target_plus_mean" adds the mean of those that joined to the token they joined, so
            that weights sum to 2, as published; "mean" averages all of them.

    Returns:
        Dominant tokens in order, then contextual ones in order.
    """
    if norm not in ("target_plus_mean", "mean"):
        raise ValueError(f"norm={norm!r}; choose of 'target_plus_mean', 'mean'")
    P, N = score_PN.shape
    best = top(score_PN, dominant)
    rest = others(best, N)
    contextual = min(contextual, rest.shape[1])
    if contextual == 0:
        return Plan.keep(best, N)
    targets = rest[:, :: max(1, rest.shape[1] // contextual)][:, :contextual]
    _, partner = best_match(metric_PNC, rows_of(metric_PNC, targets))
    rep = torch.cat([best, targets], dim=1)
    slots = torch.arange(rep.shape[1], device=rep.device).expand_as(rep)
    out = (partner + best.shape[1]).scatter(1, rep, slots)
    if norm == "mean":
        return partition(out, rep)
    joins = torch.ones(P, N, device=out.device).scatter(1, rep, 0)
    count = joins.new_zeros(rep.shape).scatter_add(1, out, joins)
    weight = (1 / count.clamp(min=1)).gather(1, out).where(joins > 0, 1)
    return partition(out, rep, weight, norm="sum")


def visionzip(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    metric: Tensor | None = None,
    contextual: float = 10 / 64,
    norm: str = "target_plus_mean",
) -> Plan:
    """Keep the tokens of each frame that are attended to, and gather the rest in a few.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; 64 of each frame by default.
        attention: [B, T, N] of a class token, or what each token receives.
        metric: [B, T, N, C] what similarity is measured on, e.g. keys; the tokens by default.
        contextual: Share of the outputs that the rest is gathered in.
        norm: As `visionzip_step` takes it.
    """
    B, T, N, _ = x_BTND.shape
    score = per_token(attention, x_BTND)
    metric = x_BTND if metric is None else metric

    def decide(pick: Pick, count: int) -> Plan:
        few = min(count, round(count * contextual))
        return visionzip_step(pick(score), pick(metric), count - few, few, norm)

    return per_frame(B, T, N, T * min(64, N) if keep is None else keep, decide)
