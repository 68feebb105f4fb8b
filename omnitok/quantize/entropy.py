"""Entropies of soft code assignments, in nats.

Shape suffixes: G groups (or codebooks), N tokens, V codes.
"""

from __future__ import annotations

from torch import Tensor


def entropy_terms(logits_GNV: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """How sure each token is of its code, and how evenly the batch uses the codes.

    Args:
        logits_GNV: Scores of every code for every token.
        form: What logarithms see where a probability p may vanish. "exact": p for tokens and
            p + 1e-5 for the batch (MAGVIT-v2, arXiv:2310.05737, and VQ that follows it);
            "clamped": p but at least 1e-5 (VidTok); "added": p + 1e-8 (BSQ-ViT, arXiv:2406.07548).

    Returns:
        [G] mean entropy of a token, [G] entropy of the mean distribution.
    """
    p_GNV = logits_GNV.softmax(-1)
    mean_GV = p_GNV.mean(1)
    if form == "exact":
        log_p_GNV, log_mean_GV = logits_GNV.log_softmax(-1), (mean_GV + 1e-5).log()
    elif form == "clamped":
        log_p_GNV, log_mean_GV = p_GNV.clamp(min=1e-5).log(), mean_GV.clamp(min=1e-5).log()
    else:
        log_p_GNV, log_mean_GV = (p_GNV + 1e-8).log(), (mean_GV + 1e-8).log()
    return -(p_GNV * log_p_GNV).sum(-1).mean(1), -(mean_GV * log_mean_GV).sum(-1)
