"""Whole files to token files and back, in memory that does not grow with their length.

Reading, the model and writing overlap: the next chunk is worked out while the last one is used.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import torch

from omnitok import Tokenizer, Tokens, TokensError
from omnitok.groups import first_frame
from omnitok.token_stream import TokenReader, TokenWriter
from omnitok.tokens import Preprocess, Source
from video.clip import VideoInfo
from video.errors import VideoError
from video.images import FOLDER_FPS, list_frames
from video.probe import probe
from video.read import open_video
from video.sample import Rate, Size, as_rate
from video.write import VideoWriter

Path = str | os.PathLike[str]
Progress = Callable[[int, int | None], None]  # frames done, frames in all where known
RANGES = {"limited": "tv", "full": "pc"}
PIECE = 1 << 22  # bytes hashed for every chunk of frames
MAX_RATE = 1000  # frames per second believed of a token file

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TokenizeResult:
    """What `tokenize_file` did.

    Attributes:
        src: The video, image or folder.
        dst: The token file.
        kept: Whether `dst` was there before and was left as it is.
        size: Frames, height and width of what was tokenized.
        grid: Tokens in time, height and width.
        bits_per_token: Bits of one token.
        num_bytes: Size of the token file.
        seconds: Time it took.
        has_audio: Whether the source has sound, which is not kept.
        warnings: One sentence for everything that was not as it should be.
    """

    src: str
    dst: str
    kept: bool
    size: tuple[int, int, int]
    grid: tuple[int, int, int]
    bits_per_token: float
    num_bytes: int
    seconds: float
    has_audio: bool
    warnings: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return math.prod(self.grid)

    @property
    def bits_per_pixel(self) -> float:
        """Token bits for each pixel."""
        return self.num_tokens * self.bits_per_token / math.prod(self.size)


@dataclass(frozen=True, kw_only=True)
class DetokenizeResult:
    """What `detokenize_file` did.

    Attributes:
        src: The token file.
        dst: The video or image.
        kept: Whether `dst` was there before and was left as it is.
        size: Frames, height and width.
        num_bytes: Size of `dst`.
        seconds: Time it took.
    """

    src: str
    dst: str
    kept: bool
    size: tuple[int, int, int]
    num_bytes: int
    seconds: float


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Work out the next item in a thread while the caller uses the last one."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # `end` never gets here


def tokenize_file(
    tok: Tokenizer,
    src: Path,
    dst: Path,
    *,
    fps: Rate | None = None,
    size: Size | None = None,
    clip: tuple[float, float] | None = None,
    on_damage: str = "raise",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TokenizeResult:
    """Turn a video, an image, an animation or a folder of frames into a token file.

    Args:
        tok: The tokenizer.
        src: What to read.
        dst: The token file; it appears when it is complete.
        fps: Resample to this rate; of a folder, the rate of its frames.
        size: As in `open_video`.
        clip: (start, end) in seconds; the end may be infinite.
        on_damage: "raise" stops at a damaged packet, "skip" leaves its frames out and warns.
        overwrite: Replace `dst`; otherwise a whole token file of the same source is kept.
        progress: Called after every chunk.

    Raises:
        VideoError: `src` cannot be read.
        TokensError: `dst` cannot be written, or exists and is not a token file of `src`.
    """
    started = time.monotonic()
    src, dst = os.fspath(src), os.fspath(dst)
    wanted = Preprocess(
        fps=None if fps is None or os.path.isdir(src) else str(as_rate(fps)),
        size=size,
        clip=None if clip is None else (clip[0], clip[1] if math.isfinite(clip[1]) else None),
        window=None if tok.window is None else (tok.window, 0),
    )
    if has_output(dst) and not overwrite:
        return _kept(tok, src, dst, wanted, fps)
    digest, pieces = hashlib.sha256(), _pieces(src)
    reader = open_video(
        src, fps=fps, size=size, clip=clip, on_damage=on_damage, chunk=max(4, tok.patch[0])
    )

    def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for chunk in reader:
            digest.update(next(pieces, b""))
            yield chunk

    done, grid, bits = 0, (0, 0, 0), 0.0
    waiting = torch.empty(0, dtype=torch.float64)  # times of the frames that are not written yet
    with reader, TokenWriter(dst) as writer, tok.stream() as stream:

        def write(part: Tokens) -> None:
            nonlocal waiting, grid, bits
            frames, (t, h, w) = part.size[0], part.grid
            writer.write(replace(part, pts=waiting[:frames]))
            waiting, grid, bits = waiting[frames:], (grid[0] + t, h, w), part.bits_per_token

        for frames, pts in ahead(chunks()):
            waiting = torch.cat([waiting, pts])
            write(stream.push(frames))
            done += len(frames)
            if progress is not None:
                progress(done, reader.num_frames)
        write(stream.finish())
        for piece in pieces:
            digest.update(piece)
        total = (done, *reader.size)
        writer.source = _source(reader.info, digest.hexdigest())
        writer.preprocess = replace(wanted, pad=_pad(tok, grid, total))
    warnings = list(reader.warnings)
    if on_damage == "skip" and reader.damaged:
        warnings.append(f"{src}: {reader.damaged} damaged packets were left out")
    return TokenizeResult(
        src=src,
        dst=dst,
        kept=False,
        size=total,
        grid=grid,
        bits_per_token=bits,
        num_bytes=os.path.getsize(dst),
        seconds=time.monotonic() - started,
        has_audio=reader.info.has_audio,
        warnings=tuple(warnings),
    )


def detokenize_file(
    tok: Tokenizer,
    src: Path,
    dst: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DetokenizeResult:
    """Turn a token file into a video or an image of the size, number and times of its frames.

    Args:
        tok: The tokenizer that made the tokens.
        src: The token file.
        dst: What to write, as `VideoWriter` takes it; it appears when it is complete.
        overwrite: Replace `dst`; otherwise it is kept.
        progress: Called after every group of frames.

    Raises:
        TokensError: `src` is damaged, or was made by other weights.
        VideoError: `dst` cannot be written.
    """
    started = time.monotonic()
    src, dst = os.fspath(src), os.fspath(dst)
    with TokenReader(src, tokenizer=tok) as reader:
        kept = has_output(dst) and not overwrite
        if kept:
            check_decoded(dst, reader.size)
        else:
            done = 0
            with VideoWriter(dst, fps=_rate(reader)) as writer:
                for frames in ahead(tok.stream_decode(reader)):
                    last = done + len(frames)
                    writer.write(frames, None if reader.pts is None else reader.pts[done:last])
                    done = last
                    if progress is not None:
                        progress(done, reader.size[0])
    return DetokenizeResult(
        src=src,
        dst=dst,
        kept=kept,
        size=reader.size,
        num_bytes=os.path.getsize(dst),
        seconds=time.monotonic() - started,
    )


def decoded_suffix(source_kind: str | None, num_frames: int) -> str:
    """Which kind of file keeps the frames and times of a source: .png for a still, else .mp4.

    Animations become .mp4 too: a .gif would reduce them to 256 colours and merge equal frames.
    """
    still = num_frames == 1 and source_kind in (None, "image")
    return ".png" if still else ".mp4"


def has_output(dst: str) -> bool:
    """Whether there is something to keep; an empty file is what a crash of the machine leaves."""
    return os.path.lexists(dst) and not (os.path.isfile(dst) and not os.path.getsize(dst))


def open_kept(src: str, dst: str) -> TokenReader:
    """Open the tokens of `src` that are there already.

    Raises:
        TokensError: They cannot be taken for done.
    """
    try:
        reader = TokenReader(dst)
    except TokensError as error:
        raise TokensError(
            f"{dst} exists and is not a whole token file; delete or overwrite it ({error})"
        ) from error
    made_from = reader.source.uri if reader.source else None
    if made_from == _name(src):
        return reader
    reader.close()
    raise TokensError(
        f"{dst} exists and holds the tokens of {made_from!r}, not of {_name(src)!r}; overwrite it "
        "or name another output"
    )


def _kept(
    tok: Tokenizer, src: str, dst: str, wanted: Preprocess, fps: Rate | None
) -> TokenizeResult:
    """The result for a token file that is there already."""
    started = time.monotonic()
    with open_kept(src, dst) as reader:
        done = reader.preprocess and replace(reader.preprocess, pad=(0, 0, 0))
        warnings = []
        other = reader.info.weights_sha256 != tok.weights_sha256 or done != wanted
        if os.path.isdir(src) and reader.source is not None:
            other = other or reader.source.fps != str(as_rate(fps or FOLDER_FPS))
        if other:
            warnings.append(
                f"{dst} was made with other weights or options and is kept; overwrite it to use "
                "these"
            )
        return TokenizeResult(
            src=src,
            dst=dst,
            kept=True,
            size=reader.size,
            grid=reader.grid,
            bits_per_token=reader.bits_per_token,
            num_bytes=os.path.getsize(dst),
            seconds=time.monotonic() - started,
            has_audio=bool(reader.source and reader.source.has_audio),
            warnings=tuple(warnings),
        )


def check_decoded(dst: str, size: tuple[int, int, int]) -> None:
    """Refuse to take a file for decoded tokens of this size that cannot be.

    Raises:
        VideoError: It cannot be.
    """
    try:
        info = probe(dst)
    except VideoError as error:
        raise VideoError(
            f"{dst} exists and is not whole; delete or overwrite it ({error})"
        ) from error
    # an animation may merge equal frames
    frames = info.num_frames if info.kind == "video" else size[0]
    if (frames, info.height, info.width) != size:
        raise VideoError(
            f"{dst} exists with {info.num_frames} frames of {info.width}x{info.height}, but the "
            f"tokens hold {size[0]} of {size[2]}x{size[1]}; overwrite it or name another output"
        )


def _pieces(path: str) -> Iterator[bytes]:
    """Contents of a file, or of the images of a folder one after another."""
    for name in list_frames(path) if os.path.isdir(path) else [path]:
        with open(name, "rb") as file:
            while piece := file.read(PIECE):
                yield piece


def _name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _source(info: VideoInfo, sha256: str) -> Source:
    turned = info.rotation in (90, 270)
    return Source(
        uri=_name(info.path),
        sha256=sha256,
        width=info.height if turned else info.width,
        height=info.width if turned else info.height,
        fps=None if info.fps is None else str(info.fps),
        num_frames=info.num_frames,
        start=info.start,
        rotation=info.rotation,
        has_audio=info.has_audio,
        codec=info.codec,
        color_range=RANGES.get(info.color_range),
        kind=info.kind,
    )


def _pad(
    tok: Tokenizer, grid: tuple[int, int, int], size: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Frames, rows and columns by which whole groups and patches exceed the clip."""
    (t, h, w), (pt, ph, pw) = grid, tok.patch
    frames = first_frame(t, pt, tok.causal, tok.window)
    return frames - size[0], h * ph - size[1], w * pw - size[2]


def _rate(reader: TokenReader) -> Fraction | None:
    """Frame rate of the clip that the tokens were made from."""
    rate = (reader.preprocess and reader.preprocess.fps) or (reader.source and reader.source.fps)
    try:
        if rate and as_rate(rate) <= MAX_RATE:
            return as_rate(rate)
    except ValueError:
        pass  # refused the same way as a rate that is too high
    if not rate:
        return None
    raise VideoError(f"the tokens claim fps={rate!r}; expected a number in 0..{MAX_RATE}")
