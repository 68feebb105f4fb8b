"""The next group of a stream through all blocks of a stack, in one call of our own kernels.

Everything that one group needs is laid out once and used again for the next: what a group costs
beyond its arithmetic is a few pointers, instead of a thousand small steps of Python.

Shape suffixes: N tokens of a group, D width, H heads, K head width, W windows, S keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from omnitok.native import kernels
from omnitok.nn.attention import KeysValues
from omnitok.nn.layout import Layout
from omnitok.nn.linear import takes_half

if TYPE_CHECKING:
    from omnitok.nn.stack import Block, Stack, StackCache


class StackStep:
    """A stack, a layout and the rings of one stream, ready for the next group.

    Args:
        stack: The blocks.
        layout: Of the group.
        layers: What the stream remembers, as `StackCache` holds it.
        like: [1, 1, N, D] tokens of a group.

    Attributes:
        layers: What the stream remembers now.
    """

    def __init__(
        self, stack: Stack, layout: Layout, layers: list[list[KeysValues]], like: Tensor
    ) -> None:
        config = stack.config
        self._stack, self._layout, self._slots = stack, layout, config.lookback + 1
        self._stamp, self._threads = _stamp(stack), torch.get_num_threads()
        self._parameters = list(_parameters(stack))  # so that none can take the place of another
        self.layers = layers
        self._rings: list[list[KeysValues]] = []  # as large as they will ever be
        self._calls = kernels.Calls()
        many, width = like.shape[-2:]
        self._x = like.new_empty(many, width)
        half = width // config.heads // 2
        self._phasors = {
            kind: like.new_empty(1, many, half, dtype=torch.complex64)
            for kind in set(config.layers)
        }
        places = tuple(like.new_empty(many, width) for _ in range(4))
        before, x = "raster", self._x
        for i, kind in enumerate(config.layers):
            move = layout.move(before, kind)
            past = layers[i] if layers else None
            x = self._lay_out(i, x, None if move is None else move[0], past, places)
            before = kind
        self._out, move = x, layout.move(before, "raster")
        self._raster = None if move is None else move[0]

    def _lay_out(
        self,
        layer: int,
        x_ND: Tensor,
        order: Tensor | None,
        past: list[KeysValues] | None,
        places: tuple[Tensor, ...],
    ) -> Tensor:
        """Add a block, which finds its tokens in `x_ND`; return where it leaves them."""
        block, kind = _blocks(self._stack)[layer], self._stack.config.layers[layer]
        attention, mlp, partition = block.attention, block.mlp, self._layout.partitions[kind]
        q_ND, o_ND, mixed_ND, out_ND = places
        head = (attention.heads, attention.head_width)
        rings, filled, start = list[KeysValues](), [], 0
        for run, (windows, size) in enumerate(partition.runs):
            ring = tuple(x_ND.new_empty(windows, self._slots, size, *head) for _ in range(2))
            for buffer, old in zip(ring, past[run] if past else (), strict=False):
                buffer[:, : old.shape[1]] = old
            rings.append((ring[0], ring[1]))
            filled.append((start, ring[0][:, 0], ring[1][:, 0]))
            start += windows * size
        self._rings.append(rings)
        heads = attention.placing(self._phasors[kind], filled)
        calls = self._calls
        calls.linear(attention.qkv, x_ND, norm=block.norm1, heads=heads, order=order, out=q_ND)
        for (windows, size), (start, _, _), ring in zip(partition.runs, filled, rings, strict=True):
            q_WHQK, o_WHQK = (
                z_ND[start : start + windows * size].view(windows, size, *head).transpose(1, 2)
                for z_ND in (q_ND, o_ND)
            )
            k_WHSK, v_WHSK = (buffer.flatten(1, 2).transpose(1, 2) for buffer in ring)
            calls.attention(
                q_WHQK,
                k_WHSK,
                v_WHSK,
                attention.scale,
                out_WHQK=o_WHQK,
                group=size,
                bound=attention.bound,
            )
        calls.linear(attention.out, o_ND, onto=x_ND, onto_order=order, out=mixed_ND)
        around: dict[str, Any] = {
            "norm": block.norm2,
            "act": mlp.kind,
            "down": mlp.down,
            "onto": mixed_ND,
        }
        return calls.linear(mlp.up, mixed_ND, out=out_ND, **around)

    @staticmethod
    def takes(stack: Stack, x_BGND: Tensor, layout: Layout, cache: StackCache) -> bool:
        """Whether our own kernels can do what `Stack.forward` is asked for."""
        return (
            cache.keep is None
            and x_BGND.shape[:2] == (1, 1)
            and takes_half(
                x_BGND, *(layer for block in _blocks(stack) for layer in block.linears())
            )
            and all(layout.partitions[kind].soft_cap is None for kind in stack.config.layers)
        )

    def serves(self, layout: Layout, layers: list[list[KeysValues]]) -> bool:
        """Whether everything is still as it was laid out."""
        return (
            layout is self._layout
            and layers is self.layers
            and self._threads == torch.get_num_threads()
            and self._stamp == _stamp(self._stack)
        )

    def __call__(self, x_11ND: Tensor, times: Tensor, time: int) -> Tensor:
        """[1, 1, N, D] in raster order to the same; `times` is [1] of `time`, as a layout wants."""
        self._x.copy_(x_11ND[0, 0])
        config = self._stack.config
        for kind, place in self._phasors.items():
            self._layout.phasors(kind, 2 * place.shape[-1], config.rope_base, times, out=place)
        groups = min(time + 1, self._slots)
        self._calls.run(time % self._slots, groups)
        if time < self._slots:
            self.layers = [[(k[:, :groups], v[:, :groups]) for k, v in r] for r in self._rings]
        if self._raster is None:
            return self._out[None, None].clone()
        return self._out.index_select(0, self._raster)[None, None]


def _blocks(stack: Stack) -> list[Block]:
    return cast("list[Block]", list(stack.blocks))


def _parameters(stack: Stack) -> Iterator[Tensor]:
    """As `Stack.parameters`, without walking through all modules for every group."""
    for block in _blocks(stack):
        for module in (block.norm1, block.attention, *block.linears(), block.norm2):
            for parameter in module._parameters.values():
                if parameter is not None:
                    yield parameter


def _stamp(stack: Stack) -> list[tuple[int, int, int]]:
    """What changes when weights do."""
    return [(id(p), p.data_ptr(), p._version) for p in _parameters(stack)]
