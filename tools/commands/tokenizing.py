"""`omnitok tokenize`: videos, images, 3D assets and folders to token files."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from typing import Any

from tools.commands.batch import Outcome, Update, finished, planned, run_jobs
from tools.commands.loading import load, outline
from tools.commands.options import add_batch, add_model, rate, seconds, side
from tools.commands.planning import TOKENS, Job, Plan, is_media, is_shape, make_plan
from tools.commands.reporting import Report
from tools.commands.shaping import default_model, planned_job, tokenize_job


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "tokenize",
        help="turn videos, images, 3D assets and folders of them into token files",
        description="Writes talk.omni.safetensors for talk.mp4, beside it or into OUT. A folder "
        "stands for all videos, images and 3D assets in it and its subfolders. Options about "
        "frames do nothing for 3D assets.",
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help="a video, an image, a 3D asset or a folder"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="a folder, or for one input a .safetensors file"
    )
    add_model(
        parser,
        None,
        "a name from `omnitok models`, or a weights file (default: tiny; tiny-3d for 3D assets "
        "where it is there)",
    )
    parser.add_argument(
        "--fps", type=rate, metavar="F", help="resample to F frames per second (25, 30000/1001)"
    )
    parser.add_argument(
        "--size", type=side, metavar="S", help="make the shorter side S pixels, keep the aspect"
    )
    parser.add_argument(
        "--clip", type=seconds, metavar="A:B", help="take only the seconds A to B of each video"
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="a folder is one video with an image for each frame (25 fps, or --fps)",
    )
    parser.add_argument(
        "--on-damage",
        choices=("raise", "skip"),
        default="raise",
        help="fail at a damaged packet, or leave its frames out and warn (default: raise)",
    )
    add_batch(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    report = Report(json=args.json, quiet=args.quiet)
    plan = make_plan(
        args.inputs,
        args.output,
        wanted=is_media,
        ending=lambda _: TOKENS,
        is_file_name=lambda name: name.endswith(".safetensors"),
        walk=not args.frames,
    )
    return _dry_run(args, plan, report) if args.dry_run else _run(args, plan, report)


def _run(args: argparse.Namespace, plan: Plan, report: Report) -> int:
    from video.files import tokenize_file

    names = {args.model or default_model(job.src) for job in plan.jobs if not job.error}
    loaded = {name: load(name, args) for name in sorted(names)}

    def work(job: Job, update: Update) -> Outcome:
        tok = loaded[args.model or default_model(job.src)]
        os.makedirs(os.path.dirname(os.path.abspath(job.dst)), exist_ok=True)
        if is_shape(job.src):
            return tokenize_job(tok, job, args.overwrite)
        done = tokenize_file(
            tok,
            job.src,
            job.dst,
            fps=args.fps,
            size=args.size,
            clip=args.clip,
            on_damage=args.on_damage,
            overwrite=args.overwrite,
            progress=update,
        )
        facts = {
            **_facts(done.size, done.grid),
            "bits_per_token": done.bits_per_token,
            "bits_per_pixel": done.bits_per_pixel,
            "has_audio": done.has_audio,
        }
        about = describe(done.size, done.num_tokens)
        outcome = finished(job, done, about, facts, frames=done.size[0])
        return replace(outcome, has_audio=done.has_audio and not done.kept)

    return run_jobs("tokenize", plan, work, report)


def _dry_run(args: argparse.Namespace, plan: Plan, report: Report) -> int:
    from omnitok.groups import num_groups
    from video import open_video
    from video.files import has_output, open_kept

    tok = outline(args.model or "tiny")

    def work(job: Job, update: Update) -> Outcome:
        if is_shape(job.src):
            return planned_job(job, args.overwrite)
        if has_output(job.dst) and not args.overwrite:
            with open_kept(job.src, job.dst) as kept:
                facts = _facts(kept.size, kept.grid)
                about = describe(kept.size, facts["num_tokens"])
            return planned(job, args.overwrite, about, facts)
        options = {"fps": args.fps, "size": args.size, "clip": args.clip}
        with open_video(job.src, on_damage=args.on_damage, **options) as reader:
            size = (reader.num_frames, *reader.size)
            warnings = tuple(reader.warnings)
        groups = None
        if size[0] is not None:
            groups = num_groups(size[0], tok.patch[0], tok.causal, tok.window)
        facts = _facts(size, (groups, *tok.grid(size[1:])))
        return planned(job, args.overwrite, describe(size, facts["num_tokens"]), facts, warnings)

    return run_jobs("tokenize", plan, work, report)


def describe(size: tuple[int | None, int, int], tokens: int | None) -> str:
    """Frames, pixels and tokens in words."""
    frames, height, width = size
    if frames is None or tokens is None:
        return f"an unknown number of frames of {width}x{height}"
    return f"{frames} frame{'s' * (frames != 1)} of {width}x{height}, {tokens:,} tokens"


def _facts(size: tuple[int | None, int, int], grid: tuple[int | None, int, int]) -> dict[str, Any]:
    return {
        "num_frames": size[0],
        "height": size[1],
        "width": size[2],
        "grid": list(grid),
        "num_tokens": None if grid[0] is None else math.prod((grid[0], *grid[1:])),
    }
