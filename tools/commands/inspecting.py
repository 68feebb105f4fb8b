"""`omnitok inspect`: what a token file holds, in a dozen lines."""

from __future__ import annotations

import argparse
import math
import os
from typing import TYPE_CHECKING, Any

from tools.commands.errors import DONE
from tools.commands.loading import shipped_hashes
from tools.commands.options import add_json
from tools.commands.reporting import Report, clock, columns, size_of
from tools.commands.shaping import inspect_lines

if TYPE_CHECKING:
    from omnitok.token_stream import TokenReader

SHOWN = 24  # time groups whose tokens are counted on a line


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a token file holds",
        description="Source, tokens, bits, codebook use and weights of a token file, having "
        "checked every byte of it.",
    )
    parser.add_argument("tokens", metavar="TOKENS", help="a token file")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from omnitok.token_stream import TokenReader

    with TokenReader(args.tokens) as reader:
        data = gather(reader, args.tokens)
    Report(json=args.json).result({"command": "inspect", **data}, columns(describe(data)))
    return DONE


def gather(reader: TokenReader, path: str) -> dict[str, Any]:
    """Everything about an open token file, for a program."""
    from dataclasses import asdict

    info, source = reader.info, reader.source
    frames, height, width = reader.size
    tokens = math.prod(reader.grid) if reader.plan is None else len(reader.plan.place)
    bits = tokens * reader.bits_per_token
    pixels = math.prod(reader.size)
    duration = _duration(reader)
    part_only = reader.preprocess is not None and reader.preprocess.clip is not None
    source_bytes = None if part_only else _source_bytes(path, source.uri if source else None)
    hashes = shipped_hashes()
    return {
        "file": path,
        "file_bytes": os.path.getsize(path),
        "intact": True,
        "size": {"num_frames": frames, "height": height, "width": width},
        "duration": duration,
        "source": source and asdict(source),
        "source_bytes": source_bytes,
        "preprocess": reader.preprocess and asdict(reader.preprocess),
        "placement": reader.placement and asdict(reader.placement),
        "kind": info.kind,
        "grid": list(reader.grid),
        "patch": list(info.patch),
        "num_tokens": tokens,
        "plan": _plan(reader),
        "tokens_per_second": tokens / duration if duration else None,
        "bits_per_token": reader.bits_per_token,
        "bits_per_pixel": bits / pixels if pixels else None,
        "compression_of_rgb": 24 * pixels / bits if bits else None,
        "compression_of_source": 8 * source_bytes / bits if source_bytes and bits else None,
        "codebook": _codebook(reader),
        "model": info.name,
        "omnitok": info.version,
        "weights_sha256": info.weights_sha256,
        "shipped_as": next((n for n, h in hashes.items() if h == info.weights_sha256), None),
        "compute": reader.compute,
    }


def _duration(reader: TokenReader) -> float | None:
    """Seconds from the first frame to the end of the last one, which lasts as long as the mean."""
    frames = reader.size[0]
    if reader.pts is None or frames < 2:
        return None
    return float(reader.pts[-1] - reader.pts[0]) * frames / (frames - 1)


def _source_bytes(path: str, uri: str | None) -> int | None:
    """Size of the source if it still lies beside its tokens."""
    if not uri:
        return None
    beside = os.path.join(os.path.dirname(path), os.path.basename(uri))
    return os.path.getsize(beside) if os.path.isfile(beside) else None


