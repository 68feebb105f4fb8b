"""`omnitok compare`: how close two clips are, frame by frame."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands import shaping
from tools.commands.errors import DONE, InputError, UsageError
from tools.commands.loading import ByTokens
from tools.commands.options import add_json, add_model
from tools.commands.reporting import Report, columns
from tools.commands.stopping import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SAME_TIME = 1e-3  # seconds by which times may differ: files round to milliseconds


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="measure how close two videos, images, 3D assets or token files are",
        description="PSNR and SSIM of each frame and their means, the worst frame, and flicker; of "
        "3D assets Chamfer distance, F-score, IoU and normals. A token file is decoded first. "
        "Clips must have the same size and number of frames.",
    )
    parser.add_argument("a", metavar="A", help="a video, an image, a 3D asset or tokens")
    parser.add_argument("b", metavar="B", help="the same, to compare with A")
    parser.add_argument("-o", "--output", metavar="MP4", help="write a video of A beside B")
    parser.add_argument("--png", metavar="PNG", help="write a sheet of frames or views")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    add_model(parser, None, "weights to decode tokens with (default: those that made them)")
    add_json(parser)
    parser.set_defaults(run=run)


@dataclass(kw_only=True)
class Comparison:
    """How close two clips are.

    Attributes:
        size: Frames, height and width of both.
        times: Seconds of each frame of A.
        psnr: Decibels of each frame.
        ssim: Structural similarity of each frame.
        flicker: Mean absolute difference of the frame-to-frame changes, in 8-bit steps.
        time_difference: Largest difference of the times of a frame in seconds.
    """

    size: tuple[int, int, int]
    times: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    flicker: float = 0.0
    time_difference: float = 0.0

    @property
    def mean_psnr(self) -> float:
        """Mean over frames in decibels."""
        return sum(self.psnr) / len(self.psnr)

    @property
    def mean_ssim(self) -> float:
        """Mean over frames."""
        return sum(self.ssim) / len(self.ssim)

    @property
    def worst(self) -> int:
        """Number of the frame with the lowest PSNR."""
        return min(range(len(self.psnr)), key=self.psnr.__getitem__)


@dataclass(kw_only=True)
class Frames:
    """Frames of a file as they come, one at a time.

    Attributes:
        path: The file.
        size: Height and width.
        num_frames: How many there are, where known.
        fps: Frame rate, where known.
        frames: [3, H, W] uint8 and seconds of each.
    """

    path: str
    size: tuple[int, int]
    num_frames: int | None
    fps: str | None
    frames: Iterator[tuple[Tensor, float]]


@contextmanager
def open_frames(path: str, models: ByTokens) -> Iterator[Frames]:
    """Open a video, an image, or a token file that is decoded as it is read."""
    import torch

    from omnitok.token_stream import TokenReader
    from video import open_video
    from video.files import ahead

    if not path.endswith(".safetensors"):
        with open_video(path) as reader:

            def read() -> Iterator[tuple[Tensor, float]]:
                for frames, pts in ahead(reader):
                    yield from zip(frames, pts.tolist(), strict=True)

            fps = None if reader.fps is None else str(reader.fps)
            yield Frames(
                path=path, size=reader.size, num_frames=reader.num_frames, fps=fps, frames=read()
            )
        return
    tok = models.get(path)
    with TokenReader(path, tokenizer=tok) as tokens:
        fps = tokens.source.fps if tokens.source else None
        count = tokens.size[0]
        pts = tokens.pts if tokens.pts is not None else torch.arange(count) / 25

        def decode() -> Iterator[tuple[Tensor, float]]:
            decoded = (frame for frames in ahead(tok.stream_decode(tokens)) for frame in frames)
            return zip(decoded, pts.tolist(), strict=True)

        yield Frames(path=path, size=tokens.size[1:], num_frames=count, fps=fps, frames=decode())


def compare(
    a: Frames,
    b: Frames,
    *,
    side: str | None = None,
    sheet: str | None = None,
    titles: tuple[str, str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Comparison:
    """Compare two clips in one pass, a frame of each in memory.

    Args:
        a: One clip.
        b: The other one.
        side: Video of A beside B to write.
        sheet: Contact sheet to write.
        titles: Names on the sheet; by default those of the files.
        progress: Called after each frame.

    Raises:
        InputError: The clips have different sizes or numbers of frames.
    """
    import torch

    from omnitok.metrics.pixel import flicker, psnr, ssim
    from tools.commands.drawing import Sheet
    from video import VideoWriter

    if a.size != b.size:
        raise InputError(
            f"{a.path} is {a.size[1]}x{a.size[0]} and {b.path} is {b.size[1]}x{b.size[0]} pixels; "
            "only clips of one size can be compared"
        )
    if a.num_frames and b.num_frames and a.num_frames != b.num_frames:
        raise _other_count(a, b, str(a.num_frames), str(b.num_frames))
    result = Comparison(size=(0, *a.size))
    names = titles or (os.path.basename(a.path), os.path.basename(b.path))
    drawn = Sheet(names, a.num_frames or b.num_frames or 1) if sheet else None
    changes = 0.0
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(side, fps=a.fps)) if side else None
        before: tuple[Tensor, Tensor] | None = None
        number = 0
        while True:
            one, two = next(a.frames, None), next(b.frames, None)
            if one is None or two is None:
                if one is two:
                    break
                counts = [str(number) if end is None else "more" for end in (one, two)]
                raise _other_count(a, b, counts[0], counts[1])
            (x, time), (y, other_time) = one, two
            result.times.append(time)
            result.psnr.append(float(psnr(x[None], y[None])))
            result.ssim.append(float(ssim(x[None], y[None])))
            result.time_difference = max(result.time_difference, abs(time - other_time))
            if before is not None:
                changes += flicker(torch.stack([before[0], x]), torch.stack([before[1], y]))
            before = (x, y)
            if writer is not None:
                writer.write(torch.cat([x, y], dim=2)[None], [time])
            if drawn is not None:
                label = f"frame {number}, {time:.3f} s, {result.psnr[-1]:.2f} dB"
                drawn.add(number, label, x, y)
            number += 1
            if progress is not None:
                progress(number, a.num_frames)
        if drawn is not None and sheet:
            drawn.save(Path(sheet))
    result.size = (number, *a.size)
    result.flicker = changes / max(1, number - 1)
    return result


def _other_count(a: Frames, b: Frames, count_a: str, count_b: str) -> InputError:
    return InputError(
        f"{a.path} has {count_a} frames and {b.path} has {count_b}; only clips with equally many "
        "frames can be compared"
    )


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse to write over a file that is read, or twice to one."""
    used = {os.path.realpath(path) for path in (args.a, args.b)}
    for path in filter(None, (args.output, args.png)):
        if os.path.realpath(path) in used:
            raise UsageError(f"{path} is named twice; give every output a name of its own")
        used.add(os.path.realpath(path))


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    report = Report(json=args.json)
    _check_outputs(args)
    models = ByTokens(args)
    if shaping.holds_shape(args.a) or shaping.holds_shape(args.b):
        return shaping.compare(args, report, models)
    outputs = {}
    for name, path in (("side_by_side", args.output), ("sheet", args.png)):
        if path and os.path.lexists(path) and not args.overwrite:
            report.note(f"kept {path}, which exists; --overwrite replaces it")
            path = None
        outputs[name] = path
    with (
        report.progress(1) as progress,
        open_frames(args.a, models) as a,
        open_frames(args.b, models) as b,
    ):

        def update(done: int, total: int | None) -> None:
            check()
            progress.update(done, total)

        progress.start(args.b)
        result = compare(
            a, b, side=outputs["side_by_side"], sheet=outputs["sheet"], progress=update
        )
    data = {"command": "compare", "a": args.a, "b": args.b, **facts(result), **outputs}
    lines = [("A", args.a), ("B", args.b), *describe(result)]
    lines += [(name, path) for name, path in outputs.items() if path]
    report.result(data, columns(lines))
    return DONE


