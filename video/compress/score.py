"""One number per token: how much it matters, or how much it is like another.

Everything is computed in float32 at least. Shape suffixes: B batch, T frames, N tokens of a frame,
P independent problems (frames, or whole videos), D width, L text tokens, H heads.
"""

import math
from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

TINY = 1e-12  # the least norm divided by: tokens of zeros are like nothing
_CPU_BLOCK, _GPU_BLOCK = 2**18, 2**22  # numbers handled at once: what a cache holds


def deciding(x: Tensor) -> Tensor:
    """Tokens in a type fit to decide in: float32 at least, without gradients."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def blocks(rows: int, numbers: int, x: Tensor, *, scale: int = 1) -> Iterator[slice]:
    """Cut `rows` rows of `numbers` numbers each into runs that fit a cache."""
    step = max(1, scale * (_GPU_BLOCK if x.is_cuda else _CPU_BLOCK) // max(numbers, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Products of tokens at the same place of two tensors: [..., N] of [..., N, D]."""
    rows_x, rows_y = x.flatten(0, -2), y.flatten(0, -2)
    products = deciding(x.new_empty(len(rows_x)))
    for run in blocks(len(rows_x), rows_x.shape[1], x):
        products[run] = (deciding(rows_x[run]) * deciding(rows_y[run])).sum(-1)
    return products.view(x.shape[:-1])


def norms(x: Tensor) -> Tensor:
    """Euclidean lengths of the last axis, at least `TINY`."""
    rows = x.flatten(0, -2)
    lengths = deciding(x.new_empty(len(rows)))
    for run in blocks(len(rows), rows.shape[1], x):
        lengths[run] = deciding(rows[run]).norm(dim=-1)
    return lengths.clamp(min=TINY).view(x.shape[:-1])


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines of tokens at the same place of two tensors: [..., N] of [..., N, D]."""
    return dots(x, y) / (norms(x) * norms(y))


def change(x_BTND: Tensor) -> Tensor:
    """1 - cosine to the same place of the frame before; infinite for the first frame.

    Returns:
        [B, T, N].
    """
    length = norms(x_BTND)
    products = torch.stack([dots(x[1:], x[:-1]) for x in x_BTND])
    score = torch.full_like(length, torch.inf)
    score[:, 1:] = 1 - products / (length[:, 1:] * length[:, :-1])
    return score


def negative_entropy(attention: Tensor) -> Tensor:
    """Sum of a log a over the keys, for each query: the sharper, the nearer to 0."""
    a = deciding(attention)
    return torch.xlogy(a, a).sum(-1)


def received(attention: Tensor) -> Tensor:
    """What each key receives, averaged over queries: [..., N] of [..., queries, N]."""
    return deciding(attention).mean(-2)


def per_token(attention: Tensor, x_BTND: Tensor) -> Tensor:
    """One number per token of attention in any of its forms: [B, T, N].

    Matrices are reduced to what each token receives.
    """
    B, T, N, _ = x_BTND.shape
    row = attention.shape == (B, T, N)
    return deciding(attention) if row else received(attention).view(B, T, N)


def global_attention(attention: Tensor, threshold: float) -> Tensor:
    """Mean attention of those queries that themselves receive more than others.

    Args:
        attention: [..., N, N], queries before keys.
        threshold: Times the mean that they receive more than; the one that receives most counts
            in any case.

    Returns:
        [..., N].
    """
    score = received(attention)
    most = score.amax(-1, keepdim=True)
    asked = (score > threshold * score.mean(-1, keepdim=True)) | (score == most)
    weight = asked.to(score.dtype) / asked.sum(-1, keepdim=True)
    return (weight[..., None, :] @ deciding(attention))[..., 0, :]


def patch_entropy(gray: Tensor, patch: tuple[int, int], bins: int = 256) -> Tensor:
    """Entropy of the brightness of each patch, in bits.

    Args:
        gray: [..., H, W] uint8.
        patch: Height and width of a patch in pixels; they divide H and W.
        bins: Of the histogram, over 0 .. 255.

    Returns:
        [..., H / h * W / w] float32.
    """
    patches = rearrange(gray, "... (r h) (c w) -> ... (r c) (h w)", h=patch[0], w=patch[1])
    level = patches.long() * bins // 256
    count = torch.zeros(*level.shape[:-1], bins, device=gray.device)
    share = count.scatter_add(-1, level, torch.ones_like(level, dtype=count.dtype))
    share = share / level.shape[-1]
    return -torch.xlogy(share, share).sum(-1) / math.log(2)


def class_attention(q: Tensor, k: Tensor) -> Tensor:
    """Attention of a class token in front to the other tokens, in one head.

    Args:
        q: [..., 1 + N, C] queries.
        k: [..., 1 + N, C] keys.

    Returns:
        [..., N] after a softmax over all 1 + N.
    """
    logits: Tensor = deciding(q)[..., :1, :] @ deciding(k).transpose(-1, -2) / k.shape[-1] ** 0.5
    return logits.softmax(-1)[..., 0, 1:]


def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs: [..., A, B] of [..., A, D] and [..., B, D]."""
    dots: Tensor = deciding(a) @ deciding(b).transpose(-1, -2)
    return dots / norms(a)[..., None] / norms(b)[..., None, :]
