"""From an assignment of tokens to outputs to a plan.

Shape suffixes: P independent problems, N tokens, K outputs.
"""

import torch
from torch import Tensor

from video.compress.plan import Plan


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
