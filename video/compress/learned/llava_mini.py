"""LLaVA-Mini's compressor: learned queries at the places of a coarse grid.

Source: Zhang et al. 2025, arXiv:2501.03895, and its released code, whose names of weights are kept.
The layers that mix visual information into the text first belong to the language model and are not
here.

Shape suffixes: B batch, N tokens of a frame, S tokens that come out, D width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def sine_grid(side: int, width: int) -> Tensor:
    """[side^2, D] sines and cosines of columns, then of rows.

    Raises:
        ValueError: The width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width={width}; positions on a grid need a multiple of 4")
    frequencies = 1e4 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = axis.repeat(side, 1), axis.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1)


class MiniCompressor(nn.Module):
    """Cross-attention from `grid_size`^2 queries to the tokens of a frame; 1 query for video.

    Args:
        width: Of the tokens.
        grid_size: Queries along a side.
        heads: Of the attention.
    """

    def __init__(self, width: int, grid_size: int = 1, heads: int = 8) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.query = nn.Parameter(torch.randn(grid_size**2, width) * 0.02)
        self.pos_embed = nn.Parameter(sine_grid(grid_size, width), requires_grad=False)
        self.ln_q, self.ln_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, D] to [B, S, D], and the attention [B, S, N], the mean over heads.

        Raises:
            ValueError: The frame is no square.
        """
        side = math.isqrt(x_BND.shape[1])
        if side**2 != x_BND.shape[1]:
            raise ValueError(f"{x_BND.shape[1]} tokens are no square; pass a square frame")
        coarse = rearrange(self.pos_embed, "(h w) d -> 1 d h w", h=self.grid_size).float()
        fine = F.interpolate(coarse, size=side, mode="bicubic").to(x_BND)
        x = self.ln_kv(x_BND)
        q = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        y, attention = self.attn(q, x + rearrange(fine, "1 d h w -> (h w) d"), x)
        return y, attention
