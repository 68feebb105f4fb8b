"""The calls of convolution.cpp and nearest.cpp.

Shape suffixes: B batch, T time steps, Y and X rows and columns, D width, N inputs, V rows of a
codebook, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnitok.native.calls import ConvolutionCall, NearestCall, at, floats, run


def convolution(x_BTYXD: Tensor, layer: nn.Module, before: int) -> Tensor:
    """A depth-wise 3x3x3 convolution over (time, row, column), added to what it is of.

    Args:
        x_BTYXD: Contiguous, of a type that `fits`.
        layer: With `weight` [D, 1, 3, 3, 3] and `bias` [D].
        before: How many of the three taps in time lie before: 1, or 2 of a causal one.

    Returns:
        [B, T, Y, X, D].
    """
    weight, bias = layer.get_parameter("weight"), floats(layer.get_parameter("bias"))
    taps = weight.detach().float()[:, 0].permute(1, 2, 3, 0).contiguous()
    out = torch.empty_like(x_BTYXD)
    batch, times, rows, columns, width = x_BTYXD.shape
    call = ConvolutionCall(
        x=at(x_BTYXD),
        out=at(out),
        weight=at(taps),
        bias=at(bias),
        batch=batch,
        times=times,
        rows=rows,
        columns=columns,
        width=width,
        before=before,
        threads=torch.get_num_threads(),
    )
    single = x_BTYXD.dtype == torch.float32
    run("omnitok_convolution_float32" if single else "omnitok_convolution", call)
    return out


def nearest(x_NC: Tensor, book_VC: Tensor) -> tuple[Tensor, Tensor]:
    """The row of a codebook at the least distance, as float32 tells it.

    Args:
        x_NC: float32 on a CPU.
        book_VC: float32.

    Returns:
        [N] int64 rows, and [N] by how much each beats the next: half the difference of the squared
        distances.
    """
    rows, width = book_VC.shape
    filled = -(-rows // 16) * 16
    book, penalty = book_VC.new_zeros(width, filled), book_VC.new_full((filled,), float("inf"))
    book[:, :rows] = book_VC.T
    penalty[:rows] = book_VC.square().sum(-1) / 2
    x_NC = x_NC.contiguous()
    codes = torch.empty(len(x_NC), dtype=torch.int64)
    leads = torch.empty(len(x_NC))
    call = NearestCall(
        x=at(x_NC),
        book=at(book),
        penalty=at(penalty),
        codes=at(codes),
        leads=at(leads),
        inputs=len(x_NC),
        width=width,
        rows=filled,
        threads=torch.get_num_threads(),
    )
    run("omnitok_nearest", call)
    return codes, leads
