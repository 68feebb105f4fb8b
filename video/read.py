"""Reading frames: as a stream of chunks, all at once, or at given times.

Times are presentation times in seconds, as the file states them (`info.start` is the first one).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from video.clip import Clip, Pixels, VideoInfo
from video.errors import VideoError, check_pixels
from video.images import ImageSource, is_image
from video.probe import check_path
from video.pyav_backend import PyAVSource
from video.sample import Rate, Size, as_rate, count_ticks, target_size, tick_tolerance

Path = str | os.PathLike[str]
ROUNDING = 1e-9  # seconds
LONGEST_GAP = 3600.0  # seconds; a frame shown for longer is damage, not a pause


class Source(Protocol):
    """Where frames come from: a decoder, an image, a folder."""

    info: VideoInfo
    size: tuple[int, int]
    damaged: int
    warnings: list[str]
    times: list[float] | None
    end: float

    def frames(self, start: float) -> Iterator[tuple[Pixels, float]]:
        """Yield pixels and seconds of every frame shown at or after `start`."""

    def pick(self, numbers: Sequence[int]) -> Iterator[tuple[int, Pixels, float]]:
        """Yield (number, pixels, seconds) of the frames with these numbers, each once."""

    def close(self) -> None:
        """Let go of the file."""


class VideoReader:
    """Chunks of frames of one file; use as a context manager and iterate once or more.

    Attributes:
        info: Facts about the file.
        size: (H, W) of the frames delivered.
        fps: Rate of the frames delivered; None for an image.
        num_frames: Frames to expect; None where only decoding can tell.
        damaged: Packets that could not be decoded so far.
        warnings: One sentence for everything that is not as the file promises.
    """

    def __init__(
        self, source: Source, fps: Fraction | None, clip: tuple[float, float] | None, chunk: int
    ) -> None:
        self._source, self._resample, self._chunk = source, fps, chunk
        self.info, self.size = source.info, source.size
        self.fps = fps or source.info.fps
        self._from, self._to = clip or (-np.inf, np.inf)
        self.num_frames = self._count()
        if self.num_frames == 0:
            raise VideoError(
                f"{self.info.path} runs from {self.info.start:.3f} s to {source.end:.3f} s and has"
                f" no frame in clip={clip}; ask for times inside of it"
            )

    @property
    def damaged(self) -> int:
        """Packets that could not be decoded so far."""
        return self._source.damaged

    @property
    def warnings(self) -> list[str]:
        """One sentence for everything that is not as the file promises."""
        return self._source.warnings

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (frames [n, 3, H, W] uint8, pts [n] float64); frames before an error come first."""
        pixels_nHWC, times, filled = self._buffer(), [], 0
        failure: VideoError | None = None
        frames = self.frames()
        while failure is None:
            try:
                picture, time = next(frames)
            except StopIteration:
                break
            except VideoError as error:
                failure = error
                break
            pixels_nHWC[filled] = picture
            times.append(time)
            filled += 1
            if filled == self._chunk:
                yield as_chunk(pixels_nHWC, times)
                pixels_nHWC, times, filled = self._buffer(), [], 0
        if filled:
            yield as_chunk(pixels_nHWC[:filled], times)
        if failure is not None:
            raise failure

    def frames(self) -> Iterator[tuple[Pixels, float]]:
        """Yield one picture ([H, W, 3] uint8, read only) and its time after the other."""
        count = 0
        for item in self._at_ticks(self._resample) if self._resample else self._in_clip():
            count += 1
            yield item
        if not count:
            raise VideoError(f"{self.info.path}: none of the frames asked for could be decoded")

    def _buffer(self) -> Pixels:
        return np.empty((self._chunk, *self.size, 3), np.uint8)

    def _in_clip(self) -> Iterator[tuple[Pixels, float]]:
        for picture, time in self._source.frames(self._from):
            if time >= self._to - ROUNDING:
                return
            if time >= self._from - ROUNDING:
                yield picture, time

    def _at_ticks(self, fps: Fraction) -> Iterator[tuple[Pixels, float]]:
        """Yield the frame shown at each tick: the rule of `sample_times`, frame by frame."""
        slack = tick_tolerance(fps)
        shown: Pixels | None = None
        tick, start, last = 0, 0.0, 0.0
        for picture, time in self._source.frames(self._from):
            if shown is None:
                start = max(self._from, time)
            else:
                self._check_gap(last, time)
            while shown is not None and start + tick / fps < min(time, self._to) - slack:
                yield shown, float(start + tick / fps)
                tick += 1
            if time >= self._to:
                break
            shown, last = picture, time
        end = min(self._to, max(self._source.end, last))
        if shown is not None:
            self._check_gap(last, end)
        while shown is not None and (start + tick / fps < end - slack or not tick):
            yield shown, float(start + tick / fps)
            tick += 1

    def _check_gap(self, start: float, end: float) -> None:
        """Refuse to repeat one frame for hours."""
        start, end = max(start, self._from), min(end, self._to)
        if end - start > LONGEST_GAP:
            raise VideoError(
                f"{self.info.path} shows one frame from {start:.0f} s to {end:.0f} s, its times are"
                " damaged; read it without fps, or clip it"
            )

    def _count(self) -> int | None:
        times = self._source.times
        if times is None:
            whole = self._resample is None and self._to == np.inf and self._from == -np.inf
            return self.info.num_frames if whole else None
        if self._resample is None:
            first, last = np.searchsorted(times, np.array([self._from, self._to]) - ROUNDING)
            return int(last - first)
        start, end = max(self._from, times[0]), min(self._to, self._source.end)
        return count_ticks(self._resample, end - start) if start < end else 0


