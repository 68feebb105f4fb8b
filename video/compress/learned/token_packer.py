"""TokenPacker: coarse tokens that each look at their own region in fine detail.

Source: Li et al. 2024, arXiv:2407.02392, and its released code, whose names of weights are kept.

Shape suffixes: B batch, N tokens of a frame, S tokens that come out, D width, M width of several
levels together, E width that is attended at, r tokens of a region.
"""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class TokenPacker(nn.Module):
    """A projector from 576 tokens of four levels to 144, 64, 36 or 16.

    Args:
        width: Of the single level that queries are made of.
        multi_width: Of all levels together.
        embed: Width that is attended at.
        out_width: Of the language model.
        scale: Regions are `scale` x `scale` tokens.
        heads: Of the attention.
    """

    def __init__(
        self,
        width: int = 1024,
        multi_width: int = 4096,
        embed: int = 1024,
        out_width: int = 4096,
        scale: int = 2,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.q_proj_1 = nn.Linear(width, embed, bias=False)
        self.k_proj_1, self.v_proj_1 = (
            nn.Sequential(nn.Linear(multi_width, embed), nn.GELU(), nn.Linear(embed, embed))
            for _ in range(2)
        )
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(embed, eps=1e-6) for _ in range(3))
        self.clip_attn = nn.MultiheadAttention(embed, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(embed, out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )

    def forward(self, x_BND: Tensor, levels_BNM: Tensor) -> Tensor:
        """[B, N, D] of one level and [B, N, M] of all to [B, S, out_width].

        Raises:
            ValueError: The frame is no square of whole regions.
        """
        side, s = math.isqrt(x_BND.shape[1]), self.scale
        if side**2 != x_BND.shape[1] or side % s:
            raise ValueError(
                f"{x_BND.shape[1]} tokens are no square of whole {s} x {s} regions; pass a square "
                f"frame with sides of a multiple of {s}"
            )
        grid = rearrange(x_BND, "b (h w) d -> b d h w", h=side)
        coarse = F.interpolate(grid.float(), size=side // s, mode="bilinear").to(x_BND)
        q = self.ln_q_1(self.q_proj_1(rearrange(coarse, "b d h w -> (b h w) 1 d")))
        regions = rearrange(levels_BNM, "b (h i w j) m -> (b h w) (i j) m", h=side // s, i=s, j=s)
        k, v = self.ln_k_1(self.k_proj_1(regions)), self.ln_v_1(self.v_proj_1(regions))
        y = self.clip_attn(q, k, v, need_weights=False)[0]
        out: Tensor = self.mlp(rearrange(y, "(b s) 1 e -> b s e", b=len(x_BND)))
        return out
