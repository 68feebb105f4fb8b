"""Block-causal self-attention with look-back.

A token attends to its own group and to the `lookback` groups before it, within its window. Inside
each window that is plain attention over all of those groups' tokens: no mask is ever built.

Shape suffixes: B batch, G groups, N tokens of a group, D width, H heads, K head width, W windows,
S keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.config import StackConfig
from omnitok.nn.layout import Partition
from omnitok.nn.rope import rotate

KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention of one layer. See the module docstring."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.lookback = config.heads, config.lookback
        self.head_width = config.width // config.heads
        self.scale = config.attention_scale / self.head_width**0.5
        self.qk_norm = config.qk_norm
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self,
        x_BGND: Tensor,
        phasors: Tensor,
        partition: Partition,
        past: list[KeysValues] | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, list[KeysValues] | None]:
        """Mix the tokens of each window over space and time.

        Args:
            x_BGND: Tokens in the order of `partition`.
            phasors: [G, N, K / 2] complex64 rotary phasors.
            partition: The windows.
            past: For each run of windows, the keys and values of the groups before these.
            keep: Whether to return the keys and values that the next groups will need.

        Returns:
            [B, G, N, D], and per run the last `lookback` groups' keys and values, if kept.
        """
        qkv = rearrange(self.qkv(x_BGND), "b g n (i h k) -> b g n (i h) k", i=3, h=self.heads)
        qk, v = torch.split(qkv, [2 * self.heads, self.heads], dim=-2)
        if self.qk_norm:
            qk = F.rms_norm(qk.float(), (self.head_width,), eps=1e-6)
        q, k = rotate(qk, phasors).type_as(v).chunk(2, dim=-2)
        outputs, kept = [], []
        start = 0
        for run, (windows, size) in enumerate(partition.runs):
            stop = start + windows * size
            q_WHSK, k_WHSK, v_WHSK = (
                rearrange(z[:, :, start:stop], "b g (w n) h k -> (b w) h (g n) k", w=windows)
                for z in (q, k, v)
            )
            if past is not None:
                k_WHSK = torch.cat([past[run][0], k_WHSK], dim=2)
                v_WHSK = torch.cat([past[run][1], v_WHSK], dim=2)
            o_WHSK = self._attend(q_WHSK, k_WHSK, v_WHSK, size)
            outputs.append(
                rearrange(o_WHSK, "(b w) h (g n) k -> b g (w n) (h k)", w=windows, n=size)
            )
            if keep:
                tail = max(0, k_WHSK.shape[2] - self.lookback * size)
                kept.append((k_WHSK[:, :, tail:], v_WHSK[:, :, tail:]))
            start = stop
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return self.out(mixed), kept if keep else None

    def _attend(self, q_WHSK: Tensor, k_WHSK: Tensor, v_WHSK: Tensor, size: int) -> Tensor:
        """Attention of each group over itself and those before; keys may begin earlier."""
        # pieces, not overlapping slices: a slice's gradient is as large as what it was cut from
        queries, keys, values = (torch.split(z, size, dim=2) for z in (q_WHSK, k_WHSK, v_WHSK))
        old = len(keys) - len(queries)
        parts = []
        for g, query in enumerate(queries):
            seen = slice(max(0, old + g - self.lookback), old + g + 1)
            parts.append(attend(query, _join(keys[seen]), _join(values[seen]), self.scale))
        return _join(parts)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention over all keys: [..., H, Q, K] queries, [..., H, S, K] keys and values.

    The backward pass of the fused kernel is 1.5 times slower on a CPU than that of the explicit
    product over windows of this size (docs/decisions.md), so a CPU trains with the latter.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        scores = (q @ k.transpose(-1, -2)).float() * scale
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)
