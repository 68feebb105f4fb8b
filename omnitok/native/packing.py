"""Weights in the order that the kernels read them.

Shape suffixes: C columns, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PANEL = 32  # columns of the weights that are multiplied at once
STEP = 32  # numbers that one product of tiles sums over
ACTS = {None: 0, "gelu_tanh": 1, "swiglu": 2, "geglu": 3}
GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class Packed:
    """The weights of a linear layer in the order that the kernels read them.

    Attributes:
        source: The weights they were made of, kept so that none can take their place unseen.
        version: Of the weights then, and of the bias.
        act: What follows the layer.
        tiles: Panels of PANEL columns, each in tiles; for a gated layer, those of both halves by
            turns.
        bias: float32 in that order, or None.
        columns: How many of the results mean something.
    """

    source: tuple[Tensor | None, ...]
    version: tuple[int, int]
    act: str | None
    tiles: Tensor
    bias: Tensor | None
    columns: int


_made: WeakKeyDictionary[nn.Linear, Packed] = WeakKeyDictionary()


def packed(layer: nn.Linear, act: str | None) -> Packed:
    """The weights of a layer, packed anew if they have changed."""
    weight, bias = layer.weight, layer.bias
    version = (weight._version, 0 if bias is None else bias._version)
    found = _made.get(layer)
    if found is not None:
        old, old_bias = found.source
        same = _same(old, weight) and _same(old_bias, bias)
        if same and found.version == version and found.act == act:
            return found
    tiles, columns_bias, columns = _pack(weight.detach(), bias, act)
    source = (weight.detach(), None if bias is None else bias.detach())
    made = Packed(source, version, act, tiles, columns_bias, columns)
    _made[layer] = made
    return made


def _pack(
    weight_CD: Tensor, bias_C: Tensor | None, act: str | None
) -> tuple[Tensor, Tensor | None, int]:
    halves = 2 if act in GATED else 1
    columns, width = weight_CD.shape[0] // halves, weight_CD.shape[1]
    panels, steps = -(-columns // PANEL), -(-width // STEP)
    padded = weight_CD.new_zeros(halves, panels * PANEL, steps * STEP)
    padded[:, :columns, :width] = weight_CD.view(halves, columns, width)
    # half, panel, tile, column of a tile, step, row of a tile, one of two
    tiles = padded.view(halves, panels, 2, 16, steps, 16, 2).permute(1, 0, 4, 2, 5, 3, 6)
    return tiles.contiguous(), in_panels(bias_C, act), columns


def in_panels(bias_C: Tensor | None, act: str | None) -> Tensor | None:
    """A bias as float32 in the order of the panels, those of a gated layer's halves by turns."""
    if bias_C is None:
        return None
    halves = 2 if act in GATED else 1
    columns = bias_C.shape[0] // halves
    panels = -(-columns // PANEL)
    bias = bias_C.new_zeros(halves, panels * PANEL, dtype=torch.float32)
    bias[:, :columns] = bias_C.detach().view(halves, columns)
    return bias.view(halves, panels, PANEL).transpose(0, 1).contiguous()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are the same memory, or none."""
    if a is None or b is None:
        return a is b
    return a.data_ptr() == b.data_ptr()
