"""One number per token: how much it matters, or how much it is like another.

Everything is computed in float32 at least. Shape suffixes: B batch, T frames, N tokens of a frame,
P independent problems (frames, or whole videos), D width, L text tokens, H heads.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TINY = 1e-12  # the least norm divided by: tokens of zeros are like nothing
_CPU_BLOCK, _GPU_BLOCK = 2**18, 2**26  # numbers handled at once: of the size of a cache


def deciding(x: Tensor) -> Tensor:
    """Tokens in a type fit to decide in: float32 at least, without gradients."""
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()


def blocks(rows: int, numbers: int, x: Tensor, scale: int = 1) -> Iterator[slice]:
    """Cut `rows` rows of `numbers` numbers each into runs that fit a cache."""
    step = max(1, scale * (_GPU_BLOCK if x.is_cuda else _CPU_BLOCK) // max(numbers, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def norms(x: Tensor) -> Tensor:
    """Euclidean lengths of the last axis, at least `TINY`."""
    flat = x.reshape(-1, x.shape[-1])
    parts = [deciding(flat[run]).norm(dim=-1) for run in blocks(len(flat), flat.shape[1], flat)]
    return torch.cat(parts).clamp(min=TINY).view(x.shape[:-1])


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of tokens at the same place of two tensors, [..., N, D] each."""
    rows_x, rows_y = x.flatten(0, -2), y.flatten(0, -2)
    dots = []
    for run in blocks(len(rows_x), rows_x.shape[1], rows_x):
        a, b = deciding(rows_x[run]), deciding(rows_y[run])
        dots.append((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=TINY))
    return torch.cat(dots).view(x.shape[:-1])


def change(x_BTND: Tensor) -> Tensor:
    """1 - cosine to the same place of the frame before; infinite for the first frame.

    Returns:
        [B, T, N].
    """
    B, T, N, _ = x_BTND.shape
    score = torch.full((B, T, N), torch.inf, device=x_BTND.device, dtype=deciding_dtype(x_BTND))
    for b in range(B):
        for run in blocks(T - 1, x_BTND[0, 0].numel(), x_BTND):
            after = slice(run.start + 1, run.stop + 1)
            score[b, after] = 1 - cosine(x_BTND[b, after], x_BTND[b, run])
    return score


def deciding_dtype(x: Tensor) -> torch.dtype:
    """The type that decisions about `x` are made in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
