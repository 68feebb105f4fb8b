"""`omnitok eval`: scores of tokenizers on held-out clips, beside baselines of equal size."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.commands.errors import DONE, UsageError
from tools.commands.loading import load
from tools.commands.options import add_compute, add_json, side
from tools.commands.reporting import Report
from tools.commands.scoring import (
    Baselines,
    Result,
    codebook_use,
    evaluate,
    from_folder,
    held_out,
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "eval",
        help="score tokenizers on held-out clips",
        description="Scores every held-out clip and image of a corpus, or every video and image "
        "of a folder: the short side is scaled to S, the centre cut out, the first N frames "
        "taken. Baselines of equal size are fitted to the training split of the corpus.",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|PATH",
        help="a name from `omnitok models`, or a weights file; may be given several times "
        "(default: tiny and tiny-kl)",
    )
    parser.add_argument("--corpus", metavar="DIR", default="corpus", help="made by `make corpus`")
    parser.add_argument("--data", metavar="DIR", help="score the files of this folder instead")
    parser.add_argument("--frames", type=count, metavar="N", default=33, help="default: 33")
    parser.add_argument("--size", type=side, metavar="S", default=256, help="default: 256 pixels")
    parser.add_argument(
        "--tokens",
        type=count,
        metavar="N",
        default=2_000_000,
        help="training tokens on which to count the use of a codebook (default: 2000000)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the result here as well")
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:12]):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text[:12])


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    report = Report(json=args.json)
    corpus = Path(args.corpus)
    has_corpus = (corpus / "train" / "videos.json").exists()
    if not has_corpus and args.data is None:
        raise UsageError(
            f"there is no corpus in {corpus}; run `make corpus`, name its folder with --corpus, or "
            "a folder of your own videos and images with --data"
        )
    models = {name: load(name, args) for name in args.model or ("tiny", "tiny-kl")}
    sets = (
        held_out(corpus, args.frames, args.size)
        if args.data is None
        else from_folder(args.data, args.frames, args.size)
    )
    baselines = Baselines(corpus) if has_corpus else None
    if baselines is None:
        report.note(f"no baselines and no codebook use: there is no corpus in {corpus}")
    results = evaluate(sets, models, baselines, report.note)
    codebooks = {}
    for name, tok in models.items():
        if has_corpus and tok.codebook_size is not None:
            report.note(f"counting the codes of {args.tokens:,} training tokens of {name}")
            codebooks[name] = codebook_use(tok, corpus, args.tokens)
    data = {
        "command": "eval",
        "frames": args.frames,
        "size": args.size,
        "results": [asdict(result) for result in results],
        "codebooks": codebooks,
        "baselines": baselines.facts() if baselines else None,
    }
    lines = describe(data, results)
    if args.output:
        text = json.dumps(data, indent=2) if args.json else "\n".join(lines)
        Path(args.output).write_text(text + "\n")
    report.result(data, lines)
    return DONE


def describe(data: dict[str, Any], results: list[Result]) -> list[str]:
    """The tables, in markdown."""
    size = f"{data['size']}x{data['size']}"
    head = "set|method|PSNR|over baseline|PSNR by frame|SSIM|flicker|bits/pixel|tokens"
    rows = [head.split("|")]
    for r in results:
        what = f"{data['frames']} frames of {size}" if r.data == "video" else size
        gain = "" if r.gain is None else f"{r.gain:+.2f} dB"
        rows.append([f"{len(r.items)} {r.data}s, {what}", r.method, f"{r.mean.psnr:.2f} dB", gain])
        rows[-1] += [f"{r.mean.frame_psnr:.2f} dB", f"{r.mean.ssim:.4f}", f"{r.mean.flicker:.2f}"]
        rows[-1] += [
            f"{r.mean.bits_per_pixel:.4f}",
            f"{r.mean.tokens:,.0f}" if r.mean.tokens else "",
        ]
    lines = table(rows)
    for name, use in data["codebooks"].items():
        parts = zip(use["used"], use["share"], use["entropy"], use["perplexity"], strict=True)
        lines += ["", f"Codes of `{name}` on {use['num_tokens']:,} training tokens:"] + [
            f"{used:,} of {use['codebook_size']:,} occur ({share:.1%}), {bits:.2f} bits of entropy,"
            f" perplexity {perplexity:,.0f}."
            for used, share, bits, perplexity in parts
        ]
    for fitted in data["baselines"] or []:
        lines += [
            "",
            f"{fitted['name']}: fitted to {fitted['still_patches']:,} still and "
            f"{fitted['moving_patches']:,} moving patches of the training mix, seed "
            f"{fitted['seed']}.",
        ]
    return lines


def table(rows: list[list[str]]) -> list[str]:
    """A markdown table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
