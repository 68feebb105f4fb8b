"""TESTA: tokens merge inside frames, and frames merge.

Source: Ren et al. 2023, arXiv:2310.19060.
"""

import torch
from torch import Tensor

from video.compress.assign import best_match
from video.compress.budget import Pick, per_frame
from video.compress.merge import partition, representatives
from video.compress.plan import Plan
from video.compress.recipes.tome import tome_to
from video.compress.select import ranks


def testa_frames(x_BTND: Tensor, r: int) -> Plan:
    """Merge `r` even frames into the odd frame that most of their places vote for.

    A frame is as similar as its least similar place.

    Returns:
        A plan of all T * N tokens, in which all places of a frame do the same; frames that stay
        keep their order, even ones before odd ones.
    """
    B, T, N, _ = x_BTND.shape
    r = max(0, min(r, T // 2))
    if r == 0:
        return Plan.identity(B, T * N, x_BTND.device)
    by_place = x_BTND.transpose(1, 2).flatten(0, 1)
    best, partner = (e.view(B, N, -1) for e in best_match(by_place[:, ::2], by_place[:, 1::2]))
    of_frame = partner.transpose(1, 2)
    votes = partner.new_zeros(B, of_frame.shape[1], T // 2)
    votes = votes.scatter_add(2, of_frame, torch.ones_like(of_frame))
    partner, strength = votes.argmax(dim=2), best.amin(dim=1)
    merged = ranks(strength) < r
    num_left = strength.shape[1] - r
    out = partner.new_empty(B, T)
    out[:, ::2] = (partner + num_left).where(merged, (~merged).cumsum(1) - 1)
    out[:, 1::2] = torch.arange(T // 2, device=out.device) + num_left
    stays = torch.ones_like(out, dtype=torch.bool)
    stays[:, ::2] = ~merged
    return partition(out, representatives(out, stays, T - r)).each(N)


def testa(
    x_BTND: Tensor,
    keep: int | None = None,  # noqa: PT028
    *,
    r_frame: int | None = None,  # noqa: PT028
    r_patch: int | None = None,  # noqa: PT028
) -> Plan:
    """Merge frames whose places agree, then similar tokens inside the frames that are left.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; frames are then halved while that leaves enough,
            unless `r_frame` is given.
        r_frame: Frames that go; 1 by default without `keep`.
        r_patch: Without `keep`: tokens that go of each frame; 12 by default.
    """
    B, T, N, D = x_BTND.shape
    if r_frame is None:
        r_frame = 1 if keep is None else min(T // 4, T - -(-keep // N))
    frames = testa_frames(x_BTND, r_frame)
    left = frames.num_out // N
    if keep is None:
        keep = left * max(N - (12 if r_patch is None else r_patch), N - N // 2)
    if keep >= frames.num_out:
        return frames
    x, size = frames.apply(x_BTND).view(B, left, N, D), frames.size.view(B, left, N)

    def decide(pick: Pick, count: int) -> Plan:
        return tome_to(pick(x), count, pick(size))

    return frames.then(per_frame(B, left, N, keep, decide))
