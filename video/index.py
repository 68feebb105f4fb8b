"""The index of a video file: one pass over its packets and a look at its first frame."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from torch.utils.data import get_worker_info

from video.clip import VideoInfo
from video.errors import MAX_PIXELS, VideoError, check_pixels

# demuxers for files on disk; no playlists (they open other files), no text art, no devices
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,flv,asf,ogg,gif,"
    "h264,hevc,av1,obu,ivf,mjpeg,m4v,y4m,yuv4mpegpipe,nut,mxf,dv,rm,wav,mp3,aac,flac,vob,wtv,swf"
)
DEMUX_ERRORS = (av.FFmpegError, IndexError)
TICKS = 90_000  # per second, where a file says nothing
LIMITS = {"max_pixels": str(MAX_PIXELS)}
MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020", 0: "rgb"}
RANGES = {1: "limited", 2: "full"}
REMEMBERED = 256  # indices
KEPT_BYTES = 64 << 20  # files up to this size are read once, larger ones for index and frames apart


@dataclass(frozen=True)
class Scan:
    """One pass over a video's packets and its first frame.

    Attributes:
        info: The facts for users.
        pts: [T] int64 sorted presentation times in ticks; empty if the packets carry none.
        keys: [K] int64 sorted times of the keyframes, in ticks.
        time_base: Seconds per tick.
        stored_size: (height, width) before rotation.
        matrix: The four numbers a, b, c, d of the display matrix: x' = ax + cy, y' = bx + dy.
        warnings: What is wrong with the file, one sentence each.
    """

    info: VideoInfo
    pts: np.ndarray[Any, np.dtype[np.int64]]
    keys: np.ndarray[Any, np.dtype[np.int64]]
    time_base: Fraction
    stored_size: tuple[int, int]
    matrix: tuple[int, int, int, int]
    warnings: tuple[str, ...]


_scans: dict[tuple[str, int, int], Scan] = {}  # (path, time of change, size) -> index


@contextmanager
def open_stream(path: str, threads: str) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a file's first video stream with FFmpeg; every failure becomes a VideoError.

    Args:
        path: File; only local demuxers look at it.
        threads: "AUTO", "SLICE" or "NONE": how the decoder may use threads.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, **LIMITS}
    try:
        container = av.open(path, options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise unreadable(path, error) from error
    with container:
        stream = _video_stream(path, container)
        stream.codec_context.options = LIMITS
        # with PyAV's logging on, a decoder that closes waits for threads that wait for Python;
        # and workers that load data share the processors already
        if av.logging.get_level() is not None or get_worker_info() is not None:
            threads = "NONE"
        stream.thread_type = threads
        yield container, stream


def reason_of(error: Exception) -> str:
    """A demuxer's or decoder's error in a few words."""
    if isinstance(error, IndexError):
        return "a stream appears that the header does not name"
    return getattr(error, "strerror", None) or str(error)


def unreadable(path: str, error: Exception) -> VideoError:
    """The error for a file that FFmpeg gives up on."""
    reason = reason_of(error)
    if getattr(error, "errno", None) == errno.EINVAL:  # none of the demuxers allowed
        reason = "unknown format"
    return VideoError(
        f"{path} is no video that can be read ({reason}); expected a video or an image,"
        " check that it plays and is complete"
    )


def _video_stream(path: str, container: InputContainer) -> av.VideoStream:
    """The first real video stream: cover art of music does not count."""
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise VideoError(
                f"{path} is compressed with a codec this FFmpeg cannot decode;"
                " convert it to H.264 first"
            )
        return stream
    held = "sound but no pictures" if container.streams.audio else "no pictures"
    raise VideoError(f"{path} holds {held}; expected a file with a video stream")


@dataclass
class Begun:
    """A decoder that stands behind a file's first frame, with all packets read.

    Attributes:
        frames: Those decoded so far.
        packets: Those not yet decoded.
        close: Lets go of the file.
    """

    frames: list[av.VideoFrame]
    packets: list[av.Packet[Any]]
    close: Callable[[], None]


def scan(path: str) -> Scan:
    """Index a video (remembered until the file changes)."""
    key = _key(path)
    if key not in _scans:
        with open_stream(path, "NONE") as (container, stream):
            _remember(key, _index(path, key[2], container, stream, None))
    return _scans[key]


def begin(path: str, threads: str) -> tuple[Scan, Begun | None]:
    """Index a video, and keep what that took for a decoder that goes on from its start.

    Args:
        path: File.
        threads: As in `open_stream`.

    Returns:
        The index; and the begun decoder, unless the index was known, the file is large or damaged.
    """
    key = _key(path)
    if key in _scans or key[2] > KEPT_BYTES:
        return scan(path), None
    with ExitStack() as stack:
        container, stream = stack.enter_context(open_stream(path, threads))
        begun = Begun([], [], stack.close)
        index = _index(path, key[2], container, stream, begun)
        _remember(key, index)
        if index.warnings or not begun.frames:
            return index, None
        begun.close = stack.pop_all().close
        return index, begun


def forget() -> None:
    """Forget every index."""
    _scans.clear()


def _key(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def _remember(key: tuple[str, int, int], index: Scan) -> None:
    while len(_scans) >= REMEMBERED:
        _scans.pop(next(iter(_scans)), None)
    _scans[key] = index


def _index(
    path: str,
    file_size: int,
    container: InputContainer,
    stream: av.VideoStream,
    begun: Begun | None,
) -> Scan:
    """Go through all packets; `begun` gets the first frames and the packets behind them."""
    warnings: list[str] = []
    times: list[int] = []
    keys: list[int] = []
    shown, timed, end = 0, True, 0
    first: av.VideoFrame | None = None
    reason: Exception = ValueError("it holds no frame")
    codec = stream.codec_context.name
    time_base = stream.time_base or Fraction(1, TICKS)
    try:
        for packet in container.demux(stream):
            if first is None:
                try:
                    frames = packet.decode()
                    first = frames[0] if frames else None
                    if begun is not None:
                        begun.frames = frames
                except av.FFmpegError as error:
                    reason, begun = error, None
            elif begun is not None:
                begun.packets.append(packet)
            if packet.is_corrupt and packet.size and begun is not None:
                begun.frames, begun = [], None
            if not packet.size:
                continue
            if packet.is_discard or packet.is_corrupt:
                continue
            if codec == "vp8" and not bytes(packet)[0] & 0x10:
                continue  # a reference that is never shown
            shown += 1
            if packet.pts is None:
                timed = False
                continue
            times.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(packet.pts)
    except DEMUX_ERRORS as error:
        warnings.append(f"{path}: reading stopped early ({reason_of(error)})")
        reason = error
    announced = _announced_end(container, stream)
    rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
    has_audio = bool(container.streams.audio)
    if first is None:
        raise unreadable(path, reason)
    matrix = _display_matrix(first)
    height, width = first.height, first.width
    check_pixels(path, height, width)
    pts = np.unique(np.asarray(times if timed else [], dtype=np.int64))
    fps, variable = _rate(pts, time_base, rates)
    if len(pts):
        if end <= pts[-1]:
            end = int(pts[-1]) + max(1, round(1 / fps / time_base))
        start, duration = float(pts[0] * time_base), float((end - int(pts[0])) * time_base)
        if announced > start + duration + 0.5 / fps + 2e-3 and not warnings:
            warnings.append(
                f"{path} ends early: its header says {announced:.3f} s, its frames end at"
                f" {start + duration:.3f} s"
            )
    else:
        start, duration = float(first.time or 0), shown / float(fps)
    turned = matrix[0] == 0
    info = VideoInfo(
        path=path,
        kind="video",
        width=height if turned else width,
        height=width if turned else height,
        rotation=_clockwise(matrix),
        fps=fps,
        num_frames=len(pts) if timed else shown,
        duration=duration,
        start=start,
        variable_rate=variable,
        codec=codec,
        pix_fmt=first.format.name,
        color_range=RANGES.get(int(first.color_range), "unknown"),
        color_space=MATRICES.get(int(first.colorspace), "unknown"),
        has_audio=has_audio,
        file_size=file_size,
    )
    return Scan(
        info=info,
        pts=pts,
        keys=np.unique(np.asarray(keys, dtype=np.int64)),
        time_base=time_base,
        stored_size=(height, width),
        matrix=matrix,
        warnings=tuple(warnings),
    )


def _announced_end(container: InputContainer, stream: av.VideoStream) -> float:
    """When the header says the pictures end, in seconds; 0 where it does not say."""
    if stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * (stream.time_base or 0))
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base  # Matroska counts it from 0, not from the start
    return 0.0


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Signs of a quarter-turn display matrix; the identity where there is none or it is skewed."""
    held: Any = frame.side_data  # iterates over its items, unlike the mapping it is typed as
    for data in held.keys():
        if data.type.name == "DISPLAYMATRIX":
            signs = np.sign(np.rint(np.frombuffer(data, np.int32)[:5] / 65536))
            a, b, _, c, d = (int(sign) for sign in signs)
            if (a and d and not b and not c) or (b and c and not a and not d):
                return a, b, c, d
    return 1, 0, 0, 1


