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
from omnitok.native import kernels
from omnitok.native.kernels import Heads
from omnitok.nn.layout import Partition
from omnitok.nn.linear import linear, takes
from omnitok.nn.norm import IN_CACHE, Norm, inverse_rms, needs_graph
from omnitok.nn.rope import rotate, rotate_

KeysValues = tuple[Tensor, Tensor]
QK_NORMS = (False, True, "affine")
EXPLICIT_KEYS = 256  # up to which the explicit product is trained faster on a CPU
MOST_BOUND = 40.0  # of scores, so that the least of their exponentials are still numbers
EPS = 1e-6  # added to the mean squares of queries and keys
AFFINE_EPS = 1e-26  # the same, where a gain follows: only keeps zeros finite


class Attention(nn.Module):
    """Multi-head attention of one layer. See the module docstring."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.lookback = config.heads, config.lookback
        self.head_width = config.width // config.heads
        self.scale = config.attention_scale / self.head_width**0.5
        if config.qk_norm not in QK_NORMS:
            raise ValueError(f"unknown qk_norm {config.qk_norm!r}; choose one of {list(QK_NORMS)}")
        self.qk_norm, self.qk_eps = bool(config.qk_norm), EPS
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        # unit queries and keys have scores of at most their width; bfloat16 may round that up
        unit = 1.01 * self.scale * self.head_width
        self.bound = unit if config.qk_norm is True and unit < MOST_BOUND else None
        self.q_gain: nn.Parameter | None = None
        self.k_gain: nn.Parameter | None = None
        if config.qk_norm == "affine":
            self.qk_eps = AFFINE_EPS
            self.q_gain = nn.Parameter(torch.ones(self.heads, self.head_width))
            self.k_gain = nn.Parameter(torch.ones(self.heads, self.head_width))

    def forward(
        self,
        x_BGND: Tensor,
        phasors: Tensor,
        partition: Partition,
        past: list[KeysValues] | None = None,
        time: int | None = None,
        keep: Sequence[int] | None = None,
        norm: Norm | None = None,
        onto: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Mix the tokens of each window over space and time.

        Args:
            x_BGND: Tokens in the order of `partition`.
            phasors: [G, N, K / 2] complex64 rotary phasors.
            partition: The windows.
            past: What the call for the groups before these returned; changed in place.
            time: Number of groups before these in their stream; None if these are a whole clip.
            keep: For groups of varying size: see the whole of `past` (no look-back), and return
                this many of the last tokens for each run.
            norm: Applied to the tokens first.
            onto: [B, G, N, D] that the result is added to.

        Returns:
            [B, G, N, D], and for each run of windows the keys and values of the last groups of the
            stream: [W, groups, N, H, K], the group of time t in slot t modulo (lookback + 1); with
            `keep`, [W, tokens, H, K].
        """
        q, k, v = self._project(x_BGND, phasors, norm)
        outputs, kept = [], []
        start = 0
        for run, (windows, size) in enumerate(partition.runs):
            stop = start + windows * size
            q_WGNHK, k_WGNHK, v_WGNHK = (
                rearrange(z[:, :, start:stop], "b g (w n) h k -> (b w) g n h k", w=windows)
                for z in (q, k, v)
            )
            if keep is not None:
                seen = past[run] if past else None
                o_WHSK, rest = self._attend_after(q_WGNHK, k_WGNHK, v_WGNHK, seen, keep[run])
                kept.append(rest)
            elif time is None:
                o_WHSK = self._attend(q_WGNHK, k_WGNHK, v_WGNHK, partition.soft_cap)
            else:
                ring = past[run] if past else None
                o_WHSK, ring = self._attend_next(q_WGNHK, k_WGNHK, v_WGNHK, ring, time)
                kept.append(ring)
            outputs.append(
                rearrange(o_WHSK, "(b w) h (g n) k -> b g (w n) (h k)", w=windows, n=size)
            )
            start = stop
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return linear(self.out, mixed, onto=onto), kept

    def _project(
        self, x_BGND: Tensor, phasors: Tensor, norm: Norm | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both placed) and values, each [B, G, N, H, K]."""
        own = takes(x_BGND, self.qkv)
        if own:
            qkv = kernels.linear(self.qkv, x_BGND, norm=norm, heads=self.placing(phasors))
        else:
            qkv = linear(self.qkv, x_BGND, norm)
        qkv = rearrange(qkv, "b g n (i h k) -> b g n (i h) k", i=3, h=self.heads)
        qk, v = torch.split(qkv, [2 * self.heads, self.heads], dim=-2)
        q, k = (qk if own else self._placed(qk, phasors)).chunk(2, dim=-2)
        return q, k, v

    def placing(self, phasors: Tensor, rings: Sequence[tuple[int, Tensor, Tensor]] = ()) -> Heads:
        """What our own kernels do with queries and keys, and where they put keys and values."""
        eps = self.qk_eps if self.qk_norm else None
        return Heads(
            2 * self.heads, self.head_width, eps, gains=self._gain(), phasors=phasors, rings=rings
        )

    def _gain(self) -> Tensor | None:
        """[2 H, K] float32 that normalised queries and keys are multiplied by."""
        if self.q_gain is None or self.k_gain is None:
            return None
        return torch.cat([self.q_gain, self.k_gain]).float()

    def _placed(self, qk: Tensor, phasors: Tensor) -> Tensor:
        """Normalised and rotated queries and keys [B, G, N, H, K]; may change them."""
        if needs_graph(qk):
            return self._place(qk.float(), phasors).type_as(qk)
        some = max(1, IN_CACHE * qk.shape[2] // max(1, qk.numel()))
        parts = zip(torch.split(qk, some, 2), torch.split(phasors, some, 1), strict=True)
        for part, places in parts:
            part.copy_(self._place(part.float(), places))
        return qk

    def _place(self, qk: Tensor, phasors: Tensor) -> Tensor:
        """Normalise and rotate float32 queries and keys [B, G, N, H, K]; may change them."""
        gain = self._gain()
        if needs_graph(qk):
            if self.qk_norm:
                qk = F.rms_norm(qk, (self.head_width,), eps=self.qk_eps)
            return rotate(qk if gain is None else qk * gain, phasors)
        if self.qk_norm:
            qk.mul_(inverse_rms(qk, self.qk_eps))
        return rotate_(qk if gain is None else qk.mul_(gain), phasors)

    def _attend(
        self, q_WGNHK: Tensor, k_WGNHK: Tensor, v_WGNHK: Tensor, soft_cap: float | None
    ) -> Tensor:
        """Attention of each group over itself and those before it: [W, H, S, K]."""
        # pieces, not overlapping slices: a slice's gradient is as large as what it was cut from
        queries, keys, values = (
            rearrange(z, "w g n h k -> w h g n k").unbind(2) for z in (q_WGNHK, k_WGNHK, v_WGNHK)
        )
        parts = []
        for g, query in enumerate(queries):
            seen = slice(max(0, g - self.lookback), g + 1)
            parts.append(
                attend(
                    query, _join(keys[seen]), _join(values[seen]), self.scale, soft_cap, self.bound
                )
            )
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
            parts.append(attend(q.transpose(1, 2), keys, values, self.scale, bound=self.bound))
        assert ring is not None
        return _join(parts), ring

    def _attend_after(
        self,
        q_WGNHK: Tensor,
        k_WGNHK: Tensor,
        v_WGNHK: Tensor,
        past: KeysValues | None,
        keep: int,
    ) -> tuple[Tensor, KeysValues]:
        """Attention of all tokens over each other and over [W, S, H, K] of before."""
        q, k, v = (rearrange(z, "w g n h k -> w (g n) h k") for z in (q_WGNHK, k_WGNHK, v_WGNHK))
        if past is not None:
            k, v = (torch.cat([old, new], dim=1) for old, new in zip(past, (k, v), strict=True))
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        o_WHSK = attend(q, k, v, self.scale, bound=self.bound)
        first = k.shape[2] - keep
        k, v = (z[:, :, first:].transpose(1, 2).contiguous() for z in (k, v))
        return o_WHSK, (k, v)


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


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    soft_cap: float | None = None,
    bound: float | None = None,
) -> Tensor:
    """Softmax attention over all keys: [..., H, Q, K] queries, [..., H, S, K] keys and values.

    What no scaled score exceeds by much may be told as their `bound`, which saves looking for it.
    A soft cap c makes scores s into c tanh(s / c) (Gemma Team 2024, arXiv:2408.00118, section 2).
    The backward pass of the fused kernel is slower on a CPU than that of the explicit product over
    small windows (docs/decisions.md), so a CPU trains with the latter there.
    """
    if soft_cap is None and takes(q) and q.ndim == 4 and q.shape[-1] % 2 == 0:
        return kernels.attention(q, k, v, scale, bound=bound)
    training = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
    if (training and k.shape[-2] <= EXPLICIT_KEYS) or soft_cap is not None:
        scores = (q @ k.transpose(-1, -2)).float() * scale
        if soft_cap is not None:
            scores = (scores / soft_cap).tanh() * soft_cap
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)
