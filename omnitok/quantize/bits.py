"""Codes made of bits: int64 arithmetic only, and the two orders in use.

"msb": the first channel is the most significant bit (BSQ-ViT, vector-quantize-pytorch, Cosmos).
"lsb": the first channel is the least significant bit (Open-MAGVIT2, AToken).

Shape suffixes: C channels (bits) of one code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bits_to_codes(bits_C: Tensor, order: str) -> Tensor:
    """Join bits into codes.

    Args:
        bits_C: [..., C] booleans, or integers 0 and 1; C is at most 62.
        order: "msb" or "lsb".

    Returns:
        [...] int64.
    """
    return (bits_C.long() << _shifts(bits_C.shape[-1], order, bits_C.device)).sum(-1)


def codes_to_bits(codes: Tensor, num_bits: int, order: str) -> Tensor:
    """Cut codes into bits.

    Args:
        codes: [...] int64.
        num_bits: Bits of a code.
        order: "msb" or "lsb".

    Returns:
        [..., num_bits] int64, 0 or 1.
    """
    return (codes.unsqueeze(-1) >> _shifts(num_bits, order, codes.device)) & 1


def reverse_bits(codes: Tensor, num_bits: int) -> Tensor:
    """Turn "msb" codes of `num_bits` bits into "lsb" codes, or back."""
    return bits_to_codes(codes_to_bits(codes, num_bits, "msb"), "lsb")


def _shifts(num_bits: int, order: str, device: torch.device) -> Tensor:
    places = torch.arange(num_bits, device=device)
    if order == "lsb":
        return places
    if order == "msb":
        return places.flip(0)
    raise ValueError(f"bit order {order!r} is unknown; choose 'msb' or 'lsb'")
