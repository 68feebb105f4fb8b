"""Large files over HTTP: resumed after a break, checked by size, whole or not there at all."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from omnitok.checkpoint import CheckpointError

Progress = Callable[[str, int, int | None], None]  # file name, bytes that are here, bytes in all
TRIES = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second of them; doubles from one to the next
TIMEOUT = 60.0  # seconds that a server may stay silent
BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL, RANGE_NOT_SATISFIABLE = 206, 416


def download(address: str, path: Path, *, least: int = 0, progress: Progress | None = None) -> None:
    """Bring a file here, unless it is here already.

    What has come is kept beside `path` when this is stopped, and the next call goes on from there
    if the server still has the same file. Of several processes one downloads, the others wait.

    Args:
        address: Where it is, http or https.
        path: Where it goes; it appears there complete.
        least: Bytes that the file has at least.
        progress: Told how far the download is.

    Raises:
        CheckpointError: It cannot be had; the message says why and how else to get it.
        OSError: It cannot be kept.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise CheckpointError(f"{address!r} is no address of a file; expected http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            _Download(address, path, least, progress).run()


class Meter:
    """Shows how far a download is on stderr: a line rewritten on a terminal, lines in a log."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()
        self._first: int | None = None

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """Be told; see `Progress`."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        self._first = done if self._first is None else self._first
        if now - self._shown < (0.2 if terminal else 10) and done != total:
            return
        self._shown = now
        speed = (done - self._first) / max(1e-3, now - self._started)
        whole = "" if total is None else f" of {total / 1e6:,.0f}"
        line = f"{name}: {done / 1e6:,.0f}{whole} MB, {speed / 1e6:.1f} MB/s"
        end = "" if terminal and done != total else "\n"
        print(f"\r{line:<60}" if terminal else line, end=end, file=sys.stderr, flush=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in the block."""
    with lock.open("ab") as file:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Download:
    """A download in progress.

    Beside `path` lie `.NAME.part`, what has come, and `.NAME.part.mark`, the version it is of.
    """

    def __init__(self, address: str, path: Path, least: int, progress: Progress | None) -> None:
        self.address, self.path, self.least, self.progress = address, path, least, progress
        self.part = path.with_name(f".{path.name}.part")
        self.mark = path.with_name(f".{path.name}.part.mark")

    def run(self) -> None:
        failures = 0
        while True:
            before = self._size()
            try:
                if self._fetch():
                    break
                reason = "the connection broke"
            except HTTPError as error:
                if error.code < 500:
                    raise self._failure(f"the server says {error.code} {error.reason}") from error
                reason = f"the server says {error.code} {error.reason}"
            except (OSError, HTTPException) as error:
                if isinstance(error, OSError) and (
                    error.filename is not None or error.errno in FULL
                ):
                    raise  # of a file here
                cause = getattr(error, "reason", error)
                reason = str(cause) or type(error).__name__
                if isinstance(cause, socket.gaierror):
                    raise self._failure(reason) from error  # no network: trying again is no use
            failures = 0 if self._size() > before else failures + 1
            if failures == TRIES:
                raise self._failure(reason)
            time.sleep(PAUSE * 2 ** max(0, failures - 1))
        os.replace(self.part, self.path)
        self.mark.unlink(missing_ok=True)

    def _failure(self, reason: str) -> CheckpointError:
        reason = " ".join(reason.split())
        kept = f"; {self._size():,} bytes are kept, try again to go on" if self._size() else ""
        return CheckpointError(
            f"{self.path.name} could not be downloaded ({reason}){kept}; or get {self.address} by "
            f"other means and put it at {self.path}"
        )

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self) -> bool:
        """Get what is missing, or all where the server has another file; whether that was all."""
        start = self._size()
        mark = self.mark.read_text() if start and self.mark.exists() else ""
        headers = {"User-Agent": "omnitok"}
        if mark:
            headers |= {"Range": f"bytes={start}-", "If-Range": mark}
        request = urllib.request.Request(self.address, headers=headers)
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code != RANGE_NOT_SATISFIABLE or not start:
                raise
            if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return True  # stopped between the last byte and the new name
            self.part.unlink()  # it is no part of what the server has now
            return False
        with response:
            if response.status != PARTIAL:
                start = 0
            total = _total(response, start)
            if total is not None:
                self._check(total)
            self.mark.write_text(_mark(response))
            self._receive(response, start, total)
        size = self._size()
        if total is not None and size != total:
            if size > total:
                self.part.unlink()
            return False
        self._check(size)
        return True

    def _check(self, size: int) -> None:
        if size < self.least:
            self.part.unlink(missing_ok=True)
            raise self._failure(
                f"the server has {size:,} bytes, but the weights take at least {self.least:,}"
            )

    def _receive(self, response: HTTPResponse, start: int, total: int | None) -> None:
        with self.part.open("r+b" if self.part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while block := response.read(BLOCK):
                file.write(block)
                if self.progress is not None:
                    self.progress(self.path.name, file.tell(), total)
            file.flush()
            os.fsync(file.fileno())


def _mark(response: HTTPResponse) -> str:
    """What tells this file from others at its address; empty if the server has no such thing."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def _total(response: HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file; None if the server does not tell.

    Raises:
        HTTPException: It sends another part than was asked for.
    """
    if response.status == PARTIAL:
        unit, _, text = response.headers.get("Content-Range", "").partition(" ")
        part, _, total = text.partition("/")
        first, _, last = part.partition("-")
        if unit != "bytes" or first != str(start):
            raise HTTPException(f"asked for bytes from {start}, the server sends {text!r}")
        if not total.isdecimal() and last.isdecimal():  # what is sent reaches to the end
            return int(last) + 1
        return int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdecimal() else None
