"""Entropies of soft code assignments, in nats.

Shape suffixes: G groups (or codebooks), N tokens, V codes.
"""

from __future__ import annotations

from torch import Tensor


def entropy_terms(scores_GNV: Tensor, temperature: float, form: str) -> tuple[Tensor, Tensor]:
    """How sure each token is of its code, and how evenly the batch uses the codes.

    Args:
        scores_GNV: How well every code suits every token, e.g. minus their squared distance.
        temperature: Of the softmax over codes.
        form: What logarithms see where a probability p may vanish. "exact": p for tokens and
            p + 1e-5 for the batch (MAGVIT-v2, arXiv:2310.05737, and VQ that follows it);
            "clamped": p but at least 1e-5 (VidTok); "added": p + 1e-8 (BSQ-ViT, arXiv:2406.07548).

    Returns:
        [G] mean entropy of a token, [G] entropy of the mean distribution.
    """
    # As each source rounds: at a temperature of 0.01 the last bit of a logit shows in the result.
    logits_GNV = scores_GNV / temperature if form == "exact" else scores_GNV * (1 / temperature)
    p_GNV = logits_GNV.softmax(-1)
    mean_GV = p_GNV.mean(1)
    if form == "exact":
        log_p_GNV, log_mean_GV = logits_GNV.log_softmax(-1), (mean_GV + 1e-5).log()
    elif form == "clamped":
        log_p_GNV, log_mean_GV = p_GNV.clamp(min=1e-5).log(), mean_GV.clamp(min=1e-5).log()
    else:
        log_p_GNV, log_mean_GV = (p_GNV + 1e-8).log(), (mean_GV + 1e-8).log()
    return -(p_GNV * log_p_GNV).sum(-1).mean(1), -(mean_GV * log_mean_GV).sum(-1)
