"""Ctrl-C and friends: stop at once, but clean up and say what was done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_received: list[int] = []


class Stopped(BaseException):
    """A signal asked the command to stop.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum


@contextmanager
def catch_signals() -> Iterator[None]:
    """Turn the first signal into `Stopped`, and let no further one disturb the clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    _received.clear()
    caught = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # nohup, `&`
    before = {signum: signal.signal(signum, _handle) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def check() -> None:
    """Raise `Stopped` again in case it got lost in a place that cannot raise."""
    if _received:
        raise Stopped(_received[0])


def _handle(signum: int, _: object) -> None:
    if not _received:
        _received.append(signum)
        raise Stopped(signum)
