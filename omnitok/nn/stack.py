"""The shared spatio-temporal transformer: one module for the encoder and the decoder.

Shape suffixes: B batch, G groups, N tokens of a group, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omnitok.config import StackConfig
from omnitok.nn.attention import Attention, KeysValues
from omnitok.nn.layout import Layout, Partition
from omnitok.nn.linear import add, takes_half
from omnitok.nn.mlp import MLP
from omnitok.nn.norm import Norm
from omnitok.nn.step import StackStep


@dataclass
class StackCache:
    """What a stack must remember between the groups of a stream.

    Attributes:
        time: Index of the next group.
        layers: Per layer and run of windows, the keys and values of the last groups; see
            `Attention.forward`.
        keep: For groups of varying size, `Attention.forward`'s argument of that name.
        step: What takes single groups through the stack where our own kernels can.
    """

    time: int = 0
    layers: list[list[KeysValues]] = field(default_factory=list)
    keep: Sequence[int] | None = None
    step: StackStep | None = None


class _Permute(torch.autograd.Function):
    """Reorder the token axis; the gradient is the inverse reordering, not a scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(2, forth)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0].index_select(2, back), None, None


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.norm, config.width, config.norm_affine)
        self.attention = Attention(config)
        self.norm2 = Norm(config.norm, config.width, config.norm_affine)
        self.mlp = MLP(config.mlp, config.width, config.mlp_hidden, config.bias)

    def forward(
        self,
        x_BGND: Tensor,
        phasors: Tensor,
        partition: Partition,
        past: list[KeysValues] | None = None,
        time: int | None = None,
        keep: Sequence[int] | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Tokens in the order of `partition`; see `Attention.forward`."""
        attention, mlp = self.attention, self.mlp
        args = (phasors, partition, past, time, keep)
        if takes_half(x_BGND, *self.linears()):
            x_BGND, kept = attention(x_BGND, *args, norm=self.norm1, onto=x_BGND)
            return mlp(x_BGND, norm=self.norm2, onto=x_BGND), kept
        mixed, kept = attention(self.norm1(x_BGND), *args)
        x_BGND = add(x_BGND, mixed)
        return add(x_BGND, mlp(self.norm2(x_BGND))), kept

    def linears(self) -> tuple[nn.Linear, ...]:
        """All linear layers."""
        return self.attention.qkv, self.attention.out, self.mlp.up, self.mlp.down


class Stack(nn.Module):
    """Blocks over groups of tokens, causal from group to group.

    Attributes:
        gradient_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.gradient_checkpointing = False

    def forward(self, x_BGND: Tensor, layout: Layout, cache: StackCache | None = None) -> Tensor:
        """Run all blocks.

        Args:
            x_BGND: Tokens in raster order, any number of groups.
            layout: Positions and windows of one group.
            cache: State of the stream before these groups, brought up to date in place. Without
                one, the first group is the first of the clip.

        Returns:
            [B, G, N, D] in raster order.
        """
        config, groups = self.config, x_BGND.shape[1]
        time = cache.time if cache is not None else None
        keep = cache.keep if cache is not None else None
        first = time or 0
        times = torch.arange(first, first + groups, dtype=torch.float64, device=x_BGND.device)
        if cache is not None and StackStep.takes(self, x_BGND, layout, cache):
            return self._step(x_BGND, layout, cache, times)
        head_width = config.width // config.heads
        phasors = {
            kind: layout.phasors(kind, head_width, config.rope_base, times)
            for kind in set(config.layers)
        }
        order = "raster"
        kept: list[list[KeysValues]] = []
        for i, (kind, block) in enumerate(zip(config.layers, self.blocks, strict=True)):
            x_BGND = self._reorder(x_BGND, layout, order, kind)
            order = kind
            past = cache.layers[i] if cache is not None and cache.layers else None
            args = (x_BGND, phasors[kind], layout.partitions[kind], past, time, keep)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BGND, present = checkpoint(block, *args, use_reentrant=False)
            else:
                x_BGND, present = block(*args)
            kept.append(present)
        if cache is not None:
            cache.time, cache.layers = first + groups, kept
        return self._reorder(x_BGND, layout, order, "raster")

    def _step(self, x_11ND: Tensor, layout: Layout, cache: StackCache, times: Tensor) -> Tensor:
        """`forward` of one group by our own kernels."""
        step = cache.step
        if step is None or not step.serves(layout, cache.layers):
            step = cache.step = StackStep(self, layout, cache.layers, x_11ND)
        out = step(x_11ND, times, cache.time)
        cache.time, cache.layers = cache.time + 1, step.layers
        return out

    @staticmethod
    def _reorder(x_BGND: Tensor, layout: Layout, before: str, after: str) -> Tensor:
        move = layout.move(before, after)
        return x_BGND if move is None else _Permute.apply(x_BGND, *move)  # type: ignore[no-untyped-call]
