"""Windows of a grid of tokens.

Shape suffixes: P independent problems, N tokens, K windows.
"""

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from video.compress.budget import evenly
from video.compress.merge import best_of_each, partition
from video.compress.plan import Plan
from video.compress.positions import grid_positions


def linear(op: Callable[[Tensor], Tensor], h: int, w: int, batch: int, like: Tensor) -> Plan:
    """Any linear operation on pictures as a plan of each of them.

    Args:
        op: From [n, 1, h, w] to [n, 1, H, W], e.g. average pooling or bilinear resizing.
        h: Rows of tokens.
        w: Columns.
        batch: Pictures.
        like: Any tensor on the device of the tokens.

    Returns:
        H * W outputs, row by row; the token nearest to the centre of its window represents each.
    """
    N = h * w
    matrix = op(torch.eye(N, device=like.device).view(N, 1, h, w)).flatten(1).T
    K = len(matrix)
    out, src = matrix.nonzero(as_tuple=True)
    at = grid_positions((1, h, w), device=like.device)
    share = matrix.double()
    centre = share @ at / share.sum(1, keepdim=True)
    rep = torch.cdist(centre, at, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    size = torch.bincount(out, minlength=K).float()
    return Plan(
        batch=torch.arange(batch, device=like.device).repeat_interleave(len(out)),
        out=out.repeat(batch),
        src=src.repeat(batch),
        weight=matrix[out, src].repeat(batch),
        rep=rep.expand(batch, K),
        size=size.expand(batch, K),
        num_in=N,
    )


def bands(h: int, w: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Cut a frame into exactly `count` windows of about the same size and about square.

    The windows form rows, which may have one window more or less than each other.

    Returns:
        [h * w] int64 the window of each token, row by row.
    """
    rows = round((count * h / w) ** 0.5)
    rows = min(max(rows, ceil(count / w), 1), min(h, count))
    columns = evenly(count, rows)
    label = torch.empty(h, w, dtype=torch.long, device=device)
    place = torch.arange(w, device=device)
    top = first = 0
    for height, num in zip(evenly(h, rows), columns, strict=True):
        label[top : top + height] = first + ((place + 1) * num - 1) // w
        top, first = top + height, first + num
    return label.flatten()


def boxes(t: int, h: int, w: int, times: int, count: int, device: torch.device) -> Tensor:
    """Cut a video into `times` stretches of time, and those into `count` boxes in all.

    Returns:
        [t * h * w] int64 the box of each token.
    """
    labels = []
    first = 0
    for frames, num in zip(evenly(t, times), evenly(count, times), strict=True):
        labels += [first + bands(h, w, num, device)] * frames
        first += num
    return torch.cat(labels)


def average(label_N: Tensor, grid: tuple[int, int, int], batch: int, norm: str = "mean") -> Plan:
    """Average windows given by labels 0 .. K - 1, of each sample alike.

    Args:
        label_N: The window of each token.
        grid: (t, h, w) of the tokens.
        batch: Samples.
        norm: As `merge.partition` takes it.

    Returns:
        The token nearest to the centre of its window represents each.
    """
    K = int(label_N.max()) + 1
    at = grid_positions(grid, device=label_N.device)
    count = torch.bincount(label_N, minlength=K)
    centre = at.new_zeros(K, 3).index_add(0, label_N, at) / count[:, None]
    near = -(at - centre[label_N]).square().sum(1)
    rep = best_of_each(label_N[None], near[None], K)
    return partition(label_N.expand(batch, -1), rep.expand(batch, K), norm=norm)


def sliding(
    grid: tuple[int, int, int],
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Members of all windows of a size that fit into a video: [K, members] int64."""
    index = torch.arange(grid[0] * grid[1] * grid[2], device=device).view(grid)
    for axis in range(3):
        index = index.unfold(axis, kernel[axis], stride[axis])
    return index.flatten(0, 2).flatten(1)


def weighted(members_KM: Tensor, weight_BKM: Tensor, num_in: int) -> Plan:
    """Sum windows by weights; the member of largest weight represents each.

    Args:
        members_KM: As `sliding` gives them.
        weight_BKM: Of each member in each window.
        num_in: Tokens of a sample.
    """
    B, K, M = weight_BKM.shape
    device = weight_BKM.device
    best = weight_BKM.argmax(dim=2, keepdim=True)
    return Plan(
        batch=torch.arange(B, device=device).repeat_interleave(K * M),
        out=torch.arange(K, device=device).repeat_interleave(M).repeat(B),
        src=members_KM.flatten().repeat(B),
        weight=weight_BKM.flatten(),
        rep=members_KM.expand(B, K, M).gather(2, best)[..., 0],
        size=torch.full((B, K), float(M), device=device),
        num_in=num_in,
    )
