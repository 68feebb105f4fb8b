"""ToMe: bipartite soft matching.

Source: Bolya et al. 2023, arXiv:2210.09461.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from video.compress.assign import best_match
from video.compress.budget import Keep, Pick, per_frame
from video.compress.merge import partition, representatives
from video.compress.plan import Plan
from video.compress.select import ranks


def tome_round(
    metric_PND: Tensor,
    r: int,
    size_PN: Tensor | None = None,
    *,
    protect: int = 0,
    in_order: bool = False,
    source_PN: Tensor | None = None,
    norm: str = "size",
) -> Plan:
    """Merge `r` tokens at even places into their most similar token at an odd place.

    Args:
        metric_PND: What similarity is measured on.
        r: Tokens that go; at most half of those not protected.
        size_PN: How many tokens each already stands for.
        protect: 1 for a class token in front, 2 for a distillation token after it as well.
        in_order: Even tokens that stay keep their order; it is so where tokens are protected.
        source_PN: How much of each token counts where it is merged into another; all by default.
        norm: "size" for averages by size, "mean" for plain averages.

    Returns:
        Outputs: even tokens that stay, most similar first, then all odd ones.
    """
    P, N, _ = metric_PND.shape
    r = max(0, min(r, (N - protect) // 2))
    if r == 0:
        return Plan.identity(P, N, metric_PND.device, size_PN)
    skip = protect == 2
    best, partner = best_match(metric_PND[:, ::2], metric_PND[:, 1 + 2 * skip :: 2])
    if protect:
        best[:, 0] = -torch.inf
    merged = ranks(best) < r
    num_left = best.shape[1] - r
    place = (~merged).cumsum(1) - 1 if in_order or protect else ranks(best) - r
    out = partner.new_empty(P, N)
    out[:, ::2] = (partner + skip + num_left).where(merged, place)
    out[:, 1::2] = torch.arange(N // 2, device=out.device) + num_left
    if skip:  # the two protected tokens come first
        out += ((out > 0) & (out < num_left)).long()
        out[:, 1] = 1
    stays = torch.ones_like(out, dtype=torch.bool)
    stays[:, ::2] = ~merged
    weight = torch.ones_like(out, dtype=torch.float32) if size_PN is None else size_PN
    if source_PN is not None:
        weight = weight * source_PN.where(~stays, 1)
    return partition(
        out,
        representatives(out, stays, N - r),
        torch.ones_like(weight) if norm == "mean" else None,
        None if size_PN is source_PN is None else weight,
    )


def tome_to(
    metric_PND: Tensor, keep: int, size_PN: Tensor | None = None, norm: str = "size"
) -> Plan:
    """Rounds of merging, on what the last one made, until `keep` tokens are left."""
    plan = tome_round(metric_PND, metric_PND.shape[1] - keep, size_PN, norm=norm)
    while plan.num_out > keep:
        metric = plan.apply(metric_PND)
        plan = plan.then(tome_round(metric, plan.num_out - keep, plan.size, norm=norm))
    return plan


def tome(
    x_BTND: Tensor,
    keep: Keep | None = None,
    *,
    r: int | None = None,
    scope: str = "frame",
    metric: Tensor | None = None,
    size: Tensor | None = None,
) -> Plan:
    """Average tokens with their most similar ones, in rounds that at most halve them.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample (or frame), exactly.
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
        metric, size = (
            metric.flatten(1, 2)[:, None],
            None if size is None else size.reshape(B, 1, -1),
        )
        T, N = 1, T * N
    if keep is None:
        keep = T * max(N - (N // 2 if r is None else r), N - N // 2)

    def decide(pick: Pick, count: int) -> Plan:
        return tome_to(pick(metric), count, None if size is None else pick(size))

    return per_frame(B, T, N, keep, decide)


def tome_kth(metric_PND: Tensor, k: int, size_PN: Tensor | None = None, norm: str = "size") -> Plan:
    """Merge all but the last of every `k` tokens into the most similar of those last ones.

    Tokens after the last whole group are dropped.
    """
    P, N, _ = metric_PND.shape
    whole = N // k * k
    _, partner = best_match(metric_PND[:, :whole], metric_PND[:, k - 1 : whole : k])
    partner[:, k - 1 :: k] = torch.arange(N // k, device=partner.device)
    rep = torch.arange(k - 1, whole, k, device=partner.device).expand(P, N // k)
    weight = None if norm == "size" else torch.ones_like(partner, dtype=torch.float32)
    plan = partition(partner, rep, weight, None if size_PN is None else size_PN[:, :whole])
    index = torch.arange(whole, device=partner.device).expand(P, whole)
    return plan if whole == N else Plan.keep(index, N).then(plan)


def merge_schedule(r: int | list[int], num_layers: int, inflect: float = 0.0) -> list[int]:
    """Merges of every layer of an encoder.

    Args:
        r: Merges of each layer on average, or of each of the first layers.
        num_layers: Layers.
        inflect: 0 for the same everywhere, 1 for more and more from 0 to 2 r, -1 the other way.
    """
    if isinstance(r, list):
        return r + [0] * (num_layers - len(r))
    first = int(r * (1 - inflect))
    step = 2 * (r - first) / max(1, num_layers - 1)
    return [int(first + step * layer) for layer in range(num_layers)]


def proportional_attention(q: Tensor, k: Tensor, v: Tensor, size_BN: Tensor | None) -> Tensor:
    """Attention in which a token counts as many times as the tokens it stands for.

    Args:
        q: [B, H, N, K] queries.
        k: Keys.
        v: Values.
        size_BN: How many tokens each stands for.
    """
    bias = None if size_BN is None else size_BN.log()[:, None, None].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
