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
from omnitok.nn.norm import inverse_rms, needs_graph
from omnitok.nn.rope import rotate, rotate_

KeysValues = tuple[Tensor, Tensor]
EPS = 1e-6  # added to the mean squares of queries and keys


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
        time: int | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Mix the tokens of each window over space and time.

        Args:
            x_BGND: Tokens in the order of `partition`.
            phasors: [G, N, K / 2] complex64 rotary phasors.
            partition: The windows.
            past: What the call for the groups before these returned; changed in place.
            time: Number of groups before these in their stream; None if these are a whole clip.

        Returns:
            [B, G, N, D], and for each run of windows the keys and values of the last groups of the
            stream: [W, groups, N, H, K], the group of time t in slot t modulo (lookback + 1).
        """
        qkv = rearrange(self.qkv(x_BGND), "b g n (i h k) -> b g n (i h) k", i=3, h=self.heads)
        qk, v = torch.split(qkv, [2 * self.heads, self.heads], dim=-2)
        q, k = self._place(qk.float(), phasors).type_as(v).chunk(2, dim=-2)
        outputs, kept = [], []
        start = 0
        for run, (windows, size) in enumerate(partition.runs):
            stop = start + windows * size
            q_WGNHK, k_WGNHK, v_WGNHK = (
                rearrange(z[:, :, start:stop], "b g (w n) h k -> (b w) g n h k", w=windows)
                for z in (q, k, v)
            )
            if time is None:
                o_WHSK = self._attend(q_WGNHK, k_WGNHK, v_WGNHK)
            else:
                ring = past[run] if past else None
                o_WHSK, ring = self._attend_next(q_WGNHK, k_WGNHK, v_WGNHK, ring, time)
                kept.append(ring)
            outputs.append(
                rearrange(o_WHSK, "(b w) h (g n) k -> b g (w n) (h k)", w=windows, n=size)
            )
            start = stop
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return self.out(mixed), kept

    def _place(self, qk: Tensor, phasors: Tensor) -> Tensor:
        """Normalise and rotate float32 queries and keys [B, G, N, H, K]; may change them."""
        if needs_graph(qk):
            if self.qk_norm:
                qk = F.rms_norm(qk, (self.head_width,), eps=EPS)
            return rotate(qk, phasors)
        if self.qk_norm:
            qk.mul_(inverse_rms(qk, EPS))
        return rotate_(qk, phasors)

    def _attend(self, q_WGNHK: Tensor, k_WGNHK: Tensor, v_WGNHK: Tensor) -> Tensor:
        """Attention of each group over itself and those before it: [W, H, S, K]."""
        # pieces, not overlapping slices: a slice's gradient is as large as what it was cut from
        queries, keys, values = (
            rearrange(z, "w g n h k -> w h g n k").unbind(2) for z in (q_WGNHK, k_WGNHK, v_WGNHK)
        )
        parts = []
        for g, query in enumerate(queries):
            seen = slice(max(0, g - self.lookback), g + 1)
            parts.append(attend(query, _join(keys[seen]), _join(values[seen]), self.scale))
        return _join(parts)

    def _attend_next(
        self,
        q_WGNHK: Tensor,
        k_WGNHK: Tensor,
        v_WGNHK: Tensor,
        ring: KeysValues | None,
        time: int,
    ) -> tuple[Tensor, KeysValues]:
        """Attention of each next group of a stream over itself and those in the ring."""
        parts = []
        slots = self.lookback + 1
        for g, (q, k, v) in enumerate(
            zip(q_WGNHK.unbind(1), k_WGNHK.unbind(1), v_WGNHK.unbind(1), strict=True), time
        ):
            ring = _with_room(ring, min(g + 1, slots), v)
            for buffer, new in zip(ring, (k, v), strict=True):
                buffer[:, g % slots] = new
            keys, values = (rearrange(buffer, "w g n h k -> w h (g n) k") for buffer in ring)
            parts.append(attend(q.transpose(1, 2), keys, values, self.scale))
        assert ring is not None
        return _join(parts), ring


def _with_room(ring: KeysValues | None, groups: int, like_WNHK: Tensor) -> KeysValues:
    """The ring itself, or a copy that has room for one group more."""
    if ring is not None and ring[0].shape[1] == groups:
        return ring
    windows, *rest = like_WNHK.shape
    grown = (
        like_WNHK.new_empty(windows, groups, *rest),
        like_WNHK.new_empty(windows, groups, *rest),
    )
    if ring is not None:
        for new, old in zip(grown, ring, strict=True):
            new[:, :-1] = old
    return grown


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
