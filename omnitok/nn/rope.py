"""Rotary position embedding over four axes (t, x, y, z).

Shape suffixes: N tokens, A axes (always 4), K head width, R rotated pairs (R = K / 2).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

AXES = 4


def rotary_phasors(coords_NA: Tensor, head_width: int, base: float = 10000.0) -> Tensor:
    """Unit complex numbers that turn channel pairs by an angle proportional to a position.

    Pair j of axis a turns by `coords[:, a] * base ** (-j / head_width)`; the first quarter of the
    pairs belongs to t, then x, y, z. Angles are formed in float64, so that an hour into a video
    they are as exact as in its first second.

    Args:
        coords_NA: [..., 4] positions: t in groups, x and y (rows, columns) and z in patches.
        head_width: Width of one head, a multiple of 8.
        base: Larger is slower; the fastest pair of each axis always turns by 1 rad per patch.

    Returns:
        [..., head_width / 2] complex64.

    Raises:
        ValueError: `head_width` is not a multiple of 8.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34, split over axes as in Lu et al. 2025 (AToken),
    arXiv:2509.14476.
    """
    if head_width % (2 * AXES):
        raise ValueError(
            f"head width {head_width} is not a multiple of {2 * AXES} (4 axes of pairs)"
        )
    pairs = head_width // (2 * AXES)
    exponents = torch.arange(pairs, dtype=torch.float64, device=coords_NA.device) / head_width
    angles = coords_NA.double()[..., None] * base**-exponents
    return torch.polar(torch.ones_like(angles), angles).flatten(-2).to(torch.complex64)


def rotate(x_NHK: Tensor, phasors_NR: Tensor) -> Tensor:
    """Turn adjacent channel pairs (2j, 2j + 1) of every head, in float32.

    Args:
        x_NHK: [..., N, H, K] queries or keys.
        phasors_NR: [..., N, K / 2] complex64, the leading axes broadcast against those of `x_NHK`.

    Returns:
        [..., N, H, K] in the dtype of `x_NHK`.
    """
    pairs = rearrange(x_NHK.float(), "... (r two) -> ... r two", two=2)
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic only
        a, b = pairs.unbind(-1)
        cos, sin = torch.view_as_real(phasors_NR.unsqueeze(-2)).unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
        return turned.flatten(-2).type_as(x_NHK)
    pairs = torch.view_as_complex(pairs)
    return torch.view_as_real(pairs * phasors_NR.unsqueeze(-2)).flatten(-2).type_as(x_NHK)


def rotate_(x_NHK: Tensor, phasors_NR: Tensor) -> Tensor:
    """`rotate` in place, for float32 that needs no gradient."""
    pairs = torch.view_as_complex(rearrange(x_NHK, "... (r two) -> ... r two", two=2))
    pairs.mul_(phasors_NR.unsqueeze(-2))
    return x_NHK