def facts(result: Comparison) -> dict[str, Any]:
    """A comparison for a program."""
    frames = zip(result.times, result.psnr, result.ssim, strict=True)
    return {
        "num_frames": result.size[0],
        "height": result.size[1],
        "width": result.size[2],
        "psnr": result.mean_psnr,
        "ssim": result.mean_ssim,
        "flicker": result.flicker,
        "worst_frame": result.worst,
        "time_difference": result.time_difference,
        "same_times": result.time_difference <= SAME_TIME,
        "frames": [{"time": t, "psnr": p, "ssim": s} for t, p, s in frames],
    }


def describe(result: Comparison) -> list[tuple[str, str]]:
    """A comparison for a person."""
    frames, height, width = result.size
    worst = result.worst
    lines = [
        ("size", f"{frames} frame{'s' * (frames != 1)} of {width}x{height}"),
        ("PSNR", f"{result.mean_psnr:.2f} dB (mean of the frames)"),
        ("SSIM", f"{result.mean_ssim:.4f} (mean of the frames)"),
        (
            "worst frame",
            f"{worst} at {result.times[worst]:.3f} s: {result.psnr[worst]:.2f} dB, "
            f"SSIM {result.ssim[worst]:.4f}",
        ),
    ]
    if frames > 1:
        lines.append(("flicker", f"{result.flicker:.2f} of 255"))
    if result.time_difference > SAME_TIME:
        lines.append(("times", f"differ by up to {result.time_difference:.3f} s"))
    return lines