def as_chunk(pixels_nHWC: Pixels, times: list[float]) -> tuple[Tensor, Tensor]:
    """Tensors over the same memory: [n, 3, H, W] uint8 (channels last) and [n] float64."""
    pts = torch.tensor(times, dtype=torch.float64)
    return torch.from_numpy(pixels_nHWC).permute(0, 3, 1, 2), pts


def open_video(
    path: Path,
    *,
    fps: Rate | None = None,
    size: Size | None = None,
    clip: tuple[float, float] | None = None,
    backend: str = "auto",
    on_damage: str = "raise",
    chunk: int = 8,
) -> VideoReader:
    """Open a video, an image, an animation or a folder of frames as a stream of chunks.

    Args:
        path: File or folder.
        fps: Resample by time: the frame shown at each tick of a steady clock. For a folder it is
            the rate of its frames (25 unless given).
        size: S makes the shorter side S and keeps the aspect (longer side rounded to the nearest
            even number); (H, W) as given; None keeps the size.
        clip: (start, end) in seconds; frames with start <= time < end.
        backend: "pyav", "decord", or "auto" (PyAV).
        on_damage: "raise" stops at a damaged packet, "skip" counts it and goes on.
        chunk: Frames per chunk.

    Raises:
        VideoError: The file cannot be read, or the clip lies outside of it.
        ValueError: An argument is none of the above.
    """
    if on_damage not in ("raise", "skip"):
        raise ValueError(f"unknown on_damage {on_damage!r}; choose 'raise' or 'skip'")
    if clip is not None and not 0 <= clip[0] < clip[1]:
        raise ValueError(f"clip={clip}: expected (start, end) in seconds with 0 <= start < end")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least 1 frame")
    rate = None if fps is None else as_rate(fps)
    source = _open_source(check_path(path), backend, on_damage, rate, size, clip is None)
    if source.info.kind in ("image", "folder"):
        rate = None
    return VideoReader(source, rate, clip, chunk)


