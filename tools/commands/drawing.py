"""Contact sheets: frames of two clips and their difference, or views of two 3D assets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapes import Mesh

ROWS = 6
GAIN = 4  # of the difference
NARROW, WIDE = 192, 480  # pixels of a cell
GAP, STRIP = 4, 20


class Sheet:
    """Collects a few frames, scaled down, and draws them.

    Args:
        titles: Names of the two clips.
        num_frames: Frames of the clips; `ROWS` of them, evenly spaced, are drawn.
    """

    def __init__(self, titles: Sequence[str], num_frames: int) -> None:
        self._titles = [*titles, f"difference x {GAIN}"]
        rows = min(ROWS, num_frames)
        last = max(1, rows - 1)
        self._wanted = {row * (num_frames - 1) // last for row in range(rows)}
        self._rows: list[tuple[str, list[Image.Image]]] = []

    def add(self, number: int, label: str, a_CHW: Tensor, b_CHW: Tensor) -> None:
        """Look at a frame; it is kept if it is one of those to draw."""
        if number not in self._wanted:
            return
        difference = (a_CHW.short() - b_CHW.short()).abs().mul(GAIN).clamp(max=255).to(torch.uint8)
        cells = [_cell(frame) for frame in (a_CHW, b_CHW, difference)]
        self._rows.append((label, cells))

    def save(self, path: Path) -> None:
        """Draw the sheet.

        Raises:
            VideoError: The file cannot be written.
        """
        from video import write

        width, height = self._rows[0][1][0].size
        canvas = Image.new(
            "RGB",
            (GAP + 3 * (width + GAP), STRIP + len(self._rows) * (height + STRIP + GAP)),
            "white",
        )
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(size=13)
        for column, title in enumerate(self._titles):
            draw.text((GAP + column * (width + GAP), 2), title, "black", font)
        for row, (label, cells) in enumerate(self._rows):
            top = STRIP + row * (height + STRIP + GAP)
            draw.text((GAP, top + 2), label, "black", font)
            for column, cell in enumerate(cells):
                canvas.paste(cell, (GAP + column * (width + GAP), top + STRIP))
        raw = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
        write(path, raw.reshape(1, canvas.height, canvas.width, 3).permute(0, 3, 1, 2))


def turntable_sheet(path: str, titles: Sequence[str], a: Mesh, b: Mesh) -> None:
    """Draw two 3D assets from all sides, in the frame of the first, one below the other.

    Raises:
        VideoError: The file cannot be written.
    """
    from shapes.render import render
    from shapes.sample import into_box, placement_of
    from video import write

    place = placement_of(a)
    rows = [np.concatenate(list(render(into_box(mesh, place))), axis=1) for mesh in (a, b)]
    height, width, _ = rows[0].shape
    canvas = Image.new("RGB", (width, 2 * (height + STRIP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for number, (title, row) in enumerate(zip(titles, rows, strict=True)):
        top = number * (height + STRIP)
        draw.text((GAP, top + 2), title, "black", font)
        canvas.paste(Image.fromarray(row), (0, top + STRIP))
    pixels = torch.from_numpy(np.array(canvas))
    write(path, pixels[None].permute(0, 3, 1, 2))


def _cell(frame_CHW: Tensor) -> Image.Image:
    """A frame as a picture of a size that fits on a sheet."""
    picture = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
    width = min(max(picture.width, NARROW), WIDE)
    height = max(1, round(picture.height * width / picture.width))
    shrinks = width < picture.width
    return picture.resize(
        (width, height), Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    )
