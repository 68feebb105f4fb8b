"""Writing frames: H.264 in mp4 with exact times, images, animations, folders of images.

Everything is written under a temporary name beside its target and renamed when it is complete.
Frames are written upright. Sizes that are not even are kept exactly by storing full colour
resolution (yuv444p); even ones use yuv420p. Colours are BT.709, limited range, and flagged so.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from types import TracebackType
from typing import Any, Protocol

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

from video.clip import Clip, Pixels
from video.errors import VideoError
from video.images import SHORTEST
from video.sample import Rate, as_rate

BT709, LIMITED = 1, 1
TICKS = 90_000  # per second, at least
LATEST = 1e9  # seconds; movies count ticks in 64 bits
FINEST = 1_000_000  # per second; mp4 counts the ticks between two frames in 31 bits
STILL = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
}
ANIMATED = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}
MOVIES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


class Sink(Protocol):
    """Where frames go, under a temporary name."""

    def add(self, pixels: Pixels, time: float) -> None:
        """Take one [H, W, 3] frame."""

    def finish(self) -> None:
        """Complete the file."""

    def abandon(self) -> None:
        """Let go of the file as it is."""


class MovieSink:
    """One H.264 stream."""

    def __init__(self, path: str, container: str, fps: Fraction, crf: float, preset: str) -> None:
        self._options = {"crf": str(crf), "preset": preset}
        # a whole number of ticks per frame at this rate, and fine enough for any other time
        scale = fps.numerator * max(1, round(TICKS / fps.numerator))
        self._base = Fraction(1, scale if scale <= FINEST else TICKS)
        self._fps = fps
        flags = {}
        if container in ("mp4", "mov"):  # the start is kept as exactly as the steps between frames
            flags = {"movflags": "+faststart", "movie_timescale": str(self._base.denominator)}
        self._container = av.open(path, "w", format=container, options=flags)
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._last: int | None = None
        self._shift = 0.0

    def add(self, pixels: Pixels, time: float) -> None:
        """Encode one frame."""
        if self._last is None:
            self._shift = max(0.0, -time)
        time += self._shift
        stream = self._stream or self._start(*pixels.shape[:2])
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(pixels, format="rgb24"),
            format=stream.pix_fmt,
            dst_colorspace=BT709,
            dst_color_range=LIMITED,
            interpolation="BICUBIC",
            threads=1,
        )
        tick = round(time / self._base)
        if self._last is not None and tick <= self._last:
            raise VideoError(
                f"frames at {float(self._last * self._base):.7f} s and {time:.7f} s are less than"
                f" {self._base} s apart; drop one of them"
            )
        self._last = frame.pts = tick
        frame.time_base = self._base
        self._container.mux(stream.encode(frame))

    def _start(self, height: int, width: int) -> av.VideoStream:
        rate = max(self._fps.limit_denominator(1001), Fraction(1, 1001))  # a hint to the encoder
        stream = self._container.add_stream("libx264", rate=rate, options=self._options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._base
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._stream = stream
        return stream

    def finish(self) -> None:
        """Flush the encoder and write the index."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Close without flushing."""
        self._container.close()


class FolderSink:
    """One PNG per frame: 000000.png, 000001.png and so on; times are not kept."""

    def __init__(self, path: str) -> None:
        os.mkdir(path)
        self._path, self._count = path, 0

    def add(self, pixels: Pixels, time: float) -> None:
        """Write one image."""
        Image.fromarray(pixels).save(os.path.join(self._path, f"{self._count:06d}.png"))
        self._count += 1

    def finish(self) -> None:
        """All is written."""

    def abandon(self) -> None:
        """All is written."""


class PictureSink:
    """An image, or an animation (kept in memory until it is complete)."""

    def __init__(self, path: str, suffix: str, fps: Fraction) -> None:
        self._path, self._suffix, self._fps = path, suffix, fps
        self._frames: list[Image.Image] = []
        self._times: list[float] = []

    def add(self, pixels: Pixels, time: float) -> None:
        """Keep one frame."""
        if self._frames and self._suffix not in ANIMATED:
            raise VideoError(
                f"{self._suffix} holds one frame; write a clip to .mp4, .gif or a folder"
            )
        self._frames.append(Image.fromarray(pixels))
        self._times.append(time)

    def finish(self) -> None:
        """Write all frames."""
        if len(self._frames) == 1:
            name = STILL.get(self._suffix) or ANIMATED[self._suffix]
            quality: dict[str, dict[str, Any]] = {
                "JPEG": {"quality": 95, "subsampling": 0},
                "WEBP": {"lossless": True},
            }
            self._save(name, **quality.get(name, {}))
            return
        unit = 10 if self._suffix == ".gif" else 1  # milliseconds
        ends = [*self._times[1:], self._times[-1] + float(1 / self._fps)]
        marks = [round((t - self._times[0]) * 1000 / unit) * unit for t in (self._times[0], *ends)]
        shown = [end - start for start, end in pairwise(marks)]
        if min(shown) <= SHORTEST:
            raise VideoError(
                f"{self._suffix} players show a frame of {min(shown)} ms for 100 ms; resample to 50"
                " frames per second or fewer, or write .mp4"
            )
        lossless = {"lossless": True} if self._suffix == ".webp" else {}
        self._save(
            ANIMATED[self._suffix],
            save_all=True,
            append_images=self._frames[1:],
            duration=shown,
            loop=0,
            **lossless,
        )

    def _save(self, kind: str, **options: Any) -> None:
        try:
            self._frames[0].save(self._path, format=kind, **options)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # Pillow's writers raise a dozen kinds
            raise VideoError(f"{self._suffix} cannot hold these frames ({error})") from error

    def abandon(self) -> None:
        """Nothing is open."""


