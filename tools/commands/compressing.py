"""`omnitok compress`: token files to compact token files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tools.commands.batch import Outcome, Update, planned, run_jobs
from tools.commands.errors import InputError, UsageError
from tools.commands.loading import ByTokens
from tools.commands.options import add_batch, add_model
from tools.commands.planning import TOKENS, Job, is_tokens, make_plan
from tools.commands.reporting import Report, size_of
from tools.commands.stopping import check

if TYPE_CHECKING:
    from tools.commands.comparing import Frames
    from video.compress import Method
    from video.write import VideoWriter

COMPACT = ".compact" + TOKENS


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compress",
        help="keep a share of the tokens of token files, by any of many methods",
        description="Writes talk.compact.omni.safetensors for talk.omni.safetensors: fewer tokens, "
        "and the plan that says where they were and what they stand for. `omnitok decode` and "
        "`omnitok inspect` take compact files like all others. Latents are merged; codes cannot "
        "be, so that each output keeps the code of one of its tokens.",
        epilog="`omnitok compress --methods` lists the methods.",
    )
    parser.add_argument("inputs", nargs="*", metavar="TOKENS", help="a token file or a folder")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="a folder, or for one input a .safetensors file"
    )
    parser.add_argument("--method", metavar="M", default="dycoke", help="default: dycoke")
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="B",
        default=0.25,
        help="what stays: a share such as 0.25, a number such as 512, or `default` for what the "
        "method was published with (default: 0.25)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=setting,
        metavar="NAME=VALUE",
        help="a setting of the method; may be given several times",
    )
    parser.add_argument(
        "--overlay", metavar="MP4", help="write a video that shows on the frames what was kept"
    )
    parser.add_argument(
        "--source",
        metavar="VIDEO",
        help="frames to show it on, as many and as large as were tokenized (default: the decoded "
        "tokens)",
    )
    parser.add_argument("--methods", action="store_true", help="list the methods and stop")
    add_model(parser, None, "weights that made the tokens, where they do not ship with omnitok")
    add_batch(parser)
    parser.set_defaults(run=run)


def budget(text: str) -> float | int | None:
    """A share, a number, or None for `default`."""
    if text == "default":
        return None
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        value = 0
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no budget; give a share above 0 and up to 1.0, a whole number of tokens, "
            "or `default`"
        )
    return value


def setting(text: str) -> tuple[str, Any]:
    """A setting NAME=VALUE; the value is a number, true, false, or a word."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no setting; give it as NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from video.compress import METHODS
    from video.compress.files import compress_file
    from video.compress.registry import choices

    report = Report(json=args.json, quiet=args.quiet)
    if args.methods:
        return _list(report)
    able = {name: m for name, m in METHODS.items() if m.needs == ("tokens",)}
    if args.method not in able:
        if args.method not in METHODS:
            raise UsageError(f"--method {args.method} is unknown; {choices(args.method, able)}")
        needs = " and ".join(METHODS[args.method].needs[1:])
        raise UsageError(
            f"--method {args.method} needs {needs}, which no token file holds; choose one of "
            f"{sorted(able)}"
        )
    settings = _settings(args, able[args.method])
    if not args.inputs:
        raise UsageError("name a token file or a folder of them")
    plan = make_plan(
        args.inputs,
        args.output,
        wanted=lambda name: is_tokens(name) and not name.endswith(COMPACT),
        ending=lambda _: COMPACT,
        is_file_name=lambda name: name.endswith(".safetensors"),
    )
    if args.overlay and len(plan.jobs) != 1:
        raise UsageError(f"--overlay {args.overlay} is one file; name one token file")
    models = ByTokens(args)

    def work(job: Job, update: Update) -> Outcome:
        _refuse_overwriting(args, job)
        if args.dry_run:
            return planned(job, args.overwrite, f"{args.method} at {_share(args.budget)}", {})
        if os.path.lexists(job.dst) and not args.overwrite:
            missed = "; pass --overwrite for the overlay as well" if args.overlay else ""
            line = f"{job.src}: kept {job.dst}, which exists{missed}"
            return Outcome(status="skipped", line=line)
        os.makedirs(os.path.dirname(os.path.abspath(job.dst)), exist_ok=True)
        with _open_overlay(args, job, models) as overlay:
            try:
                done = compress_file(
                    job.src,
                    job.dst,
                    args.method,
                    args.budget,
                    load=lambda: models.get(job.src),
                    **settings,
                )
            except ValueError as error:
                why = str(error)
                raise InputError(why if job.src in why else f"{job.src}: {why}") from error
            if overlay is not None:
                _show(job, *overlay)
        share = done.kept / done.total
        return Outcome(
            status="done",
            line=f"{job.src} -> {job.dst}: {done.kept:,} of {done.total:,} tokens ({share:.1%}), "
            f"{size_of(done.num_bytes)}, {args.method} took {done.seconds:.2f} s",
            facts={
                "kept": done.kept,
                "total": done.total,
                "method": args.method,
                "budget": args.budget,
                "settings": settings,
                "file_bytes": done.num_bytes,
                "seconds": done.seconds,
                "overlay": args.overlay,
            },
        )

    return run_jobs("compress", plan, work, report)


