"""vid-TLDR: background adds little.

Source: Choi et al. 2024, arXiv:2403.13347.
"""

from torch import Tensor

from video.compress.budget import Pick, per_frame
from video.compress.plan import Plan
from video.compress.recipes.tome import tome_round
from video.compress.score import negative_entropy


def saliency(attention_PNN: Tensor) -> Tensor:
    """Sharpness of the attention of every query, from 0 to 1 in each sample: [P, N]."""
    score = negative_entropy(attention_PNN)
    score = score - score.amin(1, keepdim=True)
    return score / score.amax(1, keepdim=True).clamp(min=1e-12)


def foreground(saliency_PN: Tensor) -> Tensor:
    """How far above the mean the saliency is, from 0 to 1; all ones where it is all alike."""
    above = saliency_PN - saliency_PN.mean(1, keepdim=True)
    most = above.amax(1, keepdim=True)
    return (above / most.clamp(min=1e-12)).clamp(min=0).where(most > 0, 1)


def vid_tldr_round(
    x_PND: Tensor, saliency_PN: Tensor, r: int, size_PN: Tensor | None = None
) -> Plan:
    """Merge `r` tokens, of which only what is salient counts; sizes become fractions."""
    source = foreground(saliency_PN)
    return tome_round(x_PND, r, size_PN, in_order=True, source_PN=source)


def vid_tldr(x_BTND: Tensor, keep: int | None = None, *, attention: Tensor, r: float = 0.5) -> Plan:
    """Merge similar tokens early, weighting those that go by the sharpness of their attention.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly. Rounds after the first use the averages of the
            saliency, where the published code has a next layer's attention.
        attention: [B, T, N, N] to merge inside frames, [B, T * N, T * N] over the whole.
        r: Without `keep`: tokens that go, or the share below 1.
    """
    B, T, N, _ = x_BTND.shape
    if attention.shape != (B, T, N, N):
        if attention.shape != (B, T * N, T * N):
            raise ValueError("vid_tldr needs attention of every query: [B, T, N, N] or the whole")
        x_BTND, attention, T, N = x_BTND.flatten(1, 2)[:, None], attention[:, None], 1, T * N
    if keep is None:
        keep = T * max(N - (int(N * r) if r < 1 else int(r)), N - N // 2)

    def decide(pick: Pick, count: int) -> Plan:
        x, score = pick(x_BTND), saliency(pick(attention))
        plan = vid_tldr_round(x, score, N - count)
        while plan.num_out > count:
            last = vid_tldr_round(plan.apply(x), plan.apply(score), plan.num_out - count, plan.size)
            plan = plan.then(last)
        return plan

    return per_frame(B, T, N, keep, decide)
