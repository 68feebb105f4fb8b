"""PVC: progressive encoding, in which later frames add what earlier ones did not say.

Source: Yang et al. 2024, arXiv:2412.09613. Written from the paper alone: names and layout of the
released weights are not known, and no parity is promised.

Shape suffixes: B batch, T frames, N tokens of a frame, D width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.nn.mlp import MLP


class ProgressiveLayer(nn.Module):
    """Causal attention over time at every place, its norm set by the time step.

    Starts as the identity.

    Args:
        width: Of the tokens.
        heads: Of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        last = nn.Linear(width, 3 * width)
        self.step = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """[B, T, N, D] to [B, T, N, D]; a frame depends on none after it."""
        T, D = x_BTND.shape[1], x_BTND.shape[3]
        steps = torch.arange(T, device=x_BTND.device)[:, None]
        rates = 1e4 ** (-torch.arange(0, D, 2, device=x_BTND.device) / D)
        angles = steps * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :D].to(x_BTND)
        scale, shift, gate = self.step(waves)[:, None].chunk(3, dim=-1)
        h = self.norm(x_BTND) * (1 + scale) + shift
        q, k, v = rearrange(self.qkv(h), "b t n (i h k) -> i (b n) h t k", i=3, h=self.heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = rearrange(y, "(b n) h t k -> b t n (h k)", b=len(x_BTND))
        out: Tensor = x_BTND + gate * self.out(y)
        return out


class ProgressiveCompressor(nn.Module):
    """Progressive layers, then pixel shuffle and an MLP to a few tokens for each frame.

    Args:
        width: Of the tokens.
        out_width: Of the language model.
        heads: Of the attention.
        layers: Progressive layers.
        shuffle: `shuffle` x `shuffle` tokens become one: 4 for 1024 tokens to 64.
    """

    def __init__(
        self, width: int, out_width: int, heads: int, layers: int = 4, shuffle: int = 4
    ) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.layers = nn.ModuleList(ProgressiveLayer(width, heads) for _ in range(layers))
        wide = width * shuffle**2
        self.norm = nn.LayerNorm(wide)
        self.mlp = MLP("gelu_tanh", wide, out_width, bias=True)
        self.out = nn.Linear(wide, out_width)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """[B, T, N, D] to [B, T, N / shuffle^2, out_width].

        Raises:
            ValueError: A frame is no square of whole shuffles.
        """
        side, s = math.isqrt(x_BTND.shape[2]), self.shuffle
        if side**2 != x_BTND.shape[2] or side % s:
            raise ValueError(
                f"{x_BTND.shape[2]} tokens of a frame are no square with sides of a multiple of "
                f"{s}; pass other frames or another shuffle"
            )
        for layer in self.layers:
            x_BTND = layer(x_BTND)
        x = rearrange(x_BTND, "b t (h i w j) d -> b t (h w) (i j d)", h=side // s, i=s, j=s)
        y: Tensor = self.out(self.mlp(self.norm(x)))
        return y