def _clockwise(matrix: tuple[int, int, int, int]) -> int:
    a, b, _, d = matrix
    if a:
        return 180 if a < 0 and d < 0 else 0
    return 90 if b > 0 else 270


def upright(
    pixels: np.ndarray[Any, Any], matrix: tuple[int, int, int, int]
) -> np.ndarray[Any, Any]:
    """Turn a stored [H, W, C] picture the way its display matrix says (a view)."""
    a, b, c, d = matrix
    if a:
        return pixels[::d, ::a]
    return pixels.swapaxes(0, 1)[::b, ::c]


def _rate(
    pts: np.ndarray[Any, np.dtype[np.int64]], time_base: Fraction, announced: list[Fraction]
) -> tuple[Fraction, bool]:
    """Average rate, and whether the times leave a steady clock by more than rounding."""
    if len(pts) < 2:
        return (announced[0] if announced else Fraction(25)), False
    seconds = (pts - pts[0]) * float(time_base)
    slack = max(1.01 * float(time_base), 1.01e-3)  # files round to milliseconds
    measured = Fraction(len(pts) - 1) / (int(pts[-1] - pts[0]) * time_base)
    near = (
        Fraction(max(1, round(measured))),
        Fraction(max(1, round(measured * 1001 / 1000)) * 1000, 1001),
        measured.limit_denominator(1001),
    )
    plain_first = sorted((*announced, *near), key=lambda rate: rate.denominator not in (1, 1001))
    for rate in filter(None, plain_first):
        clock = np.arange(len(pts)) / float(rate)
        if np.abs(seconds - clock).max() <= slack:
            return rate, False
    return measured.limit_denominator(1_000_000) or measured, True
