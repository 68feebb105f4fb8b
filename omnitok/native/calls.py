"""What passes between Python and the kernels: the structures of the C++ sources, field by field."""

from __future__ import annotations

import ctypes

from torch import Tensor

from omnitok.native.build import library


def struct(name: str, pointers: str, sizes: str, floats: str) -> type[ctypes.Structure]:
    """A structure of pointers, then 64-bit integers (`name*3` for three), then float32."""
    fields: list[tuple[str, type]] = [(field, ctypes.c_void_p) for field in pointers.split()]
    for field in sizes.split():
        plain, _, many = field.partition("*")
        fields.append((plain, ctypes.c_int64 * int(many) if many else ctypes.c_int64))
    fields += [(field, ctypes.c_float) for field in floats.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


LinearCall = struct(
    "LinearCall",
    "x norm_weight norm_bias weight bias weight2 bias2 residual out phasors gains order onto_order "
    "x_pixels out_pixels rings",
    "rows width x_stride weight_stride columns out_stride hidden norm act heads head_width period "
    "unit gains_last runs threads",
    "norm_eps unit_eps",
)
AttentionCall = struct(
    "AttentionCall",
    "q k v out bias",
    "items heads queries keys width q_strides*3 k_strides*3 v_strides*3 out_strides*3 threads",
    "scale bound",
)
ConvolutionCall = struct(
    "ConvolutionCall", "x out weight bias", "batch times rows columns width before threads", ""
)
NearestCall = struct("NearestCall", "x book penalty codes leads", "inputs width rows threads", "")
Pixels = struct("Pixels", "data", "rows columns t h w strides*4", "")
Ring = struct("Ring", "k v", "start size stride", "")
Strides = ctypes.c_int64 * 3


def run(name: str, call: ctypes.Structure) -> None:
    """Call a kernel.

    Raises:
        MemoryError: There is not enough memory.
    """
    kernels = library()
    assert kernels is not None
    if getattr(kernels, name)(ctypes.byref(call)):
        raise MemoryError("there is no memory for a few more tokens; run fewer things at once")


def floats(x: Tensor | None) -> Tensor | None:
    """As contiguous float32."""
    return None if x is None else x.detach().float().contiguous()


def at(x: Tensor | None) -> int | None:
    """Where it begins in memory."""
    return None if x is None else x.data_ptr()
