"""LookupViT: a few compressed tokens do the heavy work, and all the others are looked up.

Source: Koner et al. 2024, arXiv:2407.12753. Written from the paper alone, and no parity is
promised.

Shape suffixes: B batch, N lookup tokens, M compressed tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.nn.mlp import MLP


def compressed_tokens(x_BND: Tensor, num_tokens: int) -> Tensor:
    """Start compressed tokens as a coarser grid of the lookup tokens: [B, M, D].

    Raises:
        ValueError: Either number is no square.
    """
    side, coarse = math.isqrt(x_BND.shape[1]), math.isqrt(num_tokens)
    if side**2 != x_BND.shape[1] or coarse**2 != num_tokens:
        raise ValueError(f"{x_BND.shape[1]} tokens to {num_tokens}; both must be squares")
    grid = rearrange(x_BND, "b (h w) d -> b d h w", h=side)
    small = F.interpolate(grid.float(), size=coarse, mode="bilinear", antialias=True).to(x_BND)
    return rearrange(small, "b d h w -> b (h w) d")


class LookupBlock(nn.Module):
    """Gather into the compressed tokens, work on them, and hand back by the same attention.

    Args:
        width: Of the tokens.
        heads: Of all attention.
        mlp: Hidden width of the compressed tokens' MLP over `width`.
        lookup_mlp: The same of the lookup tokens.
    """

    def __init__(self, width: int, heads: int, mlp: float = 4.0, lookup_mlp: float = 1.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm_lookup, self.norm_gather = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.gather = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_self = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP("gelu_tanh", width, int(mlp * width), bias=True)
        self.norm_back = nn.LayerNorm(width)
        self.back_value, self.back = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_light = nn.LayerNorm(width)
        self.light = MLP("gelu_tanh", width, int(lookup_mlp * width), bias=True)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h k) -> b h n k", h=self.heads)

    def forward(self, lookup_BND: Tensor, few_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Both kinds of tokens to both; the number of compressed ones may change at any time."""
        x = self.norm_lookup(lookup_BND)
        q, k = self._split(self.query(self.norm_gather(few_BMD))), self._split(self.key(x))
        logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        gathered = logits.softmax(-1) @ self._split(self.value(x))
        few = few_BMD + self.gather(rearrange(gathered, "b h n k -> b n (h k)"))
        h = self.norm_self(few)
        few = few + self.attn(h, h, h, need_weights=False)[0]
        few = few + self.mlp(self.norm_mlp(few))
        values = self._split(self.back_value(self.norm_back(few)))
        handed = logits.transpose(2, 3).softmax(-1) @ values
        lookup = lookup_BND + self.back(rearrange(handed, "b h n k -> b n (h k)"))
        return lookup + self.light(self.norm_light(lookup)), few


class LookupViT(nn.Module):
    """Blocks over both kinds of tokens; the compressed ones come out.

    Args:
        width: Of the tokens.
        heads: Of all attention.
        depth: Blocks.
        num_tokens: Compressed tokens, a square.
    """

    def __init__(self, width: int, heads: int, depth: int, num_tokens: int = 25) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.blocks = nn.ModuleList(LookupBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BND: Tensor, num_tokens: int | None = None) -> Tensor:
        """[B, N, D] to [B, M, D]; `num_tokens` may differ from that of training."""
        few = compressed_tokens(x_BND, num_tokens or self.num_tokens)
        for block in self.blocks:
            x_BND, few = block(x_BND, few)
        y: Tensor = self.norm(few)
        return y
