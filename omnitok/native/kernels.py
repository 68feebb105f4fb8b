"""The calls of linear.cpp and attention.cpp.

Shape suffixes: D width, C columns, W windows, H heads, Q queries, S keys, K head width, N tokens,
G groups.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from omnitok.native.build import library
from omnitok.native.calls import AttentionCall, LinearCall, Pixels, Ring, Strides, at, floats, run
from omnitok.native.packing import ACTS, STEP, packed

NORMS = {None: 0, "rms": 1, "layer": 2}
MOST_INPUTS = 1152  # of a float32 layer at a time: strips of more do not stay in a cache
SINGLE = 4  # bytes


class NormLike(Protocol):
    """A normalisation of the last axis: "rms" or "layer", with what it learned."""

    kind: str
    eps: float

    def __call__(self, x: Tensor, /) -> Tensor:
        """[..., D] to [..., D]."""

    @property
    def weight(self) -> Tensor | None:
        """What it multiplies by."""

    @property
    def bias(self) -> Tensor | None:
        """What it adds."""


@dataclass(frozen=True)
class Heads:
    """What is done with the heads that come first in the result of a linear layer.

    Attributes:
        many: How many; queries first, then as many of keys.
        width: Of each.
        eps: Added to their mean squares before they are divided by the root; None leaves them.
        gains: [many, width] they are multiplied by, or None.
        phasors: [..., width / 2] complex64 that turn them, or None; the leading axes are those of
            the tokens, or the last of them.
        gains_last: Whether gains come after the rotation.
        rings: For a single group: (first token, keys, values) for each run of windows, both
            [W, N, H, width], where the keys and the values that follow them go instead of into the
            result. Memory of a window must be contiguous.
    """

    many: int
    width: int
    eps: float | None
    gains: Tensor | None
    phasors: Tensor | None
    gains_last: bool = False
    rings: Sequence[tuple[int, Tensor, Tensor]] = ()


class Patches:
    """Pixels [3, T, H, W] of whole patches (t, h, w), as rows in the order of `patchify`.

    Attributes:
        pixels: The pixels.
        shape: (groups, patches of a group, values of a patch).
    """

    def __init__(self, x_CTHW: Tensor, patch: tuple[int, int, int]) -> None:
        t, h, w = patch
        rows, columns = x_CTHW.shape[2] // h, x_CTHW.shape[3] // w
        self.pixels = x_CTHW
        self.shape = (x_CTHW.shape[1] // t, rows * columns, 3 * t * h * w)
        strides = (ctypes.c_int64 * 4)(*x_CTHW.stride())
        self.struct = Pixels(x_CTHW.data_ptr(), rows, columns, t, h, w, strides)


def fits(x: Tensor, *layers: nn.Linear) -> bool:
    """Whether `x`, and what the layers hold, is what the kernels work on, and they are there.

    Where something watches what PyTorch does, such as a counter of operations, they leave it alone.
    """
    if x.dtype == torch.float32:
        exact = torch.get_float32_matmul_precision() == "highest"
        wanted = exact and not torch.is_autocast_enabled("cpu")
    else:
        wanted = x.dtype == torch.bfloat16
    return (
        wanted
        and type(x) in (Tensor, nn.Parameter)
        and _get_current_dispatch_mode() is None
        and x.device.type == "cpu"
        and x.numel() > 0
        and all(_plain(layer, x.dtype) for layer in layers)
        and library() is not None
    )


def _plain(layer: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether a layer is its weights and nothing else, such as hooks that want to be called."""
    weight = layer.weight
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return weight.dtype == dtype and not hooks and not weight.is_inference()


