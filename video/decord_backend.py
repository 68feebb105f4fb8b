"""Frames through decord (package decord2), for those who have it; PyAV is the reference.

decord is wrong on some files (see docs/decisions.md), so it is never chosen by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from video.clip import Pixels
from video.errors import VideoError
from video.index import scan


class DecordSource:
    """Frames of one video file; times and facts come from PyAV's index."""

    def __init__(self, path: str) -> None:
        try:
            import decord  # noqa: PLC0415  (optional dependency)
        except ImportError as error:
            raise ImportError(
                "backend='decord' needs decord: pip install 'decord2>=3'; or use backend='pyav'"
            ) from error
        index = scan(path)
        self.info = index.info
        self.size = (self.info.height, self.info.width)
        self.damaged = 0
        self.warnings = list(index.warnings)
        self.times: list[float] | None = (index.pts * float(index.time_base)).tolist()
        self.end = self.info.start + self.info.duration
        try:
            self._reader: Any = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=0)
        except (RuntimeError, decord.DECORDError) as error:
            raise self._failed(error) from error
        if self.info.rotation:  # decord turns them, with bytes of padding among the pixels
            raise VideoError(f"{path} is rotated, which decord gets wrong; use backend='pyav'")
        if len(self._reader) != len(index.pts):
            raise VideoError(
                f"{path} has {len(index.pts)} frames and decord sees {len(self._reader)};"
                " use backend='pyav'"
            )

    def frames(self, start: float) -> Iterator[tuple[Pixels, float]]:
        """Yield [H, W, 3] pixels and seconds of every frame shown at or after `start`."""
        times = self.times or []
        first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        for number in range(first, len(times)):
            yield self._frame(number), times[number]

    def pick(self, numbers: Sequence[int]) -> Iterator[tuple[int, Pixels, float]]:
        """Yield (number, pixels, seconds) of the frames with these numbers, in order."""
        for number in sorted(set(numbers)):
            yield number, self._frame(number), (self.times or [])[number]

    def _frame(self, number: int) -> Pixels:
        try:
            pixels: Pixels = self._reader[number].asnumpy()
        except (RuntimeError, IndexError) as error:
            raise self._failed(error) from error
        if pixels.shape[:2] == self.size:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(self.size[::-1], Image.Resampling.BICUBIC))

    def _failed(self, error: Exception) -> VideoError:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return VideoError(
            f"{self.info.path} cannot be read by decord ({reason[0]}); use backend='pyav'"
        )

    def close(self) -> None:
        """Let go of the file."""
        self._reader = None