class VideoWriter:
    """Write frames as they come; use as a context manager.

    The target's name decides: .mp4 .m4v .mov .mkv, an image or animation (.png .jpg .webp .bmp
    .tif .gif .apng), or a folder (no suffix). An existing file is replaced when the new one is
    complete; after an exception there is no new file and the old one is untouched. Movies know no
    time before 0: frames that begin earlier are written from 0 on.

    Args:
        path: Target.
        fps: Rate of frames written without times, and of the clock of the file (25 unless given).
        crf: H.264 quality, 0 (lossless) to 51.
        preset: H.264 speed, "ultrafast" to "veryslow".
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: Rate | None = None,
        crf: float = 18,
        preset: str = "medium",
    ) -> None:
        self.path = os.path.abspath(os.fsdecode(path))
        self.num_frames = 0
        self._fps = Fraction(25) if fps is None else as_rate(fps)
        self._last, self._size = -np.inf, (0, 0)
        folder, name = os.path.split(self.path)
        suffix = os.path.splitext(name)[1].lower()
        if os.path.isdir(self.path) and (suffix or os.listdir(self.path)):
            raise VideoError(f"{self.path} is a folder that is not empty; name another target")
        self._temporary = os.path.join(folder, f".omnitok-{uuid.uuid4().hex[:8]}.part")
        self._sink: Sink
        try:
            if suffix in MOVIES:
                self._sink = MovieSink(self._temporary, MOVIES[suffix], self._fps, crf, preset)
            elif suffix in STILL or suffix in ANIMATED:
                self._sink = PictureSink(self._temporary, suffix, self._fps)
            elif not suffix:
                self._sink = FolderSink(self._temporary)
            else:
                known = sorted({*MOVIES, *STILL, *ANIMATED})
                raise VideoError(
                    f"{self.path}: unknown suffix {suffix!r}; choose one of {known} or a folder"
                )
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()

    def write(self, frames: Tensor, pts: Tensor | Sequence[float] | None = None) -> None:
        """Append frames.

        Args:
            frames: [n, 3, H, W] uint8.
            pts: [n] seconds, later than all before; a steady clock of `fps` unless given.

        Raises:
            VideoError: Sizes or times do not go together, or the disk is full.
            ValueError: `frames` has another shape or dtype.
        """
        if (
            frames.ndim != 4
            or frames.shape[1] != 3
            or frames.dtype != torch.uint8
            or not frames.numel()
        ):
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}; expected uint8 [n, 3, H, W]"
            )
        if pts is None:
            times = [float((self.num_frames + n) / self._fps) for n in range(len(frames))]
        else:
            times = [float(t) for t in pts]
        if len(times) != len(frames):
            raise ValueError(f"{len(times)} times for {len(frames)} frames; expected one for each")
        size = (frames.shape[2], frames.shape[3])
        if self.num_frames and size != self._size:
            raise VideoError(
                f"{self.path}: frame {self.num_frames} is {size[1]}x{size[0]}, the frames before it"
                f" are {self._size[1]}x{self._size[0]}; write one size per file"
            )
        self._size = size
        pixels_nHWC = frames.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        for pixels, time in zip(pixels_nHWC, times, strict=True):
            if not max(self._last, -LATEST) < time < LATEST:
                raise VideoError(
                    f"{self.path}: frame {self.num_frames} is at {time} s and the one before it at"
                    f" {self._last} s; times must increase and stay below {LATEST:.0e} s"
                )
            try:
                self._sink.add(pixels, time)
            except (OSError, av.FFmpegError, VideoError) as error:
                raise self._failed(error) from error
            self._last = time
            self.num_frames += 1

    def close(self) -> None:
        """Complete the file and give it its name."""
        if not self.num_frames:
            self.abandon()
            raise VideoError(f"{self.path}: there are no frames to write; expected at least one")
        try:
            self._sink.finish()
            os.replace(self._temporary, self.path)
        except (OSError, ValueError, av.FFmpegError, VideoError) as error:
            self.abandon()
            raise self._failed(error) from error
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove what was written."""
        try:
            self._sink.abandon()
        except (OSError, av.FFmpegError):
            pass  # the disk may be full; the file goes away below
        finally:
            if os.path.isdir(self._temporary):
                shutil.rmtree(self._temporary)
            elif os.path.exists(self._temporary):
                os.remove(self._temporary)

    def _failed(self, error: Exception) -> VideoError:
        if isinstance(error, VideoError):
            return VideoError(f"{self.path}: {error}")
        reason = getattr(error, "strerror", None) or str(error)
        return VideoError(
            f"{self.path} cannot be written ({reason}); check the folder, its permissions and the"
            " space left on the disk"
        )


def write(
    path: str | os.PathLike[str],
    clip: Clip | Tensor,
    *,
    pts: Tensor | Sequence[float] | None = None,
    fps: Rate | None = None,
    **options: Any,
) -> None:
    """Write a clip, or frames [T, 3, H, W] uint8, to a file or a folder; see `VideoWriter`.

    Raises:
        VideoError: The target cannot be written.
    """
    if isinstance(clip, Clip):
        frames = clip.frames
        pts = clip.pts if pts is None and fps is None else pts
        fps = fps or clip.fps
    else:
        frames = clip
    with VideoWriter(path, fps=fps, **options) as writer:
        writer.write(frames, pts)
