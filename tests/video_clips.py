"""Small clips of every kind that people have, made once per session and only when asked for.

Every frame carries its number as eight light or dark blocks along its top edge, so a test can tell
which frame it got after any compression; below them the left part is red and the right part blue.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[H, W, 3] uint8 frame that carries its number (0 to 255)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 200, 30, 30
    pixels[:, width // 2 :] = 30, 30, 200
    row = height // 2 + number % (height // 4)
    pixels[row : row + height // 8, 4 : width - 4] = 40, 180, 60
    for bit in range(8):
        edges = bit * width // 8, (bit + 1) * width // 8
        pixels[: height // 4, edges[0] : edges[1]] = 220 if number >> bit & 1 else 30
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """Read the number back from an upright [H, W, 3] frame or a [3, H, W] tensor."""
    pixels = np.asarray(pixels)
    if pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    strip = pixels[: pixels.shape[0] // 4].mean((0, 2))
    return sum(1 << n for n, part in enumerate(np.array_split(strip, 8)) if part.mean() > 125)


def encode(
    path: Path,
    count: int,
    *,
    size: tuple[int, int] = (48, 64),
    step: Fraction | Sequence[float] = Fraction(1, 25),
    start: float = 0.0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    turn: int = 0,
    sound: bool = False,
) -> Path:
    """Write `count` numbered frames of an upright `size`, stored turned and flagged with `turn`."""
    steps = [step] if isinstance(step, Fraction) else list(step)
    rate = 1 / steps[0] if isinstance(steps[0], Fraction) else Fraction(30)
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size if turn % 180 == 0 else size[::-1]
        stream.pix_fmt = pix_fmt
        base = Fraction(1, 90000)
        if isinstance(step, Fraction):  # avi counts in frames, the others may be finer
            base = step if path.suffix == ".avi" else Fraction(1, 2 * rate.numerator)
        stream.time_base = stream.codec_context.time_base = base
        voice = output.add_stream("aac", rate=8000, layout="mono") if sound else None
        time = Fraction(start)
        for number in range(count):
            stored = np.ascontiguousarray(np.rot90(picture(number, *size), turn // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time / base), base
            output.mux(stream.encode(frame))
            time += Fraction(steps[number % len(steps)])
        output.mux(stream.encode(None))
        if voice is not None:
            tone = av.AudioFrame.from_ndarray(
                np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
            )
            tone.sample_rate = 8000
            output.mux(voice.encode(tone))
            output.mux(voice.encode(None))
    if turn:
        _ask_for_turn(path, turn)
    return path


def _ask_for_turn(path: Path, degrees: int) -> None:
    """Set the display matrix in an mp4's track header (version 0)."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one, unit = 1 << 16, 1 << 30
    matrix = (cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, unit)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def cut(source: Path, target: Path, keep: float) -> Path:
    """The first part of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def _sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        voice = output.add_stream("aac", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        tone.sample_rate = 8000
        output.mux(voice.encode(tone))
        output.mux(voice.encode(None))
    return path


def _size_change(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        larger = av.CodecContext.create("libx264", "w")
        larger.height, larger.width, larger.pix_fmt = 96, 128, "yuv420p"
        larger.time_base, larger.options = Fraction(1, 25), {"bf": "0"}
        for number in range(21):
            encoder, size = (stream, (48, 64)) if number < 10 else (larger, (96, 128))
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets = encoder.encode(frame if number < 20 else None)
            if number == 9:
                packets += encoder.encode(None)
            for packet in packets:
                packet.stream = stream
                output.mux(packet)
    return path


def _animation(path: Path, count: int, milliseconds: list[int], **options: object) -> Path:
    frames = [Image.fromarray(picture(n)) for n in range(count)]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, **options
    )
    return path


def _image(path: Path, **options: object) -> Path:
    Image.fromarray(picture(5)).save(path, **options)
    return path


def _sideways_jpeg(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left; to be shown a quarter turn clockwise
    stored = Image.fromarray(picture(5)).transpose(Image.Transpose.ROTATE_90)
    stored.save(path, exif=exif, quality=95)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    for number in range(12):
        Image.fromarray(picture(number)).save(path / f"frame{number}.png")
    (path / "notes.txt").write_text("not a frame")
    return path


GOP = "keyint=12:min-keyint=12:scenecut=0:bframes=3"
VARIABLE = (0.02, 0.051, 0.033, 0.1, 0.0167)
UPRIGHT: dict[str, Callable[[Path], Path]] = {
    "steady.mp4": lambda p: encode(p, 30),
    "film.mp4": lambda p: encode(p, 24, step=Fraction(1001, 24000)),
    "smooth.mp4": lambda p: encode(p, 60, step=Fraction(1001, 60000)),
    "variable.mp4": lambda p: encode(p, 20, step=VARIABLE),
    "phone.mp4": lambda p: encode(p, 10, size=(48, 64), turn=90),
    "phone180.mp4": lambda p: encode(p, 10, turn=180),
    "phone270.mp4": lambda p: encode(p, 10, turn=270),
    "odd.mp4": lambda p: encode(p, 8, size=(47, 63), pix_fmt="yuv444p"),
    "single.mp4": lambda p: encode(p, 1),
    "open_gop.mp4": lambda p: encode(p, 60, options={"x264-params": GOP + ":open-gop=1"}),
    "closed_gop.mp4": lambda p: encode(p, 60, options={"x264-params": GOP}),
    "late.mp4": lambda p: encode(p, 10, start=1.5),
    "sound.mp4": lambda p: encode(p, 25, sound=True),
    "matroska.mkv": lambda p: encode(p, 30, step=Fraction(1001, 30000)),
    "broadcast.ts": lambda p: encode(p, 30),
    "old.avi": lambda p: encode(p, 30, codec="mpeg4", options={"bf": "2", "g": "12"}),
    "web.webm": lambda p: encode(p, 20, codec="libvpx-vp9", options={"deadline": "realtime"}),
    "vp8.webm": lambda p: encode(
        p, 40, codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k"}
    ),
    "tiny.png": lambda p: _image(p),
    "tiny.jpg": lambda p: _image(p, quality=95),
    "tiny.webp": lambda p: _image(p, lossless=True),
    "sideways.jpg": _sideways_jpeg,
    "moving.gif": lambda p: _animation(p, 6, [40, 100, 200, 40, 50, 60]),
    "moving.webp": lambda p: _animation(p, 6, [40, 100, 200, 40, 50, 60], lossless=True),
    "frames": _folder,
}
BROKEN: dict[str, Callable[[Path], Path]] = {
    "empty.mp4": lambda p: (p.write_bytes(b"") and p) or p,
    "text.mp4": lambda p: p.write_text("this is no video\n" * 50) and p,
    "text.txt": lambda p: p.write_text("this is no video\n" * 50) and p,
    "headless.mp4": lambda p: cut(encode(p.with_name("whole_headless.mp4"), 30), p, 0.6),
    "sound.m4a": _sound_only,
    "playlist.m3u8": lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\nsteady.mp4\n") and p,
    "list.ffconcat": lambda p: p.write_text("ffconcat version 1.0\nfile steady.mp4\n") and p,
    "noframes.png": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)) and p,
}
DAMAGED: dict[str, Callable[[Path], Path]] = {
    "truncated.mp4": lambda p: cut(
        encode(p.with_name("whole.mp4"), 30, container={"movflags": "faststart"}), p, 0.7
    ),
    "truncated.mkv": lambda p: cut(encode(p.with_name("whole.mkv"), 30), p, 0.7),
    "resized.ts": _size_change,
}
RECIPES = UPRIGHT | BROKEN | DAMAGED
