"""PPLLaVA: pooling that the prompt guides.

Source: Liu et al. 2024, arXiv:2411.02327.
"""

import torch
from torch import Tensor

from video.compress import pool
from video.compress.merge import best_of_each, partition
from video.compress.plan import Plan
from video.compress.positions import frame_grid
from video.compress.score import cosine_matrix

Triple = tuple[int, int, int]


def pooling_windows(grid: Triple, output: Triple) -> tuple[Triple, Triple]:
    """Kernel and stride of the pooling of a grid to a size."""
    stride = tuple(n // m for n, m in zip(grid, output, strict=True))
    kernel = tuple(n - (m - 1) * s for n, m, s in zip(grid, output, stride, strict=True))
    return (kernel[0], kernel[1], kernel[2]), (stride[0], stride[1], stride[2])


def guided_pooling(
    weight_BN: Tensor, grid: Triple, kernel: Triple, stride: Triple, temperature: float = 0.01
) -> Plan:
    """Average windows by a softmax of weights inside each.

    Args:
        weight_BN: Relevance of each token; constant for plain averages.
        grid: (t, h, w) of the tokens.
        kernel: Size of a window.
        stride: Steps between windows; they may overlap.
        temperature: Of the softmax.
    """
    members = pool.sliding(grid, kernel, stride, weight_BN.device)
    logits = weight_BN[:, members] / temperature
    return pool.weighted(members, logits.softmax(2), weight_BN.shape[1])


def ppllava(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    text: Tensor,
    grid: tuple[int, ...] | None = None,
    kernel: Triple = (2, 3, 3),
    scale: float = 100.0,
    temperature: float = 0.01,
) -> Plan:
    """Average boxes of the video, weighting tokens by what they have to do with a text.

    Args:
        x_BTND: Tokens, in the space of the text.
        keep: Outputs of each sample, exactly: pairs of frames in windows about square.
        text: [B, L, D].
        grid: (h, w) of a frame.
        kernel: Without `keep`: size of the boxes; smaller where the video is.
        scale: Of cosines, before a softmax over all tokens says how relevant each is.
        temperature: Of the softmax of that inside boxes.
    """
    B, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    cosine = cosine_matrix(text.mean(1, keepdim=True), x_BTND.flatten(1, 2))[:, 0]
    weight = (scale * cosine).softmax(1)
    if keep is None:
        size = (min(kernel[0], T), min(kernel[1], h), min(kernel[2], w))
        return guided_pooling(weight, (T, h, w), size, size, temperature)
    times = min(-(-T // kernel[0]), keep)
    times = max(times, -(-keep // N))
    label = pool.boxes(T, h, w, times, keep, x_BTND.device).expand(B, -1)
    most = weight.new_full((B, keep), -torch.inf).scatter_reduce(1, label, weight, "amax")
    inside = ((weight - most.gather(1, label)) / temperature).exp()
    return partition(label, best_of_each(label, cosine, keep), inside)
