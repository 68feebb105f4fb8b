"""ToMe: bipartite soft matching. Source: Bolya et al. 2023, arXiv:2210.09461, section 3."""

import torch
from torch import Tensor

from video.compress.assign import best_match
from video.compress.budget import per_frame
from video.compress.merge import partition
from video.compress.plan import Plan


def tome_round(
    metric_PND: Tensor,
    r: int,
    size_PN: Tensor | None = None,
    class_token: bool = False,
) -> Plan:
    """Merge `r` tokens at even places into their most similar token at an odd place.

    Args:
        metric_PND: What similarity is measured on.
        r: Tokens that go; at most half of those not protected.
        size_PN: How many tokens each already stands for.
        class_token: The first token stays; the order is then that of the tokens.

    Returns:
        Outputs: even tokens that stay, most similar first, then all odd ones.
    """
    P, N, _ = metric_PND.shape
    r = max(0, min(r, (N - class_token) // 2))
    if r == 0:
        return Plan.identity(P, N, metric_PND.device)
    best, partner = best_match(metric_PND[:, ::2], metric_PND[:, 1::2])
    if class_token:
        best[:, 0] = -torch.inf
    num_even = best.shape[1]
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merged = rank < r
    place = (~merged).cumsum(1) - 1 if class_token else rank - r
    out = rank.new_empty(P, N)
    out[:, ::2] = (partner + num_even - r).where(merged, place)
    out[:, 1::2] = torch.arange(N // 2, device=out.device) + num_even - r
    rep = out.new_empty(P, N - r)
    index = torch.arange(N, device=out.device).expand(P, N)
    stays = torch.ones_like(out, dtype=torch.bool)
    stays[:, ::2] = ~merged
    slot = out.where(stays, N - r)  # merged ones write past the end
    rep = out.new_empty(P, N - r + 1).scatter(1, slot, index)[:, : N - r]
    return partition(out, rep, size_PN=size_PN)


def tome(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    r: int | None = None,
    scope: str = "frame",
    metric: Tensor | None = None,
    size: Tensor | None = None,
) -> Plan:
    """Average tokens with their most similar ones, in rounds that at most halve them.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly.
        r: Without `keep`: merges per frame (or video) in a single round; half by default.
        scope: "frame" to match inside frames, "video" to match all tokens.
        metric: [B, T, N, C] what similarity is measured on, e.g. keys; the tokens by default.
        size: [B, T, N] how many tokens each already stands for.
    """
    if scope not in ("frame", "video"):
        raise ValueError(f"scope={scope!r}; choose of 'frame', 'video'")
    B, T, N, _ = x_BTND.shape
    metric = x_BTND if metric is None else metric
    if scope == "video":
        metric, size = metric.flatten(1, 2)[:, None], size if size is None else size.view(B, 1, -1)
        T, N = 1, T * N
    if keep is None:
        keep = T * max(N - (N // 2 if r is None else r), N - N // 2)

    def decide(index: list[int], count: int) -> Plan:
        frames = metric if len(index) == T else metric[:, index]
        sizes = None if size is None else size[:, index].flatten(0, 1)
        return tome_to(frames.flatten(0, 1), count, sizes)

    return per_frame(B, T, N, keep, decide)


def tome_to(metric_PND: Tensor, keep: int, size_PN: Tensor | None = None) -> Plan:
    """Rounds of merging until `keep` tokens are left."""
    plan = tome_round(metric_PND, metric_PND.shape[1] - keep, size_PN)
    while plan.num_out > keep:
        metric = plan.apply(metric_PND)
        plan = plan.then(tome_round(metric, plan.num_out - keep, plan.size))
    return plan
