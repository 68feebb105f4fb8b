"""Frames of a video file through PyAV: in order, from any time, or at given frames."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from video.clip import Pixels
from video.errors import VideoError
from video.index import DEMUX_ERRORS, Begun, begin, open_stream, reason_of, scan, upright

Opened = tuple[InputContainer, av.VideoStream]
Frames = Generator[av.VideoFrame, None, None]
STEPS_BACK = 3  # keyframes to go back before decoding from the start


class PyAVSource:
    """Frames of one file, upright, as RGB.

    Args:
        path: The file.
        on_damage: "raise" or "skip".
        ahead: Whether all frames are about to be read from the start, so that small files are gone
            through once, for the index and for the frames.
    """

    def __init__(self, path: str, on_damage: str, ahead: bool = False) -> None:
        self._skip = on_damage == "skip"
        # frame threads hand out an error late, together with good frames
        self._threads = "SLICE" if self._skip else "AUTO"
        self._begun: Begun | None = None
        if ahead:
            self.scan, self._begun = begin(path, self._threads)
        else:
            self.scan = scan(path)
        self.info = self.scan.info
        self.size = (self.info.height, self.info.width)
        self.damaged = 0
        self.warnings = list(self.scan.warnings)
        self.times: list[float] | None = None
        if len(self.scan.pts):
            self.times = (self.scan.pts * float(self.scan.time_base)).tolist()
        self.end = self.info.start + self.info.duration
        self._reformatter = VideoReformatter()

    def frames(self, start: float) -> Iterator[tuple[Pixels, float]]:
        """Yield [H, W, 3] pixels and seconds of every frame shown at or after `start`."""
        first = int(np.searchsorted(self.times or [], start + 1e-9, side="right")) - 1
        wanted = int(self.scan.pts[first]) if first > 0 else None
        last, count = -np.inf, max(first, 0)
        for frame in self._go_on() if wanted is None else self._open_at(wanted):
            last = self._time(frame, last)
            count += 1
            yield self.pixels(frame), last
        if count < (self.info.num_frames or 0):
            self.warnings.append(
                f"{self.info.path}: {count} of {self.info.num_frames} frames could be decoded,"
                f" {self.damaged} packets are damaged"
            )

    def pick(self, numbers: Sequence[int]) -> Iterator[tuple[int, Pixels, float]]:
        """Yield (number, pixels, seconds) of the frames with these numbers, in display order."""
        pts, keys = self.scan.pts, self.scan.keys
        left = sorted(set(numbers), reverse=True)
        with open_stream(self.info.path, "NONE") as opened:
            while left and len(pts):
                following = int(np.searchsorted(keys, pts[left[-1]], side="right"))
                jump = keys[following] if following < len(keys) else np.inf
                before = len(left)
                for frame in self._decode_from(opened, int(pts[left[-1]])):
                    if frame.pts != pts[left[-1]]:
                        continue
                    number = left.pop()
                    yield number, self.pixels(frame), float(pts[number] * self.scan.time_base)
                    if not left or pts[left[-1]] >= jump:
                        break
                if len(left) == before:
                    break
        if left:  # times that lead nowhere: count frames from the start
            missing = set(left)
            for number, (pixels, time) in enumerate(self.frames(-np.inf)):
                if number in missing:
                    yield number, pixels, time
                    missing.discard(number)
                if not missing:
                    return
            raise VideoError(
                f"{self.info.path} ends before frame {min(missing)}; ask for earlier ones"
            )

    def pixels(self, frame: av.VideoFrame) -> Pixels:
        """[H, W, 3] upright RGB of one decoded frame (a view of FFmpeg's memory)."""
        stored = self.scan.stored_size
        if (frame.height, frame.width) != stored:
            raise VideoError(
                f"{self.info.path} changes its frame size at {float(frame.time or 0):.3f} s from"
                f" {stored[1]}x{stored[0]} to {frame.width}x{frame.height};"
                " cut it there (clip) or scale it to one size first"
            )
        height, width = self.size if self.scan.matrix[0] else self.size[::-1]
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation="BILINEAR" if (height, width) == stored else "BICUBIC",
            threads=1,
        )
        plane: Any = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        return upright(rows.reshape(height, width, 3), self.scan.matrix)

    def close(self) -> None:
        """Let go of a decoder that was not used; others close with the generators of frames."""
        if self._begun is not None:
            self._begun.close()
            self._begun = None

    def _open_at(self, wanted: int | None) -> Frames:
        with open_stream(self.info.path, self._threads) as opened:
            yield from self._decode_from(opened, wanted)

    def _go_on(self) -> Frames:
        """All frames: from the decoder that made the index, the first time, if there is one."""
        begun, self._begun = self._begun, None
        if begun is None:
            yield from self._open_at(None)
            return
        try:
            yield from begun.frames
            yield from self._decode_packets(begun.packets)
        finally:
            begun.close()

    def _time(self, frame: av.VideoFrame, last: float) -> float:
        """Seconds of a frame; a missing or repeated time follows the one before it."""
        if frame.pts is None:
            step = float(1 / (self.info.fps or Fraction(25)))
            return self.info.start if last == -np.inf else last + step
        base = self.scan.time_base
        time = frame.pts * base.numerator / base.denominator  # rounded once, as a Fraction is
        return time if time > last else last + float(base)

    def _decode_from(self, opened: Opened, wanted: int | None) -> Frames:
        """Decode from the frame with time `wanted` (in ticks) on; None is the start of the file.

        Seeking aims at a keyframe's own time, never at the wanted one, and steps back a keyframe
        when the decoder comes out behind it (open groups of pictures).
        """
        if wanted is None:
            yield from self._decode(opened, None)
            return
        keys = self.scan.keys
        at = int(np.searchsorted(keys, wanted, side="right")) - 1
        for back in range(at, max(at - STEPS_BACK - 1, -1), -1):
            frames = self._decode(opened, int(keys[back]))
            for frame in frames:
                if frame.pts is None or frame.pts > wanted:
                    break
                if frame.pts == wanted:
                    yield frame
                    yield from frames
                    return
            frames.close()
        with open_stream(self.info.path, "NONE") as fresh:
            for frame in self._decode(fresh, None):
                if frame.pts is None or frame.pts >= wanted:
                    yield frame

    def _decode(self, opened: Opened, key: int | None) -> Frames:
        container, stream = opened
        try:
            if key is not None:
                container.seek(key, stream=stream, backward=True)
            packets = container.demux(stream)
        except DEMUX_ERRORS as error:
            self._damage(f"reading stopped ({reason_of(error)})")
            return
        yield from self._decode_packets(packets)

    def _decode_packets(self, packets: Iterable[av.Packet[Any]]) -> Frames:
        cut: str | None = None
        try:
            for packet in packets:
                if cut and packet.size:
                    self._damage(cut)
                    cut = None
                if packet.is_corrupt and packet.size:  # no harm if it is the last one: a cut file
                    cut = f"the packet at {self._place(packet)} s is incomplete"
                    continue
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    place = self._place(packet)
                    self._damage(f"the packet at {place} s is damaged ({reason_of(error)})")
                    continue
                yield from frames
        except DEMUX_ERRORS as error:
            self._damage(f"reading stopped ({reason_of(error)})")
        if cut:
            self.damaged += 1
            if not self.warnings:
                self.warnings.append(f"{self.info.path} ends early: {cut}")

    def _place(self, packet: av.Packet[Any]) -> str:
        pts = packet.pts if packet.pts is not None else packet.dts
        return "?" if pts is None else f"{float(pts * self.scan.time_base):.3f}"

    def _damage(self, what: str) -> None:
        self.damaged += 1
        if not self._skip:
            raise VideoError(f"{self.info.path}: {what}; pass on_damage='skip' to read the rest")
