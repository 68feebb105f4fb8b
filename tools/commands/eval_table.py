"""Tables of an evaluation: markdown for people, csv for spreadsheets, json for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Show = Callable[[Any], str]


def _fixed(digits: int, unit: str = "") -> Show:
    return lambda value: f"{value:,.{digits}f}{unit}"


COLUMNS: tuple[tuple[str, str, Show], ...] = (
    ("set", "set", str),
    ("method", "method", str),
    ("clips", "clips", _fixed(0)),
    ("PSNR", "psnr", _fixed(2, " dB")),
    ("over PCA", "gain", lambda value: f"{value:+.2f} dB"),
    ("PSNR by frame", "psnr_frames", _fixed(2, " dB")),
    ("PSNR of all", "psnr_all", _fixed(2, " dB")),
    ("SSIM", "ssim", _fixed(4)),
    ("SSIM by frame", "ssim_frames", _fixed(4)),
    ("LPIPS", "lpips", _fixed(4)),
    ("to PCA's", "lpips_ratio", lambda value: f"{value - 1:+.0%}"),
    ("flicker", "flicker", _fixed(2)),
    ("FD frames", "frechet_pictures", _fixed(3)),
    ("KD frames", "kernel_pictures", _fixed(5)),
    ("FD clips", "frechet_clips", _fixed(3)),
    ("KD clips", "kernel_clips", _fixed(5)),
    ("codes used", "codes_used", lambda value: f"{value:.1%}"),
    ("entropy", "entropy", _fixed(2, " bits")),
    ("perplexity", "perplexity", _fixed(0)),
    ("bits/pixel", "bits_per_pixel", _fixed(4)),
    ("tokens", "tokens", _fixed(0)),
    ("tokens/s of video", "tokens_per_second", _fixed(0)),
    ("encode", "encode_fps", _fixed(1, " frames/s")),
    ("decode", "decode_fps", _fixed(1, " frames/s")),
    ("again with", "command", lambda value: f"`{value}`"),
)
NEEDS_LPIPS = ("lpips", "lpips_ratio")
NEEDS_FEATURES = ("frechet_pictures", "kernel_pictures", "frechet_clips", "kernel_clips")
MISSING = "no network"


def describe(data: dict[str, Any]) -> list[str]:
    """The table and what has to be known about it, in markdown."""
    lines = [*table(_cells(data)), ""]
    protocol = data["protocol"]
    lines += _legend(protocol["lpips"], protocol["crops"])
    lines += [f"Networks: {', '.join(f'{k} {v[:12]}' for k, v in data['networks'].items())}."]
    if not data["networks"]:
        lines.pop()
    lines += [f"Protocol {protocol['name']}: {protocol['about']}".rstrip(": ")]
    lines += [f"Note: {note}." for note in data["notes"]]
    for name, use in data["codebooks"].items():
        parts = zip(use["used"], use["share"], use["entropy"], use["perplexity"], strict=True)
        lines += [f"Codes of `{name}` on {use['num_tokens']:,} training tokens:"] + [
            f"{used:,} of {use['codebook_size']:,} occur ({share:.1%}), {bits:.2f} bits of entropy,"
            f" perplexity {perplexity:,.0f}."
            for used, share, bits, perplexity in parts
        ]
    for fitted in data["baselines"]:
        lines += [
            f"{fitted['name']}: fitted to {fitted['still_patches']:,} still and "
            f"{fitted['moving_patches']:,} moving patches of training data, seed {fitted['seed']}."
        ]
    for name, probe in data["probes"].items():
        lines += [
            f"Linear probe of `{name}`: {probe['accuracy']:.1%} of {probe['tested']} files of "
            f"{probe['classes']} classes, after {probe['trained']} (the largest class: "
            f"{probe['chance']:.1%})."
        ]
    lines += [f"Failed: {name}: {why}" for name, why in data["failed"].items()]
    if data["left_out"]:
        lines += [f"Too short for the protocol: {', '.join(data['left_out'])}."]
    return lines


def _cells(data: dict[str, Any]) -> list[list[str]]:
    """The rows of the table, without columns that are empty by nature."""
    rows = data["rows"]
    lacking = {
        key
        for keys, network in (
            (NEEDS_LPIPS, f"lpips-{data['protocol']['lpips']}"),
            (NEEDS_FEATURES, "mobilenet-v2"),
        )
        for key in keys
        if network not in data["networks"]
    }
    shown = [
        column
        for column in COLUMNS
        if column[1] in lacking - {"lpips_ratio"} or any(row[column[1]] is not None for row in rows)
    ]
    cells = [[head for head, _, _ in shown]]
    for row in rows:
        values = [(key, row[key], show) for _, key, show in shown]
        cells.append(
            [
                show(value) if value is not None else MISSING if key in lacking else ""
                for key, value, show in values
            ]
        )
    return cells


def _legend(lpips: str, crops: int) -> list[str]:
    cut = "whole frames" if crops == 1 else f"{crops} crops of every frame"
    return [
        "PSNR: of each clip's mean squared error over all its frames and pixels (8-bit RGB), mean "
        "over clips; by frame: mean over all frames of their PSNR; of all: of one error over "
        "everything.",
        "SSIM: RGB, 11x11 Gaussian window; mean over each clip's frames, then over clips; by "
        f"frame: mean over all frames. LPIPS: {lpips}, version 0.1; mean over frames, then clips.",
        "Flicker: mean absolute difference of the changes from frame to frame, in 8-bit steps.",
        f"FD, KD: Fréchet and kernel distance to the originals of MobileNetV2 features of {cut}, "
        "or of each clip's mean features and mean change of features; neither FID nor FVD.",
    ]


def table(rows: list[list[str]]) -> list[str]:
    """A markdown table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]


def csv_of(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of plain values; None is empty, and what is nested is left out."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in rows]
    text = io.StringIO()
    if flat:
        writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return text.getvalue()


def per_file(rows: Iterable[dict[str, Any]]) -> str:
    """A csv with one line for each set, method and file."""
    return csv_of(
        {"set": row["set"], "method": row["method"], "file": name, **score}
        for row in rows
        for name, score in row["items"].items()
    )


def text_for(path: Path, data: dict[str, Any], lines: list[str]) -> str:
    """What to write to a file, by its suffix: .json, .csv, or markdown."""
    if path.suffix == ".json":
        return json.dumps(data, indent=2, allow_nan=False) + "\n"
    return csv_of(data["rows"]) if path.suffix == ".csv" else "\n".join(lines) + "\n"
