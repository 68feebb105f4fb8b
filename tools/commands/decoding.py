"""`omnitok decode`: token files to videos and images."""

from __future__ import annotations

import argparse
import os

from tools.commands.batch import Outcome, Update, finished, planned, run_jobs
from tools.commands.loading import ByTokens, outline
from tools.commands.options import add_batch, add_model
from tools.commands.planning import DECODED, Job, is_tokens, make_plan
from tools.commands.reporting import Report
from tools.commands.shaping import SHAPES, decode_job


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "decode",
        help="turn token files back into videos, images and 3D assets",
        description="Writes talk.decoded.mp4 for talk.omni.safetensors (a .png for a still, a .ply "
        "for a 3D asset), with the size, frames and frame times, or the position and scale, of the "
        "source. AToken's tokens of a 3D asset become Gaussian splats. A folder stands for all "
        "*.omni.safetensors in it and its subfolders.",
    )
    parser.add_argument("inputs", nargs="+", metavar="TOKENS", help="a token file or a folder")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="a folder, or for one input a file (.ply, .obj, .stl and .glb for a 3D asset, .ply "
        "for splats)",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        default=128,
        help="lattice points on a side of a 3D asset's box (default: 128)",
    )
    parser.add_argument(
        "--gaussians",
        metavar="NAME|PATH",
        default="atoken-gaussians",
        help="weights that turn AToken's voxels into splats (default: atoken-gaussians)",
    )
    add_model(parser, None, "weights to decode with (default: those that made the tokens)")
    add_batch(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from shapes.mesh import WRITTEN
    from video.files import decoded_suffix, detokenize_file
    from video.write import ANIMATED, MOVIES, STILL

    endings = {*MOVIES, *STILL, *ANIMATED, *WRITTEN}

    def suffix(path: str) -> str:
        kind, frames = _source_kind(path)
        return ".ply" if kind in SHAPES else decoded_suffix(kind, frames)

    report = Report(json=args.json, quiet=args.quiet)
    plan = make_plan(
        args.inputs,
        args.output,
        wanted=is_tokens,
        ending=lambda path: DECODED + suffix(path),
        is_file_name=lambda name: os.path.splitext(name)[1].lower() in endings,
    )
    models = ByTokens(args)
    if args.dry_run:
        if args.model is not None:
            outline(args.model)
        return run_jobs(
            "decode", plan, lambda job, _: _describe(models, job, args.overwrite), report
        )

    def work(job: Job, update: Update) -> Outcome:
        os.makedirs(os.path.dirname(os.path.abspath(job.dst)), exist_ok=True)
        kind = _source_kind(job.src)[0]
        if kind in SHAPES:
            return decode_job(models, job, args, kind)
        tok = models.get(job.src)
        done = detokenize_file(tok, job.src, job.dst, overwrite=args.overwrite, progress=update)
        frames, height, width = done.size
        facts = {"num_frames": frames, "height": height, "width": width}
        return finished(job, done, f"{frames} frames of {width}x{height}", facts, frames=frames)

    return run_jobs("decode", plan, work, report)


def _describe(models: ByTokens, job: Job, overwrite: bool) -> Outcome:
    """What a dry run says about a job."""
    from omnitok.token_stream import TokenReader
    from video.files import check_decoded, has_output

    models.name_for(job.src)
    with TokenReader(job.src) as reader:
        frames, height, width = reader.size
        name = reader.info.name
    if reader.placement is not None:
        return planned(job, overwrite, f"a 3D asset, by {name}", {"model": name})
    if has_output(job.dst) and not overwrite:
        check_decoded(job.dst, reader.size)
    facts = {"num_frames": frames, "height": height, "width": width, "model": name}
    about = f"{frames} frames of {width}x{height}, by {name}"
    return planned(job, overwrite, about, facts)


def _source_kind(path: str) -> tuple[str | None, int]:
    """What kind of file the tokens come from and its frames, at a glance: decoding checks all.

    Raises:
        ValueError: This is no token file.
    """
    from omnitok import TokensError
    from omnitok.token_facts import parse_json
    from omnitok.token_file import open_regular, read_header

    try:
        with open_regular(path) as file:
            clip = parse_json(read_header(file)[0], "the metadata")["clips"][0]
        return clip["source"] and clip["source"]["kind"], clip["size"][0]
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}); check the name") from error
    except (TokensError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: {error}; expected a token file, check where it comes from"
        ) from error
