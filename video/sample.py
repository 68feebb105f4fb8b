"""Which frames to take, and at which size: rates, clocks and target sizes."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Integral

import torch
from torch import Tensor

Rate = Fraction | float | int | str
Size = int | tuple[int, int]


def as_rate(fps: Rate) -> Fraction:
    """Turn 25, 23.976, "24000/1001" or a Fraction into a Fraction of small numbers.

    Raises:
        ValueError: `fps` is no positive finite number.
    """
    try:
        if isinstance(fps, str) and "/" not in fps:
            fps = float(fps)  # a Fraction would work out all the digits of "1e999999999"
        rate = fps if isinstance(fps, Fraction) else _plain(Fraction(fps))
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        rate = Fraction(0)
    if rate <= 0:
        raise ValueError(f"fps={fps!r}: expected a positive number, such as 25 or '24000/1001'")
    return rate


def _plain(rate: Fraction) -> Fraction:
    """The nearest fraction whose smaller number is at most 1001."""
    return rate.limit_denominator(1001) if rate >= 1 else 1 / (1 / rate).limit_denominator(1001)


def tick_tolerance(fps: Fraction) -> float:
    """Seconds a frame may be late and still be shown at its tick (files round their times)."""
    return min(1e-3, 0.1 / float(fps))


def count_ticks(fps: Fraction, seconds: float) -> int:
    """Ticks of a steady clock that begin within `seconds`; at least 1."""
    return max(1, math.ceil((seconds - tick_tolerance(fps)) * fps))


def sample_times(
    pts: Tensor, fps: Rate, start: float | None = None, end: float | None = None
) -> Tensor:
    """Pick the frame shown at each tick of a steady clock.

    Args:
        pts: [T] float64 presentation times in seconds, increasing.
        fps: Wanted rate in frames per second; may exceed the source rate (frames repeat).
        start: First tick in seconds; the first frame's time unless given.
        end: When the last frame stops being shown; unless given, one mean interval after it.

    Returns:
        [N] int64 indices into `pts`; N is at least 1.

    Raises:
        ValueError: `pts` is empty or not increasing.
    """
    if pts.ndim != 1 or not len(pts) or bool((pts.diff() <= 0).any()):
        raise ValueError(
            f"pts of shape {tuple(pts.shape)}: expected increasing times, at least one"
        )
    rate = as_rate(fps)
    first, last = float(pts[0]), float(pts[-1])
    start = first if start is None else start
    if end is None:
        end = last + ((last - first) / (len(pts) - 1) if len(pts) > 1 else 1 / float(rate))
    slack = tick_tolerance(rate)
    count = count_ticks(rate, end - start)
    ticks = start + torch.arange(count, dtype=torch.float64) * rate.denominator / rate.numerator
    return (torch.searchsorted(pts, ticks + slack, right=True) - 1).clamp_min(0)


def target_size(size: Size | None, height: int, width: int) -> tuple[int, int]:
    """Size to deliver for a picture of `height` x `width`.

    Args:
        size: None keeps the size; S makes the shorter side S and keeps the aspect, the longer side
            rounded to the nearest even number; (H, W) is taken as it is.
        height: Rows of the picture.
        width: Columns of the picture.

    Returns:
        (H, W) in pixels.

    Raises:
        ValueError: `size` is not positive.
    """
    if size is None:
        return height, width
    given = tuple(size) if isinstance(size, tuple | list) else (size,)
    if len(given) not in (1, 2) or not all(isinstance(n, Integral) and n > 0 for n in given):
        raise ValueError(f"size={size!r}: expected the shorter side in pixels or (height, width)")
    if len(given) == 2:
        return int(given[0]), int(given[1])
    short, longer = int(given[0]), max(height, width)
    even = max(short, 2 * round(longer * short / min(height, width) / 2))
    if height == width:
        even = short
    return (short, even) if height <= width else (even, short)
