"""What can go wrong in a command, and the exit status it leads to."""

from __future__ import annotations

import errno
import traceback

DONE, BUG, USAGE, FAILED = 0, 1, 2, 3
show_tracebacks = False


class UsageError(Exception):
    """The command line cannot be carried out; the message says what to change."""


class InputError(Exception):
    """An input, or its output, is not as it has to be; the message names it and what to do."""


def sentence(error: Exception) -> str | None:
    """What to tell a user about an error that is not our bug; None if it is one."""
    import torch

    from omnitok import TokensError
    from omnitok.checkpoint import CheckpointError
    from shapes.extras import ShapesError
    from video import VideoError

    known = (InputError, VideoError, ShapesError, TokensError, CheckpointError)
    if isinstance(error, known):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    ):
        return "there is not enough memory for frames of this size; make them smaller with --size"
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space or choose another folder" if full else "check its permissions"
        return f"{error.filename or 'a file'} cannot be used ({error.strerror}); {advice}"
    return None


def bug(error: Exception) -> str:
    """What to tell a user about an error that is our bug; prints where it happened if asked to."""
    if show_tracebacks:
        traceback.print_exception(error)
    return (
        f"this is a bug in omnitok: {type(error).__name__}: {error} (omnitok --debug or "
        "OMNITOK_DEBUG=1 shows where; please report it)"
    )
