"""`omnitok demo`: a short clip to tokens and back, with figures and pictures to look at."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tools.commands.comparing import compare, open_frames
from tools.commands.errors import DONE
from tools.commands.loading import ByTokens, load
from tools.commands.options import add_json, add_model
from tools.commands.reporting import Report, columns, size_of
from tools.commands.stopping import check

CLIP = Path(__file__).parent.parent / "assets" / "demo_city_cc0_320.mp4"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="try omnitok on a short clip that comes with it",
        description="Tokenizes a clip of 4 seconds, decodes it and compares the two.",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", default="demo_out", help="folder (default: demo_out)"
    )
    add_model(parser, "tiny", "a name from `omnitok models`, or a weights file (default: tiny)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from video.files import detokenize_file, tokenize_file

    report = Report(json=args.json)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {
        "tokens": folder / "city.omni.safetensors",
        "decoded": folder / "city.decoded.mp4",
        "side_by_side": folder / "city.side_by_side.mp4",
        "sheet": folder / "city.sheet.png",
    }
    tok = load(args.model, args)
    with report.progress(3) as progress:

        def update(done: int, total: int | None) -> None:
            check()
            progress.update(done, total)

        progress.start("tokenize")
        made = tokenize_file(tok, CLIP, outputs["tokens"], overwrite=True, progress=update)
        progress.finish()
        progress.start("decode")
        decoded = detokenize_file(
            tok, outputs["tokens"], outputs["decoded"], overwrite=True, progress=update
        )
        progress.finish()
        progress.start("compare")
        models = ByTokens(args)
        with (
            open_frames(str(CLIP), models) as a,
            open_frames(str(outputs["decoded"]), models) as b,
        ):
            result = compare(
                a,
                b,
                side=str(outputs["side_by_side"]),
                sheet=str(outputs["sheet"]),
                titles=("original", f"decoded by {tok.config.name}"),
                progress=update,
            )
        progress.finish()
    frames, height, width = made.size
    data = {
        "command": "demo",
        "model": tok.config.name,
        "num_frames": frames,
        "height": height,
        "width": width,
        "grid": list(made.grid),
        "num_tokens": made.num_tokens,
        "bits_per_pixel": made.bits_per_pixel,
        "compression_of_rgb": 24 / made.bits_per_pixel,
        "file_bytes": made.num_bytes,
        "psnr": result.mean_psnr,
        "ssim": result.mean_ssim,
        "tokenize_frames_per_second": frames / made.seconds,
        "decode_frames_per_second": frames / decoded.seconds,
        **{name: str(path) for name, path in outputs.items()},
    }
    grid = " x ".join(str(n) for n in made.grid)
    clip_bytes = CLIP.stat().st_size
    lines = [
        ("model", f"{tok.config.name}, {tok.num_parameters / 1e6:.1f} M parameters, {tok.device}"),
        ("clip", f"{frames} frames of {width}x{height}, {size_of(clip_bytes)} as H.264"),
        ("tokens", f"{grid} = {math.prod(made.grid):,}, {size_of(made.num_bytes)} on disk"),
        ("bits", f"{made.bits_per_token:.2f} per token, {made.bits_per_pixel:.4f} per pixel"),
        ("compression", f"{24 / made.bits_per_pixel:.1f}x against 24-bit RGB"),
        ("PSNR", f"{result.mean_psnr:.2f} dB"),
        ("SSIM", f"{result.mean_ssim:.4f}"),
        ("tokenize", f"{frames / made.seconds:.1f} frames/s"),
        ("decode", f"{frames / decoded.seconds:.1f} frames/s"),
        ("look at", str(outputs["sheet"])),
        ("", str(outputs["side_by_side"])),
    ]
    report.result(data, columns(lines))
    return DONE
