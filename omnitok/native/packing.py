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
    """The weights of a linear layer as the kernels read them.

    Attributes:
        weight: bfloat16 panels of PANEL columns, each in tiles; for a gated layer, those of both
            halves by turns. float32 as it is.
        bias: float32 in the order of the panels, or None.
        columns: How many of the results mean something.
    """

    weight: Tensor
    bias: Tensor | None
    columns: int


@dataclass(frozen=True)
class _Made:
    """Weights that were put into tiles.

    Attributes:
        source: What they were made of, kept so that nothing can take its place unseen.
        stamp: Where that was, its version, and what follows the layer.
        packed: The tiles.
    """

    source: tuple[Tensor, ...]
    stamp: tuple[object, ...]
    packed: Packed


_made: WeakKeyDictionary[nn.Linear, _Made] = WeakKeyDictionary()


def packed(layer: nn.Linear, act: str | None) -> Packed:
    """The weights of a layer, in bfloat16 put into tiles anew if they have changed."""
    weight, bias = layer.weight.detach(), layer.bias
    if weight.dtype == torch.float32:
        columns = layer.out_features // _halves(act)
        return Packed(weight.contiguous(), in_panels(bias, act), columns)
    parameters = (layer.weight, *([] if bias is None else [bias]))
    stamp = (act, *((p.data_ptr(), p._version) for p in parameters))
    found = _made.get(layer)
    if found is None or found.stamp != stamp:
        source = tuple(p.detach() for p in parameters)
        found = _made[layer] = _Made(source, stamp, _pack(weight, bias, act))
    return found.packed


def _halves(act: str | None) -> int:
    return 2 if act in GATED else 1


def _pack(weight_CD: Tensor, bias_C: Tensor | None, act: str | None) -> Packed:
    halves = _halves(act)
    columns, width = weight_CD.shape[0] // halves, weight_CD.shape[1]
    panels, steps = -(-columns // PANEL), -(-width // STEP)
    padded = weight_CD.new_zeros(halves, panels * PANEL, steps * STEP)
    padded[:, :columns, :width] = weight_CD.view(halves, columns, width)
    # half, panel, tile, column of a tile, step, row of a tile, one of two
    tiles = padded.view(halves, panels, 2, 16, steps, 16, 2).permute(1, 0, 4, 2, 5, 3, 6)
    return Packed(tiles.contiguous(), in_panels(bias_C, act), columns)


def in_panels(bias_C: Tensor | None, act: str | None) -> Tensor | None:
    """A bias as float32 in the order of the panels, those of a gated layer's halves by turns."""
    if bias_C is None:
        return None
    halves = _halves(act)
    columns = bias_C.shape[0] // halves
    panels = -(-columns // PANEL)
    bias = bias_C.new_zeros(halves, panels * PANEL, dtype=torch.float32)
    bias[:, :columns] = bias_C.detach().view(halves, columns)
    return bias.view(halves, panels, PANEL).transpose(0, 1).contiguous()