def _share(value: float | int | None) -> str:
    return "its published budget" if value is None else f"budget {value}"


def _settings(args: argparse.Namespace, method: Method) -> dict[str, Any]:
    from video.compress.options import check_options

    settings = dict(args.set)
    if wrong := sorted(set(settings) - set(method.settings)):
        raise UsageError(
            f"--set {wrong[0]}: {method.name} has no such setting; it has "
            f"{sorted(method.settings) or 'none'}"
        )
    try:
        check_options(method.name, method.run, settings)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from error
    return settings


def _list(report: Report) -> int:
    from tools.commands.eval_table import table
    from video.compress import METHODS

    rows = [["method", "needs", "settings", "what it does"]]
    for name in sorted(METHODS):
        method = METHODS[name]
        settings = ", ".join(f"{k}={v!r}" for k, v in method.settings.items())
        rows.append([name, ", ".join(method.needs), settings, method.note])
    data = {
        "command": "compress",
        "methods": [dict(zip(rows[0], row, strict=True)) for row in rows[1:]],
    }
    report.result(data, table(rows))
    return 0


def _refuse_overwriting(args: argparse.Namespace, job: Job) -> None:
    """Refuse outputs that are inputs, or each other."""
    read = {"tokens": job.src, "source": args.source}
    written = {"output": job.dst, "overlay": args.overlay}
    for what, path in written.items():
        for other, taken in (*read.items(), ("output", job.dst)):
            if path and taken and what != other and _same(path, taken):
                raise InputError(
                    f"the {what} {path} would replace the {other}; give it another name"
                )


def _same(a: str, b: str) -> bool:
    there = os.path.exists(a) and os.path.exists(b)
    return os.path.samefile(a, b) if there else os.path.abspath(a) == os.path.abspath(b)


@contextmanager
def _open_overlay(
    args: argparse.Namespace, job: Job, models: ByTokens
) -> Iterator[tuple[Frames, VideoWriter] | None]:
    """Open the frames to show and the video of them, if wanted, before there is any output."""
    from omnitok.token_layout import TokenFile
    from tools.commands.comparing import open_frames
    from video.write import VideoWriter

    if not args.overlay:
        yield None
        return
    if os.path.lexists(args.overlay) and not args.overwrite:
        raise InputError(f"{args.overlay} exists; pass --overwrite or name another overlay")
    with TokenFile(job.src) as file:
        size = file.layout.size
    with open_frames(args.source or job.src, models) as clip:
        if (clip.num_frames, *clip.size) != size:
            raise InputError(
                f"{clip.path} has {clip.num_frames} frames of {clip.size[1]}x{clip.size[0]}, but "
                f"{job.src} is of {size[0]} of {size[2]}x{size[1]}; leave --source out to show the "
                "decoded tokens"
            )
        os.makedirs(os.path.dirname(os.path.abspath(args.overlay)), exist_ok=True)
        with VideoWriter(args.overlay, fps=clip.fps) as writer:
            yield clip, writer


def _show(job: Job, clip: Frames, writer: VideoWriter) -> None:
    """Write the video that shows what was kept."""
    import torch

    from omnitok.groups import group_frames
    from omnitok.token_layout import TokenFile, window_of
    from video.compress.overlay import kinds_of, show_kept

    with TokenFile(job.dst) as file:
        layout = file.layout
    assert layout.plan is not None
    kinds = kinds_of(layout.plan, layout.grid)
    patch = layout.info.patch
    starts = group_frames(
        layout.size[0], patch[0], layout.info.causal, window_of(layout.preprocess)
    )
    group, done = 0, 0
    for frame, seconds in clip.frames:
        check()
        group += done == starts[group + 1]
        shown = show_kept(frame, kinds[group], patch[1:])
        writer.write(shown[None], torch.tensor([seconds], dtype=torch.float64))
        done += 1
