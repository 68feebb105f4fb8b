"""Options that several commands share, checked while the command line is parsed."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction


def add_model(parser: argparse.ArgumentParser, default: str | None, about: str) -> None:
    """Add --model, --device and --dtype."""
    parser.add_argument("--model", metavar="NAME|PATH", default=default, help=about)
    add_compute(parser)


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    parser.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, cuda:1; default: a GPU if any"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="what to compute in (default: float32)",
    )


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add what every command that works on many files takes."""
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def rate(text: str) -> str:
    """A frame rate: 25, 23.976 or 30000/1001."""
    try:
        value = Fraction(text if "/" in text else float(text))  # "1e999999999" has many digits
    except (ValueError, ZeroDivisionError, OverflowError):
        value = Fraction(0)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no frame rate; give frames per second, such as 25 or 30000/1001"
        )
    return text


def side(text: str) -> int:
    """A length in pixels."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= 1 << 16:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give the wanted length of the shorter side in pixels"
        )
    return int(text)


def seconds(text: str) -> tuple[float, float]:
    """A stretch of time A:B; either end may be left out."""
    start, colon, end = text.partition(":")
    try:
        clip = (float(start or 0), float(end or math.inf))
    except ValueError:
        clip = (math.nan, math.nan)
    if not colon or not 0 <= clip[0] < clip[1] or clip[0] == math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no stretch of time; give seconds as A:B, A: or :B, with A before B"
        )
    return clip
