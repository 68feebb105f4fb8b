"""What a command says: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

EVERY = 30.0  # seconds between lines about one long file in a log


class Report:
    """Where a command prints.

    Args:
        json: Whether the result is one JSON object.
        quiet: Whether to print nothing but errors, and the JSON object.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self._bar: _Bar | None = None

    def note(self, text: str) -> None:
        """Print a line about the work, unless quiet."""
        if not self.quiet:
            self._stderr(text)

    def error(self, text: str) -> None:
        """Print a line that has to be seen."""
        self._stderr(text)

    def result(self, data: dict[str, Any], lines: Sequence[str]) -> None:
        """Print the result: `data` as JSON, or `lines` for a person."""
        if self.json:
            print(json.dumps(data, allow_nan=False, indent=2))
        elif not self.quiet:
            for line in lines:
                print(printable(line))

    @contextmanager
    def progress(self, num_files: int) -> Iterator[Progress]:
        """Show how far the work is: bars on a terminal, lines in a log, nothing if quiet."""
        if self.quiet:
            yield Silent()
        elif sys.stderr.isatty():
            self._bar = _Bar(num_files)
            try:
                with self._bar:
                    yield self._bar
            finally:
                self._bar = None
        else:
            yield _Log(self)

    def _stderr(self, text: str) -> None:
        text = printable(text)
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, file=sys.stderr, flush=True)


class Progress(Protocol):
    """How far the work is."""

    def start(self, name: str) -> None:
        """Begin a file."""

    def update(self, done: int, total: int | None) -> None:
        """Tell how many frames of the file are done."""

    def finish(self) -> None:
        """End a file."""


class Silent:
    """Shows nothing."""

    def start(self, name: str) -> None:
        """Show nothing."""

    def update(self, done: int, total: int | None) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""


class _Log(Silent):
    """A line now and then about a file that takes long."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def start(self, name: str) -> None:
        self._name, self._start = name, time.monotonic()
        self._last = self._start

    def update(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last < EVERY:
            return
        self._last = now
        rate = done / (now - self._start)
        left = f" of {total}, {clock((total - done) / rate)} left" if total else ""
        self._report.note(f"{self._name}: {done} frames{left}, {rate:.1f} frames/s")


class _Bar:
    """Two bars on a terminal: files, and frames of the file at hand."""

    def __init__(self, num_files: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        many = num_files > 1
        self._files = self._progress.add_task("files", total=num_files, visible=many)
        self._frames = self._progress.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, name: str) -> None:
        self._progress.reset(self._frames, description=os.path.basename(name), total=None)

    def update(self, done: int, total: int | None) -> None:
        self._progress.update(self._frames, completed=done, total=total)

    def finish(self) -> None:
        self._progress.advance(self._files)


def printable(text: str) -> str:
    """Escape what a file name or a stranger's file could do to a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size_of(num_bytes: int) -> str:
    """A number of bytes for a person."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, (len(str(num_bytes)) - 1) // 3)
    return f"{num_bytes / 1000**power:.{1 if power else 0}f} {units[power]}"


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
