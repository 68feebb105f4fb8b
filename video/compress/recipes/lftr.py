"""Learning-free token reduction: alike frames, then windows.

Source: arXiv:2501.17391. Known from the abstract only: the order of steps is the paper's, their
details are ours.
"""

from math import ceil

import torch
from torch import Tensor

from video.compress import pool
from video.compress.merge import partition
from video.compress.plan import Plan
from video.compress.positions import frame_grid
from video.compress.score import cosine
from video.compress.select import top


def alike_frames(
    x_TND: Tensor, groups: int | None = None, threshold: float = 0.9, average: bool = True
) -> Plan:
    """Group frames that follow each other and are alike.

    Args:
        x_TND: Tokens of one video.
        groups: How many; cut where frames change most.
        threshold: Without `groups`: cut where the cosine of the means of frames is below this.
        average: Average the frames of a group, or keep the first.

    Returns:
        A plan of frames.
    """
    T = len(x_TND)
    means = x_TND.float().mean(1)
    change = 1 - cosine(means[1:], means[:-1]) if T > 1 else means.new_empty(0)
    cut = torch.zeros(T, dtype=torch.bool, device=x_TND.device)
    if groups is None:
        cut[1:] = change > 1 - threshold
    else:
        cut[1 + top(change[None], groups - 1)[0]] = True
    cut[0] = True
    first = cut.nonzero()[None, :, 0]
    return partition(cut.cumsum(0)[None] - 1, first) if average else Plan.keep(first, T)


def lftr(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    grid: tuple[int, ...] | None = None,
    threshold: float = 0.9,
    window: int = 2,
    average: bool = True,
) -> Plan:
    """Average frames in a row that are alike, then windows of what is left.

    Known from the abstract only.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; time and place then shrink by about the same factor.
        grid: (h, w) of a frame.
        threshold: Without `keep`: frames join while the cosine of their means is at least this.
        window: Without `keep`: rows and columns of a window.
        average: Average frames that are alike, or keep the first of them.
    """
    _, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    plans = []
    for x_TND in x_BTND:
        groups = None
        if keep is not None:
            groups = min(keep, max(ceil(keep / N), round(T * (keep / (T * N)) ** 0.5)))
        frames = alike_frames(x_TND, groups, threshold, average)
        left = frames.num_out
        count = left * ceil(h / window) * ceil(w / window) if keep is None else keep
        label = pool.boxes(left, h, w, left, count, x_TND.device)
        plans.append(frames.each(N).then(pool.average(label, (left, h, w), 1)))
    return Plan.stack(plans)