class Calls:
    """Linear layers and attentions that run one after the other, as often as asked.

    They work on the memory of the tensors that they are made of, which must not be changed for
    others; so do all results, which the next run writes over.
    """

    def __init__(self) -> None:
        self._calls: list[ctypes.Structure] = []
        self._names: list[str] = []
        self._kept: list[object] = []
        self._rings: list[tuple[Any, int, int, int]] = []
        self._growing: list[tuple[Any, int]] = []

    def linear(
        self,
        layer: nn.Linear,
        x: Tensor | Patches,
        *,
        norm: NormLike | None = None,
        act: str | None = None,
        down: nn.Linear | None = None,
        onto: Tensor | None = None,
        heads: Heads | None = None,
        order: Tensor | None = None,
        onto_order: Tensor | None = None,
        out: Tensor | Patches | None = None,
    ) -> Tensor:
        """A linear layer with what stands around it, in one pass over the tokens.

        Args:
            layer: The layer.
            x: [..., D] bfloat16 or float32 that `fits`, with `layer` and `down`; or pixels whose
                patches are [G, N, D]. In float32 there are no `down`, pixels and rings.
            norm: Applied to `x` first.
            act: "gelu_tanh", "swiglu" (the gate is the first half of the columns) or "geglu" (the
                second half), applied to what the layer gives.
            down: A layer that takes the result of this.
            onto: [..., C] that the result is added to, of the same type.
            heads: What is done with the first columns of the result.
            order: [N] int64 which of all N tokens of `x` each token of the result is of.
            onto_order: The same for `onto`.
            out: Where the result goes, contiguous, or pixels of whose patches it is; None makes a
                place.

        Returns:
            [..., C] of the same type; with rings, only the queries; for pixels, those.
        """
        if isinstance(x, Patches):
            x_pixels, x_2d = x.struct, x.pixels
            shape = torch.Size(x.shape)
            rows, width, x_stride = math.prod(shape[:2]), shape[2], 0
        else:
            x_pixels, shape, width = None, x.shape, x.shape[-1]
            x_2d = x.reshape(-1, width)
            if x_2d.stride(-1) != 1:
                x_2d = x_2d.contiguous()
            rows, x_stride = len(x_2d), x_2d.stride(0)
        single = x_2d.dtype == torch.float32
        first = packed(layer, act)
        last = first if down is None else packed(down, None)
        rings = () if heads is None else heads.rings
        columns = heads.many // 2 * heads.width if heads is not None and rings else last.columns
        out_pixels = None
        if isinstance(out, Patches):
            out_pixels, out = out.struct, out.pixels
        elif out is None:
            out = x_2d.new_empty(*shape[:-1], columns)
        residual = None if onto is None else onto.contiguous()
        learned = (None, None) if norm is None else (floats(norm.weight), floats(norm.bias))
        gains, phasors = (None, None) if heads is None else (floats(heads.gains), heads.phasors)
        phasors = None if phasors is None else phasors.contiguous()
        ring_array = (Ring * len(rings))()
        for place, (start, k, v) in zip(ring_array, rings, strict=True):
            place.start, place.size, place.stride = start, k.shape[1], k.stride(0)
            place.k, place.v = k.data_ptr(), v.data_ptr()
            self._rings.append((place, place.k, place.v, k[0].numel() * k.element_size()))
        call = LinearCall(
            x=at(x_2d),
            norm_weight=at(learned[0]),
            norm_bias=at(learned[1]),
            weight=at(first.weight),
            bias=at(first.bias),
            weight2=None if down is None else at(last.weight),
            bias2=None if down is None else at(last.bias),
            residual=at(residual),
            out=at(out),
            phasors=at(phasors),
            gains=at(gains),
            order=at(order),
            onto_order=at(onto_order),
            x_pixels=None if x_pixels is None else ctypes.addressof(x_pixels),
            out_pixels=None if out_pixels is None else ctypes.addressof(out_pixels),
            rings=ctypes.addressof(ring_array) if rings else None,
            rows=rows,
            width=width,
            x_stride=x_stride,
            weight_stride=layer.in_features,
            columns=last.columns,
            out_stride=columns,
            hidden=0 if down is None else first.columns,
            norm=NORMS[None if norm is None else norm.kind],
            act=ACTS[act],
            heads=0 if heads is None else heads.many,
            head_width=0 if heads is None else heads.width,
            period=1 if phasors is None else phasors[..., 0].numel(),
            unit=heads is not None and heads.eps is not None,
            gains_last=heads is not None and heads.gains_last,
            runs=len(rings),
            threads=torch.get_num_threads(),
            norm_eps=0 if norm is None else norm.eps,
            unit_eps=(heads.eps if heads is not None else None) or 0,
        )
        kept = (x_2d, x_pixels, first, last, residual, learned, gains, phasors, order, onto_order)
        name = "omnitok_linear_float32" if single else "omnitok_linear"
        wide = single and norm is None and act is None and heads is None
        for part in _in_parts(call) if wide else (call,):
            self._add(name, part, *kept, ring_array, rings, out, out_pixels)
        return out

    def attention(
        self,
        q_WHQK: Tensor,
        k_WHSK: Tensor,
        v_WHSK: Tensor,
        scale: float,
        bias_HQS: Tensor | None = None,
        out_WHQK: Tensor | None = None,
        group: int | None = None,
        bound: float | None = None,
    ) -> Tensor:
        """Softmax attention over all keys.

        Args:
            q_WHQK: Queries that `fits`, the last axis contiguous as in keys and values; K even.
            k_WHSK: Keys.
            v_WHSK: Values.
            scale: Of the scores.
            bias_HQS: Added to the scaled scores.
            out_WHQK: Where the result goes, its last axis contiguous; None makes a place.
            group: Keys of one group of a ring, where `run` is told how many groups there are.
            bound: What no scaled score exceeds by much, below 40; not with a bias.

        Returns:
            [W, H, Q, K] of the same type, without `out_WHQK` laid out as [W, Q, H, K].
        """
        windows, heads, queries, width = q_WHQK.shape
        out = out_WHQK
        if out is None:
            out = q_WHQK.new_empty(windows, queries, heads, width).transpose(1, 2)
        bias = floats(bias_HQS)
        call = AttentionCall(
            q=at(q_WHQK),
            k=at(k_WHSK),
            v=at(v_WHSK),
            out=at(out),
            bias=at(bias),
            items=windows,
            heads=heads,
            queries=queries,
            keys=k_WHSK.shape[2],
            width=width,
            q_strides=Strides(*q_WHQK.stride()[:3]),
            k_strides=Strides(*k_WHSK.stride()[:3]),
            v_strides=Strides(*v_WHSK.stride()[:3]),
            out_strides=Strides(*out.stride()[:3]),
            threads=torch.get_num_threads(),
            scale=scale,
            bound=bound or 0,
        )
        if group is not None:
            self._growing.append((call, group))
        single = q_WHQK.dtype == torch.float32
        name = "omnitok_attention_float32" if single else "omnitok_attention"
        self._add(name, call, q_WHQK, k_WHSK, v_WHSK, bias, out)
        return out

    def _add(self, name: str, call: ctypes.Structure, *kept: object) -> None:
        self._names.append(name)
        self._calls.append(call)
        self._kept.append(kept)

    def run(self, slot: int = 0, groups: int = 1) -> None:
        """Run all.

        Args:
            slot: How many groups before the place to fill lie where the rings were said to begin.
            groups: How many groups there are in the rings, this one included.

        Raises:
            MemoryError: There is not enough memory.
        """
        for ring, k, v, size in self._rings:
            ring.k, ring.v = k + slot * size, v + slot * size
        for call, keys in self._growing:
            call.keys = groups * keys
        for name, call in zip(self._names, self._calls, strict=True):
            run(name, call)


def _in_parts(call: Any) -> Iterator[ctypes.Structure]:
    """A float32 layer of many inputs as some of fewer, each added to the result so far."""
    many = -(-call.width // MOST_INPUTS)
    edges = [call.width * i // many // STEP * STEP for i in range(many)] + [call.width]
    for start, stop in pairwise(edges):
        part = type(call).from_buffer_copy(call)
        part.x, part.weight = (at + start * SINGLE for at in (call.x, call.weight))
        part.width = stop - start
        if start:
            part.bias, part.residual, part.onto_order = None, call.out, None
        yield part


def linear(layer: nn.Linear, x: Tensor | Patches, **around: Any) -> Tensor:
    """`Calls.linear`, run once."""
    calls = Calls()
    out = calls.linear(layer, x, **around)
    calls.run()
    return out


def attention(
    q_WHQK: Tensor, k_WHSK: Tensor, v_WHSK: Tensor, scale: float, *around: Any, **more: Any
) -> Tensor:
    """`Calls.attention`, run once."""
    calls = Calls()
    out = calls.attention(q_WHQK, k_WHSK, v_WHSK, scale, *around, **more)
    calls.run()
    return out
