"""Attention that a model itself does not hand out, worked out again where a method asks for it.

Shape suffixes: B batch, N places, Q queries, H heads, K head width, D width.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

_BLOCK = 2**24  # numbers of attention held at once


def queries_and_keys(
    layer: Any, x_BND: Tensor, rotary: tuple[Tensor, Tensor], at_BQ: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a decoder layer would compare.

    Args:
        layer: A decoder layer of `transformers`.
        x_BND: Its input.
        rotary: Cosines and sines of the positions, [B or 1, N, K] each.
        at_BQ: Places whose queries are wanted; all by default.

    Returns:
        [B, H, Q, K] queries and [B, H, N, K] keys, keys repeated for grouped queries.

    Raises:
        ValueError: The layer is not built as those of Llama and Qwen are.
    """
    attention = layer.self_attn
    rotate = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if rotate is None or not hasattr(attention, "q_proj"):
        raise ValueError(
            f"{type(attention).__name__} has no separate q_proj and rotary embedding; choose a "
            "method before the language model"
        )
    x_BND = layer.input_layernorm(x_BND)
    at_BQ = _every(x_BND) if at_BQ is None else at_BQ
    x_BQD = x_BND.gather(1, at_BQ[..., None].expand(-1, -1, x_BND.shape[-1]))
    q = _heads(attention, "q", x_BQD)
    k = _heads(attention, "k", x_BND)
    cos, sin = (r.expand(len(x_BND), -1, -1) for r in rotary)
    picked = [r.gather(1, at_BQ[..., None].expand(-1, -1, r.shape[-1])) for r in (cos, sin)]
    q, _ = rotate(q, q, *picked)
    k, _ = rotate(k, k, cos, sin)
    return q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def _every(x_BND: Tensor) -> Tensor:
    B, N, _ = x_BND.shape
    return torch.arange(N, device=x_BND.device).expand(B, N)


def _heads(attention: Any, name: str, x_BND: Tensor) -> Tensor:
    x = getattr(attention, f"{name}_proj")(x_BND).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    out: Tensor = (x if norm is None else norm(x)).transpose(1, 2)
    return out


def attention_rows(
    layer: Any, x_BND: Tensor, rotary: tuple[Tensor, Tensor], at_BQ: Tensor
) -> Tensor:
    """[B, H, Q, N] causal attention of some places, in float32."""
    q, k = queries_and_keys(layer, x_BND, rotary, at_BQ)
    logits = (q @ k.transpose(2, 3)).float() * layer.self_attn.scaling
    later = _every(x_BND)[:, None, None] > at_BQ[:, None, :, None]
    share: Tensor = logits.masked_fill(later, -torch.inf).softmax(-1)
    return share


def attention_received(layer: Any, x_BND: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """[B, N] attention that each place gets, the mean over heads and over all queries."""
    q, k = queries_and_keys(layer, x_BND, rotary)
    B, H, N, _ = q.shape
    step = max(1, _BLOCK // max(1, B * H * N))
    every = torch.arange(N, device=q.device)
    received = torch.zeros(B, N, device=q.device)
    for start in range(0, N, step):
        rows = slice(start, start + step)
        logits = (q[:, :, rows] @ k.transpose(2, 3)).float() * layer.self_attn.scaling
        later = every > every[rows, None]
        received += logits.masked_fill(later, -torch.inf).softmax(-1).sum((1, 2))
    return received / (H * N)


def cached_attention(
    layer: Any, x_BND: Tensor, rotary: tuple[Tensor, Tensor], keys: Tensor
) -> Tensor:
    """[B, past + 1] attention of one new place to those in a cache and itself, mean over heads.

    Args:
        layer: A decoder layer of `transformers`.
        x_BND: [B, 1, D] its input.
        rotary: Cosines and sines of the position.
        keys: [B, key heads, past, K] what the layer has in the cache.
    """
    q, own = queries_and_keys(layer, x_BND, rotary)
    keys = torch.cat([keys.repeat_interleave(q.shape[1] // keys.shape[1], dim=1), own], dim=2)
    logits = (q @ keys.transpose(2, 3)).float() * layer.self_attn.scaling
    share: Tensor = logits.softmax(-1)[:, :, 0].mean(1)
    return share
