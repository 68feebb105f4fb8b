"""LLaMA-VID: a frame is one token of context and few of content.

Source: Li et al. 2023, arXiv:2311.17043. Its projections are linear, and apply after the plan.
"""

from dataclasses import replace

import torch
from torch import Tensor

from video.compress import pool
from video.compress.budget import Pick, per_frame
from video.compress.plan import Plan
from video.compress.positions import frame_grid
from video.compress.score import deciding


def context_weights(query_PLC: Tensor, key_PNC: Tensor) -> Tensor:
    """What text queries attend to in a frame, on average: [P, N], of sum 1."""
    logits: Tensor = deciding(query_PLC) @ deciding(key_PNC).transpose(1, 2)
    logits = logits / key_PNC.shape[2] ** 0.5
    return logits.softmax(2).mean(1)


def context(weight_PN: Tensor, content: Plan | None = None) -> Plan:
    """One token that sums a frame by weights, then its content.

    The token of largest weight that represents no content represents the sum.
    """
    N = weight_PN.shape[1]
    plan = pool.weighted(torch.arange(N, device=weight_PN.device)[None], weight_PN[:, None], N)
    if content is None:
        return plan
    taken = torch.zeros_like(weight_PN).scatter(1, content.rep, 2)
    free = (weight_PN - taken).argmax(1, keepdim=True)
    return Plan.concat([replace(plan, rep=free), content])


def llama_vid(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    text: Tensor,
    grid: tuple[int, ...] | None = None,
) -> Plan:
    """Sum each frame by what a text attends to, and average it in few windows.

    Args:
        x_BTND: Tokens, which are the keys.
        keep: Outputs of each sample, exactly; one of context and one of content by default.
        text: [B, L, D] queries.
        grid: (h, w) of a frame.
    """
    B, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    queries = text[:, None].expand(-1, T, -1, -1)

    def decide(pick: Pick, count: int) -> Plan:
        weight = context_weights(pick(queries), pick(x_BTND))
        if count == 1:
            return context(weight)
        label = pool.bands(h, w, count - 1, x_BTND.device)
        return context(weight, pool.average(label, (1, h, w), len(weight)))

    return per_frame(B, T, N, T * min(2, N) if keep is None else keep, decide)