def _plan(reader: TokenReader) -> dict[str, Any] | None:
    """What a compact file kept."""
    import torch

    plan = reader.plan
    if plan is None:
        return None
    t, h, w = reader.grid
    dropped = int((plan.source < 0).sum())
    return {
        **plan.facts(),
        "total": t * h * w,
        "merged": t * h * w - dropped - len(plan.place),
        "dropped": dropped,
        "kept_by_group": torch.bincount(plan.place // (h * w), minlength=t).tolist(),
    }


def _codebook(reader: TokenReader) -> dict[str, Any] | None:
    from dataclasses import asdict

    try:
        usage = reader.usage()
    except ValueError:
        return None  # more different codes than can be counted
    return None if usage is None else asdict(usage)


def describe(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for a person."""
    source, size, codebook = data["source"] or {}, data["size"], data["codebook"]
    fps = (data["preprocess"] or {}).get("fps") or source.get("fps")
    length = f", {clock(data['duration'])} ({data['duration']:.3f} s)" if data["duration"] else ""
    grid = " x ".join(str(n) for n in data["grid"])
    patch = "x".join(str(n) for n in data["patch"])
    compression = []
    if data["compression_of_rgb"]:
        compression.append(f"{data['compression_of_rgb']:.1f}x against 24-bit RGB")
    if data["compression_of_source"]:
        against = f"against the source of {size_of(data['source_bytes'])}"
        compression.append(f"{data['compression_of_source']:.2f}x {against}")
    rate = data["tokens_per_second"]
    head = [
        ("file", f"{data['file']}, {size_of(data['file_bytes'])}, intact"),
        ("source", _source_line(source)),
    ]
    if data["placement"]:
        return [*head, *inspect_lines(data), *_made_with(data)]
    lines = [
        *head,
        (
            "frames",
            f"{size['num_frames']} of {size['width']}x{size['height']}{length}"
            + (f", {_rate(fps)}" if fps else ""),
        ),
        ("tokens", f"{grid} = {math.prod(data['grid']):,} {data['kind']}, one for {patch} pixels"),
        *_plan_lines(data),
        ("rate", f"{rate:,.0f} tokens per second of video" if rate else "a still"),
        (
            "bits",
            f"{data['bits_per_token']:.2f} per token"
            + (f", {data['bits_per_pixel']:.4f} per pixel" if data["bits_per_pixel"] else ""),
        ),
        ("compression", ", ".join(compression)),
    ]
    if codebook:
        for used, share, bits, perplexity in zip(
            codebook["used"],
            codebook["share"],
            codebook["entropy"],
            codebook["perplexity"],
            strict=True,
        ):
            text = (
                f"{used:,} of {codebook['codebook_size']:,} codes occur ({share:.1%}), entropy "
                f"{bits:.2f} bits, perplexity {perplexity:,.0f}"
            )
            lines.append(("codebook", text))
    return [*lines, *_made_with(data)]


def _made_with(data: dict[str, Any]) -> list[tuple[str, str]]:
    shipped = data["shipped_as"]
    match = f"ships with omnitok as {shipped}" if shipped else "does not ship with omnitok"
    compute = data["compute"] or {}
    return [
        ("weights", f"{data['model']} {data['weights_sha256'][:12]}, {match}"),
        (
            "made with",
            f"omnitok {data['omnitok']}, torch {compute.get('torch', '?')}, "
            f"{compute.get('dtype', '?')} on {compute.get('device', '?')}",
        ),
    ]


def _plan_lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """What a compact file kept, for a person."""
    plan = data["plan"]
    if plan is None:
        return []
    budget = "its published budget" if plan["budget"] is None else f"budget {plan['budget']}"
    settings = "".join(f", {name} {value}" for name, value in plan["options"].items())
    kept, groups = data["num_tokens"], plan["kept_by_group"]
    return [
        (
            "kept",
            f"{kept:,} tokens ({kept / plan['total']:.1%}) by {plan['method']} at {budget}"
            f"{settings}; {plan['merged']:,} went into them, {plan['dropped']:,} were dropped",
        ),
        ("kept by time", " ".join(map(str, groups[:SHOWN])) + " .." * (len(groups) > SHOWN)),
    ]


def _source_line(source: dict[str, Any]) -> str:
    if not source:
        return "not recorded"
    words = [source["uri"] or "a file without a name"]
    if source["width"] and source["height"]:
        words.append(f"{source['width']}x{source['height']}")
    if source["codec"]:
        words.append(source["codec"])
    if source["fps"]:
        words.append(_rate(source["fps"]))
    if source["rotation"]:
        words.append(f"turned by {source['rotation']:.0f} degrees for display")
    if source["has_audio"]:
        words.append("sound (not kept)")
    return ", ".join(words)


def _rate(fps: str | float) -> str:
    from video.sample import as_rate

    try:
        return f"{float(as_rate(fps)):.6g} fps"
    except (ValueError, OverflowError):
        return f"{fps} fps"
