"""MCTF: similarity, information and size decide together.

Source: Lee et al. 2024, arXiv:2403.10030.
"""

import torch
from torch import Tensor

from video.compress.budget import Pick, per_frame
from video.compress.merge import partition, representatives
from video.compress.plan import Plan
from video.compress.score import deciding, norms, per_token
from video.compress.select import ranks


def mctf_round(
    x_PND: Tensor,
    received_PN: Tensor,
    r: int,
    size_PN: Tensor | None = None,
    *,
    protect: int = 0,
    temperatures: tuple[float, float, float] = (1, 20, 40),
    both_ways: bool = True,
    norm: str = "attention",
) -> Plan:
    """Merge `r` tokens between even and odd places.

    Args:
        x_PND: What similarity is measured on.
        received_PN: Attention that each token receives.
        r: Tokens that go.
        size_PN: How many tokens each already stands for.
        protect: Tokens in front that stay.
        temperatures: Of similarity, information and size; larger ones count less.
        both_ways: Half of them go from even to odd places, the others back to even ones that stay.
        norm: Averages by "size", by "attention" (received, times size) or plain ("mean").

    Returns:
        Even tokens that stay in order, then odd ones; both ways: these the most similar first.
    """
    P, N, _ = x_PND.shape
    r = max(0, min(r, (N - protect) // 2))
    if r == 0:
        return Plan.identity(P, N, x_PND.device, size_PN)
    size = torch.ones_like(received_PN) if size_PN is None else size_PN
    weight = attraction(x_PND, received_PN, size, temperatures)
    weight[:, : (protect + 1) // 2] = -torch.inf
    num_even, num_odd = weight.shape[1:]
    first = r // 2 if both_ways else r
    best, partner = weight.max(dim=2)
    gone = ranks(best) < first
    out = partner.new_empty(P, N)
    left = num_even - first
    out[:, ::2] = (~gone).cumsum(1) - 1
    stays = torch.ones_like(out, dtype=torch.bool)
    stays[:, ::2] = ~gone
    odd_out = torch.arange(num_odd, device=out.device).expand(P, -1) + left
    if both_ways:
        back = weight.masked_fill(gone[..., None], -torch.inf)
        best_back, partner_back = back.max(dim=1)
        place = ranks(best_back)
        returns = place < r - first
        odd_out = out[:, ::2].gather(1, partner_back).where(returns, left + place - (r - first))
        stays[:, 1::2] = ~returns
    out[:, 1::2] = odd_out
    out[:, ::2] = odd_out.gather(1, partner).where(gone, out[:, ::2])
    by = {
        "size": size,
        "attention": received_PN.clamp(min=1e-12) * size,
        "mean": torch.ones_like(size),
    }
    return partition(out, representatives(out, stays, N - r), by[norm], size_PN)


def attraction(
    x_PND: Tensor, received_PN: Tensor, size_PN: Tensor, temperatures: tuple[float, float, float]
) -> Tensor:
    """What draws even tokens to odd ones: [P, even, odd]."""
    similarity, information, small = temperatures
    metric = deciding(x_PND) / norms(x_PND)[..., None]
    weight = ((metric[:, ::2] @ metric[:, 1::2].transpose(1, 2) + 1) / 2).clamp(min=0)
    weight = weight ** (1 / similarity)
    for value, temperature in ((received_PN, information), (size_PN, small)):
        inverse = 1 / value.clamp(min=1e-12)
        inverse = inverse / inverse.amax(1, keepdim=True)
        weight *= (inverse[:, ::2, None] * inverse[:, None, 1::2]) ** (1 / temperature)
    return weight


def mctf(
    x_BTND: Tensor, keep: int | None = None, *, attention: Tensor, norm: str = "attention"
) -> Plan:
    """Merge similar tokens of each frame that say little and are small.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; three quarters by default.
        attention: [B, T, N, N], or what each token receives, [B, T, N]. In rounds after the first
            merged tokens have the sum of what theirs received.
        norm: As `mctf_round` takes it.
    """
    B, T, N, _ = x_BTND.shape
    row = per_token(attention, x_BTND)

    def decide(pick: Pick, count: int) -> Plan:
        x, score = pick(x_BTND), pick(row)
        plan = mctf_round(x, score, N - count, norm=norm)
        while plan.num_out > count:
            r = plan.num_out - count
            last = mctf_round(plan.apply(x), plan.apply(score, "sum"), r, plan.size, norm=norm)
            plan = plan.then(last)
        return plan

    return per_frame(B, T, N, T * (N - N // 4) if keep is None else keep, decide)
