"""`omnitok convert`: weights that others published to a file of our own."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.commands.errors import DONE, UsageError
from tools.commands.options import add_json
from tools.commands.reporting import Report, size_of

ENDING = ".safetensors"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "convert",
        help="turn published weights into a file of our own",
        description="Writes the weights of any known system as safetensors with the config as "
        "JSON in its metadata; loading that gives equal bits.",
    )
    parser.add_argument("input", metavar="IN", help="a weights file, or a name that load knows")
    parser.add_argument("output", metavar="OUT", help=f"a {ENDING} file that does not exist")
    parser.add_argument(
        "--as",
        dest="name",
        metavar="NAME",
        help="the published name of a file that was renamed, where its tensors do not tell (such "
        "as atoken-so-d, whose tensors are those of atoken-so-c)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from omnitok.hub import open_named
    from omnitok.interop.registry import PUBLISHED

    target = Path(args.output)
    if target.suffix != ENDING:
        raise UsageError(f"{target} is no name for weights; give one that ends with {ENDING}")
    if target.exists():
        raise UsageError(f"{target} exists and is not replaced; give another name or remove it")
    if args.name is not None and args.name not in PUBLISHED:
        raise UsageError(f"--as {args.name} is unknown; choose one of {sorted(PUBLISHED)}")
    opened = open_named(args.input, name_as=args.name)
    digest = opened.save(target)
    report = {
        "command": "convert",
        "file": str(target),
        "file_bytes": target.stat().st_size,
        "system": opened.system.name,
        "weights_sha256": digest,
    }
    kind = opened.system.name or "omnitok"
    line = f"{args.input} -> {target}: {kind}, {size_of(target.stat().st_size)}"
    Report(json=args.json).result(report, [line])
    return DONE
