"""TokenFLEX: one projector for any number of tokens. Source: Hu et al. 2025, arXiv:2504.03154.

Written from the paper alone: the released weights' names and the order of their parts are not
known, and no parity is promised.

Shape suffixes: B batch, N tokens of a frame, S tokens that come out, D width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.nn.mlp import MLP


class TokenFlex(nn.Module):
    """Adaptive average pooling to a grid, then a gated projector.

    Args:
        width: Of the tokens.
        out_width: Of the language model.
        counts: Tokens of a frame to choose from; training takes one at random in each call.
    """

    def __init__(
        self, width: int, out_width: int, counts: tuple[int, ...] = (64, 144, 256)
    ) -> None:
        super().__init__()
        if any(math.isqrt(count) ** 2 != count for count in counts):
            raise ValueError(f"counts={counts}; each must be a square")
        self.counts = counts
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP("swiglu", width, out_width, bias=True)
        self.out = nn.Linear(width, out_width)

    def forward(self, x_BND: Tensor, count: int | None = None) -> Tensor:
        """[B, N, D] to [B, count, out_width]; the most tokens by default outside training.

        Raises:
            ValueError: The frame is no square, or the count is none of those to choose from.
        """
        if count is None:
            drawn = int(torch.randint(len(self.counts), ())) if self.training else -1
            count = self.counts[drawn]
        side = math.isqrt(x_BND.shape[1])
        if side**2 != x_BND.shape[1] or count not in self.counts:
            raise ValueError(
                f"{x_BND.shape[1]} tokens to {count}; pass a square frame and one of {self.counts}"
            )
        grid = rearrange(x_BND, "b (h w) d -> b d h w", h=side)
        pooled = F.adaptive_avg_pool2d(grid, math.isqrt(count))
        y: Tensor = self.out(self.mlp(self.norm(rearrange(pooled, "b d h w -> b (h w) d"))))
        return y
