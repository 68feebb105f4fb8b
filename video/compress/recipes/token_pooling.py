"""Token pooling: weighted clusters.

Source: Marin et al. 2021, arXiv:2110.03860. Known from the paper only.
"""

import torch
from torch import Tensor

from video.compress.assign import nearest, rows_of
from video.compress.budget import Keep, Pick, per_frame
from video.compress.merge import best_of_each, partition
from video.compress.plan import Plan
from video.compress.score import deciding, per_token
from video.compress.select import top


def weighted_clusters(
    x_PND: Tensor, weight_PN: Tensor, count: int, steps: int = 5, medoids: bool = False
) -> Plan:
    """K-means from the tokens of largest weight; no cluster is ever empty.

    The token nearest to a centre stays in its cluster, even where another centre is as near.

    Args:
        x_PND: Tokens.
        weight_PN: Of each in the averages, not negative.
        count: Clusters.
        steps: Of assigning and averaging.
        medoids: Keep the token nearest to the average, and not the average.
    """
    x, weight = deciding(x_PND), weight_PN.clamp(min=1e-12)
    rep = top(weight_PN, count)
    own = torch.arange(rep.shape[1], device=rep.device).expand_as(rep)
    centres = rows_of(x, rep)
    for _ in range(steps):
        label = nearest(x, centres).scatter(1, rep, own)
        plan = partition(label, rep, weight)
        centres = plan.apply(x)
        away = (x - rows_of(centres, label)).square().sum(-1)
        rep = best_of_each(label, -away, rep.shape[1])
        if medoids:
            centres = rows_of(x, rep)
    plan = partition(label, rep, weight)
    return Plan.keep(rep, x.shape[1]) if medoids else plan


def token_pooling(
    x_BTND: Tensor,
    keep: Keep | None = None,
    *,
    attention: Tensor | None = None,
    steps: int = 5,
    medoids: bool = False,
) -> Plan:
    """Average clusters of each frame, weighting tokens by the attention that they receive.

    Known from the paper only.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample (or frame), exactly; a quarter by default.
        attention: [B, T, N], or matrices; all tokens weigh the same without.
        steps: Of clustering.
        medoids: Keep the token nearest to each average, and not the average.
    """
    B, T, N, _ = x_BTND.shape
    if attention is None:
        weight = torch.ones(B, T, N, device=x_BTND.device)
    else:
        weight = per_token(attention, x_BTND)

    def decide(pick: Pick, count: int) -> Plan:
        return weighted_clusters(pick(x_BTND), pick(weight), count, steps, medoids)

    return per_frame(B, T, N, T * -(-N // 4) if keep is None else keep, decide)
