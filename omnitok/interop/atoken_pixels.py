"""How AToken's published code prepares pixels: for those who need its very tokens.

`Tokenizer` keeps every frame and pixel; these functions crop, resize and drop frames as published.

Shape suffixes: C colours (3), T frames, H and W pixels, G groups, N tokens, P values of a patch, A
axes (t, row, column, z).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from omnitok.interop.atoken_layout import grid_coords
from omnitok.nn.patch import Patch, patchify

Bounds = tuple[int, int]
STRIDES = ("max", "min", "auto")


def whole_patches(x_CTHW: Tensor, patch: Patch, pad: float | None = 0.0) -> Tensor:
    """Cut a clip to whole patches, in the middle of the frame and at its last frames.

    Args:
        x_CTHW: Pixels.
        patch: (frames, height, width).
        pad: Value of the frames added to a clip shorter than a patch; None repeats the last one.
    """
    missing = max(0, patch[0] - x_CTHW.shape[1])
    if missing and pad is None:
        x_CTHW = torch.cat([x_CTHW, x_CTHW[:, -1:].expand(-1, missing, -1, -1)], dim=1)
    elif missing:
        x_CTHW = F.pad(x_CTHW, (0, 0, 0, 0, 0, missing), value=pad or 0.0)
    t, h, w = (size // side * side for size, side in zip(x_CTHW.shape[1:], patch, strict=True))
    return _centre(x_CTHW[:, :t], h, w)


def _centre(x_CTHW: Tensor, height: int, width: int) -> Tensor:
    top, left = (x_CTHW.shape[2] - height) // 2, (x_CTHW.shape[3] - width) // 2
    return x_CTHW[:, :, top : top + height, left : left + width]


def to_tokens(x_CTHW: Tensor, patch: Patch) -> tuple[Tensor, Tensor]:
    """Patches of a clip of whole patches.

    Returns:
        [N, P] patches, and their [N, 4] int64 coordinates.
    """
    x_BGNP = patchify(x_CTHW[None], patch)
    t, h, w = (size // side for size, side in zip(x_CTHW.shape[1:], patch, strict=True))
    return x_BGNP.flatten(0, 2), torch.from_numpy(grid_coords([(t, h, w)])[:, 1:])


def frames_alone(x_CTHW: Tensor, patch: Patch) -> tuple[Tensor, Tensor]:
    """Every frame as an image in a latent frame of its own, for understanding long clips.

    Returns:
        As `to_tokens`; the values after those of the frame are zero.
    """
    still = (1, *patch[1:])
    tokens_NP, coords_NA = to_tokens(whole_patches(x_CTHW, still), still)
    return F.pad(tokens_NP, (0, tokens_NP.shape[1] * (patch[0] - 1))), coords_NA


def resized_tokens(
    x_CTHW: Tensor,
    patch: Patch,
    *,
    smallest: Bounds | None = None,
    largest: Bounds | None = None,
    square: int | None = None,
    factor: int = 16,
    pad: float | None = 127.5,
) -> tuple[Tensor, Tensor]:
    """The published preprocessor, as it is in evaluation.

    Args:
        x_CTHW: Pixels from 0 to 255.
        patch: (frames, height, width).
        smallest: (height, width) that smaller clips are enlarged to.
        largest: (height, width) that larger clips are reduced to.
        square: Resize to about the area of a square of this side instead.
        factor: Height and width become multiples of it.
        pad: As `whole_patches` takes it.

    Returns:
        As `to_tokens`, pixels from -1 to 1.
    """
    x_CTHW = whole_patches(x_CTHW, (patch[0], 1, 1), pad)
    size = (x_CTHW.shape[2], x_CTHW.shape[3])
    if square is not None:
        width = math.sqrt(size[1] / size[0]) * square
        height = width * size[0] / size[1]
        scaled = (int(height) // factor * factor, int(width) // factor * factor)
    else:
        scale = _scale(size, smallest, largest)
        scaled = (round(size[0] * scale), round(size[1] * scale))
    if scaled != size:
        frames = F.interpolate(x_CTHW.transpose(0, 1), size=scaled, mode="bilinear")
        x_CTHW = frames.transpose(0, 1)
    low, high = smallest or (1, 1), largest or scaled
    crop = [
        min(max(side, least), most) // factor * factor
        for side, least, most in zip(scaled, low, high, strict=True)
    ]
    return to_tokens(_centre(x_CTHW, *crop) / 127.5 - 1, patch)


def dense_tokens(x_BCTHW: Tensor, patch: Patch) -> list[tuple[Tensor, Tensor]]:
    """The published entry for whole batches, which resizes to sides of 64 to 512 pixels.

    Args:
        x_BCTHW: Pixels from -1 to 1 if any is negative, else taken to be from 0 to 255.
        patch: (frames, height, width).

    Returns:
        For each clip what `to_tokens` returns.
    """
    if x_BCTHW.min() < 0:
        x_BCTHW = (x_BCTHW + 1) * 127.5
    return [resized_tokens(x, patch, smallest=(64, 64), largest=(512, 512)) for x in x_BCTHW]


def select_frames(
    total: int, count: int, *, stride: str = "max", shortest: int = 1, longest: int = 0
) -> tuple[list[int], int]:
    """Pick frames of a clip as published for tests.

    Args:
        total: Frames of the clip.
        count: Frames wanted; -1 for all.
        stride: "max" spreads them over the clip (at most `longest` apart, if that is not 0), "min"
            takes them `shortest` apart, "auto" takes the middles of equal parts.
        shortest: Least distance of frames.
        longest: Distance of frames for "max"; 0 for what the clip allows.

    Returns:
        Frame numbers, the last one repeated where the clip is too short, and their distance.
    """
    if stride not in STRIDES:
        raise ValueError(f"unknown stride {stride!r}; choose one of {list(STRIDES)}")
    if count == -1:
        return list(range(total)), 1
    even = max(1, total // count)
    if stride == "auto":
        edges = [(total - 1) * i / count for i in range(count + 1)]
        picks = [round((a + b) / 2) for a, b in pairwise(edges)]
    else:
        even = max(1, shortest) if stride == "min" else longest or even
        picks = [even * i for i in range(count)]
    return [min(pick, total - 1) for pick in picks], even


def _scale(size: Bounds, smallest: Bounds | None, largest: Bounds | None) -> float:
    if smallest and any(s < least for s, least in zip(size, smallest, strict=True)):
        return max(least / s for s, least in zip(size, smallest, strict=True))
    if largest and any(s > most for s, most in zip(size, largest, strict=True)):
        scales = [most / s for s, most in zip(size, largest, strict=True)]
        low = min(scales)
        fits = all(
            round(s * low) > least for s, least in zip(size, smallest or (0, 0), strict=True)
        )
        return low if fits else max(scales)
    return 1.0