def read(path: Path, **options: Any) -> Clip:
    """Read all frames into memory; the options are those of `open_video`.

    Raises:
        VideoError: The file cannot be read or its frames do not fit in memory.
    """
    with open_video(path, **options) as reader:
        pixels_THWC = _room_for(reader.num_frames or 32, reader)
        times: list[float] = []
        for picture, time in reader.frames():
            if len(times) == len(pixels_THWC):
                more = _room_for(2 * len(times), reader)
                more[: len(times)] = pixels_THWC
                pixels_THWC = more
            pixels_THWC[len(times)] = picture
            times.append(time)
        frames, pts = as_chunk(pixels_THWC[: len(times)], times)
        return Clip(frames=frames, pts=pts, fps=reader.fps, info=reader.info)


def _room_for(count: int, reader: VideoReader) -> Pixels:
    """Memory for `count` frames, unless the machine has less than that."""
    shape = (count, *reader.size, 3)
    if math.prod(shape) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise VideoError(
            f"{reader.info.path} does not fit in memory ({count} frames of {shape[2]}x{shape[1]});"
            " read it in pieces with open_video, or pass clip, fps or size"
        )
    return np.empty(shape, np.uint8)


def read_at(
    path: Path,
    times: Sequence[float] | Tensor | None = None,
    *,
    indices: Sequence[int] | Tensor | None = None,
    size: Size | None = None,
    backend: str = "auto",
) -> Clip:
    """Read single frames, in the order asked for, with the fewest seeks.

    Args:
        path: File or folder.
        times: Seconds; the frame shown at each of them. A time before the first frame is its time.
        indices: Frame numbers instead of times.
        size: As in `open_video`.
        backend: As in `open_video`.

    Raises:
        VideoError: The file cannot be read, or a time or number lies outside of it.
        ValueError: Not exactly one of `times` and `indices` is given.
    """
    if (times is None) == (indices is None):
        raise ValueError("read_at needs times or indices, and not both")
    source = _open_source(check_path(path), backend, "raise", None, size)
    info = source.info
    known = source.times
    if known is None:  # packets without times
        known = [info.start + float(n / (info.fps or 1)) for n in range(info.num_frames or 0)]
    if times is not None:
        asked = np.array([float(t) for t in times])
        outside = asked[~(asked < source.end)]
        if info.kind != "image" and len(outside):
            raise VideoError(f"{info.path} ends at {source.end:.3f} s, {outside[0]} s is not in it")
        numbers = (np.searchsorted(known, asked + ROUNDING, side="right") - 1).clip(0).tolist()
    elif indices is not None:
        numbers = [int(i) for i in indices]
    if not numbers or min(numbers) < 0 or max(numbers) >= len(known):
        raise VideoError(
            f"{info.path} has frames 0 to {len(known) - 1}, asked for {numbers};"
            " name at least one and none outside"
        )
    place = {number: n for n, number in enumerate(sorted(set(numbers)))}
    pixels_nHWC = np.empty((len(place), *source.size, 3), np.uint8)
    found = [0.0] * len(place)
    for number, picture, time in source.pick(numbers):
        pixels_nHWC[place[number]] = picture
        found[place[number]] = time
    source.close()
    order = [place[number] for number in numbers]
    if order != list(range(len(place))):
        pixels_nHWC = pixels_nHWC[order]
    frames, pts = as_chunk(pixels_nHWC, [found[n] for n in order])
    return Clip(frames=frames, pts=pts, info=info)


def _open_source(
    path: str,
    backend: str,
    on_damage: str,
    folder_fps: Fraction | None,
    size: Size | None,
    ahead: bool = False,
) -> Source:
    """The source for a checked path, set to deliver frames of `size`; `ahead`: from the start."""
    if backend not in ("auto", "pyav", "decord"):
        raise ValueError(f"unknown backend {backend!r}; choose one of ['auto', 'pyav', 'decord']")
    source: Source
    if is_image(path):
        source = ImageSource(path, folder_fps)
    elif backend == "decord":
        from video.decord_backend import DecordSource  # noqa: PLC0415  (optional dependency)

        source = DecordSource(path)
    else:
        source = PyAVSource(path, on_damage, ahead)
    source.size = target_size(size, source.info.height, source.info.width)
    check_pixels(path, *source.size)
    return source
