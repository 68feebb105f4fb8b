"""From an assignment of tokens to outputs to a plan.

Shape suffixes: P independent problems, N tokens, K outputs.
"""

from dataclasses import replace

import torch
from torch import Tensor

from video.compress.plan import Plan
from video.compress.select import ranks


def partition(
    out_PN: Tensor,
    rep_PK: Tensor,
    weight_PN: Tensor | None = None,
    size_PN: Tensor | None = None,
    norm: str = "mean",
) -> Plan:
    """Every token goes to one output.

    Args:
        out_PN: The output of each token, 0 .. K - 1.
        rep_PK: The token that stands for each output.
        weight_PN: Weights of the tokens in their output; their sizes by default, or all alike.
        size_PN: How many tokens each one already stands for; 1 by default.
        norm: "mean" for weights that sum to 1 in each output, "sum" for weights as they are.
    """
    P, N = out_PN.shape
    K = rep_PK.shape[1]
    size = torch.ones_like(out_PN, dtype=torch.float32) if size_PN is None else size_PN
    weight = size if weight_PN is None else weight_PN
    sums = size.new_zeros(P, K).scatter_add(1, out_PN, size)
    if norm == "mean":
        total = weight.new_zeros(P, K).scatter_add(1, out_PN, weight)
        weight = weight / total.gather(1, out_PN)
    order = out_PN.argsort(dim=1, stable=True)
    return Plan(
        batch=torch.arange(P, device=out_PN.device).repeat_interleave(N),
        out=out_PN.gather(1, order).flatten(),
        src=order.flatten(),
        weight=weight.gather(1, order).flatten(),
        rep=rep_PK,
        size=sums,
        num_in=N,
        sized=size_PN is not None,
    )


def representatives(out_PN: Tensor, stays_PN: Tensor, K: int) -> Tensor:
    """The one token of each output that stays: [P, K]; -1 for outputs without."""
    index = torch.arange(out_PN.shape[1], device=out_PN.device).expand_as(out_PN)
    rep = out_PN.new_full((len(out_PN), K + 1), -1)  # the others write past the end
    return rep.scatter(1, out_PN.where(stays_PN, K), index)[:, :K]


def best_of_each(out_PN: Tensor, score_PN: Tensor, K: int) -> Tensor:
    """The token of highest score of each output: [P, K]; the first where equal.

    Every output 0 .. K - 1 must have a token.
    """
    order = score_PN.argsort(dim=1, descending=True, stable=True)
    by_out = out_PN.gather(1, order).argsort(dim=1, stable=True)
    order = order.gather(1, by_out)
    slots = torch.arange(K, device=order.device).expand(len(order), K).contiguous()
    first = torch.searchsorted(out_PN.gather(1, order).contiguous(), slots)
    return order.gather(1, first)


def keep_ranked(score_BTN: Tensor, counts_BT: Tensor, total: int | None = None) -> Plan:
    """Keep the best of each frame, as many as its count, in order; padded where samples differ."""
    B, T, N = score_BTN.shape
    kept = (ranks(score_BTN.flatten(0, 1)) < counts_BT.flatten()[:, None]).view(B, T * N)
    index = (~kept).long().argsort(dim=1, stable=True)
    if total is not None:
        return Plan.keep(index[:, :total], T * N)
    num = kept.sum(1)
    index = index[:, : int(num.max())]
    rep = index.where(torch.arange(index.shape[1], device=index.device) < num[:, None], -1)
    batch, out = (rep >= 0).nonzero(as_tuple=True)
    one = torch.ones(len(batch), device=index.device)
    return Plan.build(batch, out, rep[batch, out], one, rep, T * N)


def distinct(plan: Plan) -> Plan:
    """The same outputs, no two represented by the same source while there are enough.

    Where outputs share members, as levels of clusters do, the first keeps its representative;
    others take the member of largest weight that is free, or else the nearest free source.
    """
    order = plan.rep.argsort(dim=1, stable=True)
    rep = plan.rep.gather(1, order)
    again = torch.zeros_like(rep, dtype=torch.bool)
    again[:, 1:] = (rep[:, 1:] == rep[:, :-1]) & (rep[:, 1:] >= 0)
    again = torch.zeros_like(again).scatter(1, order, again)
    if not bool(again.any()):
        return plan
    rows, repeated = plan.rep.tolist(), again.tolist()
    starts = [*plan.bags()[1].tolist(), len(plan.src)]
    members = list(zip(plan.weight.tolist(), plan.src.tolist(), strict=True))
    for b, (row, repeats) in enumerate(zip(rows, repeated, strict=True)):
        taken = {at for at, repeat in zip(row, repeats, strict=True) if not repeat}
        for out in (out for out, repeat in enumerate(repeats) if repeat):
            start, stop = starts[b * plan.num_out + out :][:2]
            free = [(-weight, at) for weight, at in members[start:stop] if at not in taken]
            if not free:
                left = (at for at in range(plan.num_in) if at not in taken)
                free = [(abs(at - row[out]), at) for at in left]
            row[out] = min(free, default=(0, row[out]))[1]
            taken.add(row[out])
    return replace(plan, rep=torch.tensor(rows, device=plan.rep.device))
