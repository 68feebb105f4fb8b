"""B-VLLM: alike frames merge, then alike tokens.

Source: Lu et al. 2024, arXiv:2412.09919. Its scorer of frames and its resampler are trained and not
here. Unlike the published code, a frame whose partner joins another frame follows it there, and is
not lost.
"""

import torch
from torch import Tensor

from video.compress.merge import partition, representatives
from video.compress.plan import Plan
from video.compress.recipes.tome import tome_to
from video.compress.score import deciding, norms


def merge_alike(metric_PND: Tensor, threshold: float, direct: bool = False) -> Plan:
    """Let each token join the most similar one before it, where that is similar enough.

    Args:
        metric_PND: What similarity is measured on, e.g. the means of frames.
        threshold: Of (cosine + 1) / 2.
        direct: Do as the published code: a token whose partner joins another is lost.

    Returns:
        Plain averages, in order; padded where samples differ.
    """
    P, N, _ = metric_PND.shape
    metric = deciding(metric_PND) / norms(metric_PND)[..., None]
    similarity = (metric @ metric.transpose(1, 2) + 1) / 2
    earlier = torch.ones(N, N, dtype=torch.bool, device=metric.device).tril(-1)
    best, partner = similarity.where(earlier, -1).max(dim=2)
    index = torch.arange(N, device=metric.device).expand(P, N)
    root = partner.where(best > threshold, index)
    stays = root == index
    lost = ~stays & ~stays.gather(1, root) & direct
    for _ in range(max(1, N).bit_length()):  # each step doubles the reach
        root = root.gather(1, root)
    out = (stays.cumsum(1) - 1).gather(1, root)
    rep = representatives(out, stays, N)
    if not direct:
        return partition(out, rep).dense()
    batch, src = (~lost).nonzero(as_tuple=True)
    count = torch.zeros(P, N, device=metric.device)
    ones = torch.ones(len(src), device=metric.device)
    count.index_put_((batch, out[batch, src]), ones, accumulate=True)
    weight = 1 / count[batch, out[batch, src]]
    return Plan.build(batch, out[batch, src], src, weight, rep, N).dense()


def bvllm(x_BTND: Tensor, keep: int | None = None, *, threshold: float = 0.75) -> Plan:
    """Average frames that are alike as a whole, then tokens of all of them in rounds.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly. Frames merge only where they then leave enough;
            576 by default, and less where frames that merged leave less.
        threshold: Of (cosine + 1) / 2 of the means of frames.
    """
    plans = []
    for x_TND in x_BTND:
        T, N, _ = x_TND.shape
        frames = merge_alike(x_TND.mean(1)[None], threshold).each(N)
        if frames.num_out < (keep or 0):
            frames = Plan.identity(1, T * N, x_BTND.device)
        target = min(576 if keep is None else keep, frames.num_out)
        plans.append(frames.then(tome_to(frames.apply(x_TND), target, norm="mean")))
    return Plan.stack(plans)
