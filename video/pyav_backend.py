"""Frames of a video file through PyAV: in order, from any time, or at given frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from video.errors import VideoError
from video.index import open_container, scan, upright, video_stream

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class PyAVSource:
    """Frames of one file, upright, as RGB."""

    def __init__(self, path: str, on_damage: str, threads: int = 0) -> None:
        self.scan = scan(path)
        self.info = self.scan.info
        self.size = (self.info.height, self.info.width)
        self.damaged = 0
        self.warnings = list(self.scan.warnings)
        self.times: list[float] | None = None
        if len(self.scan.pts):
            self.times = (self.scan.pts * float(self.scan.time_base)).tolist()
        self.end = self.info.start + self.info.duration
        self._skip = on_damage == "skip"
        self._threads = threads
        self._reformatter = VideoReformatter()

    def frames(self, start: float) -> Iterator[tuple[Pixels, float]]:
        """Yield [H, W, 3] pixels and seconds of every frame shown at or after `start`."""
        pts, base = self.scan.pts, self.scan.time_base
        first = int(np.searchsorted(pts * float(base), start + 1e-9, side="right")) - 1
        wanted = int(pts[first]) if first > 0 else None
        last, count = -np.inf, max(first, 0)
        for frame in self._decode_from(wanted):
            last = self._time(frame, last)
            count += 1
            yield self.pixels(frame), last
        if count + self.damaged < (self.info.num_frames or 0) and not self.warnings:
            self.warnings.append(
                f"{self.info.path}: {count} of {self.info.num_frames} announced frames came out"
            )

    def pick(self, numbers: Sequence[int]) -> Iterator[tuple[int, Pixels, float]]:
        """Yield (number, pixels, seconds) of the frames with these numbers, in display order."""
        pts, keys = self.scan.pts, self.scan.keys
        wanted = sorted(set(numbers))
        while wanted and len(pts):
            position = int(np.searchsorted(keys, pts[wanted[0]], side="right"))
            until = int(keys[position]) if position < len(keys) else None
            found = 0
            for frame in self._decode_from(int(pts[wanted[0]])):
                if frame.pts is not None and frame.pts >= pts[wanted[0]]:
                    if frame.pts > pts[wanted[0]]:
                        break
                    yield wanted[0], self.pixels(frame), float(frame.pts * self.scan.time_base)
                    wanted.pop(0)
                    found += 1
                    if not wanted or (until is not None and pts[wanted[0]] >= until):
                        break
            if not found:
                break
        if wanted:  # no usable times: count frames from the start
            left = set(wanted)
            for number, (pixels, time) in enumerate(self.frames(-np.inf)):
                if number in left:
                    yield number, pixels, time
                    left.discard(number)
                if not left:
                    return
            raise VideoError(f"{self.info.path} ends before frame {min(left)}; it is damaged")

    def pixels(self, frame: av.VideoFrame) -> Pixels:
        """[H, W, 3] upright RGB of one decoded frame (a view of FFmpeg's memory)."""
        if (frame.height, frame.width) != self.scan.stored_size:
            before = "{1}x{0}".format(*self.scan.stored_size)
            raise VideoError(
                f"{self.info.path} changes its frame size at {float(frame.time or 0):.3f} s from {before} to"
                f" {frame.width}x{frame.height}; cut it there (clip) or scale it to one size first"
            )
        height, width = self.size if self.scan.matrix[0] else self.size[::-1]
        same = (height, width) == self.scan.stored_size
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation="BILINEAR" if same else "BICUBIC",
            threads=1,
        )
        plane = rgb.planes[0]
        flat = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        return upright(flat[:, : 3 * width].reshape(height, width, 3), self.scan.matrix)

    def close(self) -> None:
        """Containers close with the generators that opened them."""

    def _time(self, frame: av.VideoFrame, last: float) -> float:
        """Seconds of a frame; a missing or repeated time follows the one before it."""
        step = float(1 / (self.info.fps or Fraction(25)))
        if frame.pts is None:
            return self.info.start if last == -np.inf else last + step
        time = float(frame.pts * self.scan.time_base)
        return time if time > last else last + float(self.scan.time_base)

    def _decode_from(self, wanted: int | None) -> Iterator[av.VideoFrame]:
        """Decode from the frame with time `wanted` (in ticks) on; None is the start of the file.

        Seeking aims at a keyframe's own time, never at the wanted one, and steps back a keyframe
        when the decoder comes out behind it (open groups of pictures).
        """
        keys = self.scan.keys
        at = int(np.searchsorted(keys, wanted, side="right")) - 1 if wanted is not None else -1
        for back in range(at, max(at - 4, -1), -1):
            if back == 0:
                break
            frames = self._decode(int(keys[back]))
            for frame in frames:
                if frame.pts is None or frame.pts > wanted:
                    break
                if frame.pts == wanted:
                    yield frame
                    yield from frames
                    return
            frames.close()
        for frame in self._decode(None):
            if wanted is None or frame.pts is None or frame.pts >= wanted:
                yield frame

    def _decode(self, key: int | None) -> Iterator[av.VideoFrame]:
        with open_container(self.info.path) as container:
            stream = video_stream(self.info.path, container)
            # frame threads hand out an error late, together with good frames
            stream.thread_type = "SLICE" if self._skip else "AUTO"
            stream.thread_count = self._threads
            if key is not None:
                container.seek(key, stream=stream, backward=True)
            cut: str | None = None
            try:
                for packet in container.demux(stream):
                    if cut and packet.size:
                        self._damage(cut)
                        cut = None
                    if (
                        packet.is_corrupt and packet.size
                    ):  # harmless if it is the last one: a cut file
                        cut = f"the packet at {self._place(packet)} is incomplete"
                        continue
                    try:
                        frames = packet.decode()
                    except av.FFmpegError as error:
                        self._damage(
                            f"the packet at {self._place(packet)} is damaged ({error.strerror})"
                        )
                        continue
                    yield from frames
            except av.FFmpegError as error:
                self._damage(f"reading stopped ({error.strerror})")
            if cut:
                self.damaged += 1
                self.warnings.append(f"{self.info.path} ends early: {cut}")

    def _place(self, packet: av.Packet) -> str:
        pts = packet.pts if packet.pts is not None else packet.dts
        return "an unknown time" if pts is None else f"{float(pts * self.scan.time_base):.3f} s"

    def _damage(self, what: str) -> None:
        self.damaged += 1
        if not self._skip:
            raise VideoError(
                f"{self.info.path}: {what}; pass on_damage='skip' to read the rest of it"
            )
