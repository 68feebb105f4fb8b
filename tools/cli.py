"""The `omnitok` command: `omnitok tokenize clip.mp4`, the same as `python -m tools.cli`.

Each command lives in a file of `tools.commands` with `add_parser` and `run`; torch is imported only
once a command runs. Exit status: 0 all done, 1 a bug of ours, 2 wrong usage, 3 some inputs failed,
128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from tools.commands import (
    comparing,
    compress_eval,
    compressing,
    converting,
    decoding,
    demonstrating,
    doctoring,
    errors,
    evaluating,
    inspecting,
    listing,
    tokenizing,
    training,
)
from tools.commands.errors import BUG, FAILED, USAGE, UsageError, bug, sentence
from tools.commands.reporting import printable
from tools.commands.stopping import Stopped, catch_signals

_FORMAT = warnings.formatwarning
COMMANDS = (
    tokenizing,
    decoding,
    inspecting,
    compressing,
    comparing,
    listing,
    converting,
    doctoring,
    demonstrating,
    evaluating,
    compress_eval,
    training,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="omnitok",
        description="Any image and any video of any length into tokens, and back.",
        epilog="omnitok COMMAND --help tells more about a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.add_argument("--debug", action="store_true", help="show where a bug happened")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; those of the process unless given.

    Returns:
        The exit status.

    Raises:
        SystemExit: The arguments are wrong (status 2), or ask for help.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may be any bytes
    try:
        try:
            return _run(build_parser().parse_args(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output is gone; keep Python from complaining when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if stopped by SIGPIPE


def _run(args: argparse.Namespace) -> int:
    errors.show_tracebacks = args.debug or bool(os.environ.get("OMNITOK_DEBUG"))
    warnings.formatwarning = _one_sentence
    try:
        with catch_signals():
            status: int = args.run(args)
        return status
    except BrokenPipeError:
        raise
    except Stopped as stopped:
        return 128 + stopped.signum
    except UsageError as error:
        return _fail(args, USAGE, str(error))
    except Exception as error:
        if (known := sentence(error)) is not None:
            return _fail(args, FAILED, known)
        return _fail(args, BUG, bug(error))


def _one_sentence(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Our own warnings without the place in the code."""
    own = f"{os.sep}omnitok{os.sep}" in filename
    if own and issubclass(category, (RuntimeWarning, UserWarning)):
        return f"omnitok: {printable(str(message))}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _fail(args: argparse.Namespace, status: int, text: str) -> int:
    print(f"omnitok: {printable(text)}", file=sys.stderr)
    if getattr(args, "json", False):
        print(json.dumps({"error": text, "status": status}))
    return status


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"omnitok {version('omnitok')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
