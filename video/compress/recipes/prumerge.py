"""LLaVA-PruMerge: what stands out stays, with what is like it.

Source: Shang et al. 2024, arXiv:2403.15388.
"""

import torch
from torch import Tensor

from video.compress.assign import best_matches
from video.compress.budget import Pick, outliers, per_frame
from video.compress.plan import Plan
from video.compress.score import per_token
from video.compress.select import ranks


def prumerge_step(
    attention_PN: Tensor,
    metric_PNC: Tensor,
    counts_P: Tensor,
    neighbours: int = 32,
    stride_P: Tensor | None = None,
) -> Plan:
    """Keep the best tokens, each with what is like it, and sum up what is left.

    Args:
        attention_PN: Of a class token.
        metric_PNC: What similarity is measured on.
        counts_P: Tokens that are kept for their attention.
        neighbours: Of each kept token, the most similar ones, kept or not, are added to it,
            weighted by their attention.
        stride_P: Further keep every so manieth token (PruMerge+).

    Returns:
        Kept tokens, of highest attention first, then those for the stride in order, then the
        others weighted by their attention. A token may count in several; weights are not
        normalised. Padded where counts differ.
    """
    P, N = attention_PN.shape
    rank = ranks(attention_PN)
    kept = rank < counts_P[:, None]
    index = torch.arange(N, device=kept.device)
    if stride_P is not None:
        kept |= (index % stride_P[:, None] == 0) & (index < N - 1)
    order = rank.where(rank < counts_P[:, None], N + index).where(kept, 3 * N + index)
    slot = order.argsort(dim=1).argsort(dim=1)
    num_kept = kept.sum(1)
    K = int(num_kept.max())
    rep = torch.full((P, K + 2), -1, device=kept.device)  # those not kept write past the end
    rep = rep.scatter(1, slot.where(kept, K + 1), index.expand(P, N))[:, : K + 1]
    best_left = attention_PN.masked_fill(kept, -torch.inf).argmax(dim=1)
    rep.scatter_(1, num_kept[:, None], best_left.where(num_kept < N, -1)[:, None])
    neighbours = min(neighbours, N - 1)
    of = rep[:, :K].clamp(min=0)
    near = best_matches(metric_PNC, of, neighbours)
    exists = torch.arange(K, device=kept.device) < num_kept[:, None]
    batch, out = exists.nonzero(as_tuple=True)
    rest_batch, rest = (~kept).nonzero(as_tuple=True)
    wide = batch.repeat_interleave(neighbours)
    src = torch.cat([of[batch, out], near[batch, out].flatten(), rest])
    batches = torch.cat([batch, wide, rest_batch])
    weight = attention_PN[batches, src]
    weight[: len(batch)] = 1
    outs = torch.cat([out, out.repeat_interleave(neighbours), num_kept[rest_batch]])
    return Plan.build(batches, outs, src, weight, rep, N)


def prumerge(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    metric: Tensor | None = None,
    ratio: float | None = None,
    plus: bool = False,
    neighbours: int = 32,
    upstream_batch: bool = False,
) -> Plan:
    """Keep the tokens of each frame that stand out in attention, with what is like them.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; the one of the others is among them.
        attention: [B, T, N] of a class token, or what each token receives.
        metric: [B, T, N, C] what similarity is measured on, e.g. keys; the tokens by default.
        ratio: Without `keep`: share that stays. By default the outliers of each frame stay.
        plus: Without `keep`: further keep tokens at even distances, three times as many.
        neighbours: Of each kept token, how many are added to it.
        upstream_batch: Do as the published code: outliers are those of all frames of the batch
            together, and all frames keep the same number.
    """
    B, T, N, _ = x_BTND.shape
    score = per_token(attention, x_BTND)
    metric = x_BTND if metric is None else metric
    if keep is not None:

        def decide(pick: Pick, count: int) -> Plan:
            some = pick(score)
            counts = torch.full((len(some),), count - (count < N), device=some.device)
            return prumerge_step(some, pick(metric), counts, neighbours).dense()

        return per_frame(B, T, N, keep, decide)
    flat = score.flatten(0, 1)
    if ratio is None and upstream_batch:
        ratio = int(outliers(flat.view(1, -1)).sum()) / flat.numel()
    if ratio is None:
        counts = outliers(flat).sum(1)
        every = N // counts.clamp(min=1)
    else:
        counts = torch.full((B * T,), int(N * ratio), device=score.device)
        every = torch.full_like(counts, int(1 / max(ratio, 1 / N)))
    stride = (every // 3).clamp(min=1) if plus else None
    step = prumerge_step(flat, metric.flatten(0, 1), counts, neighbours, stride)
    return step.fold(T).dense()
