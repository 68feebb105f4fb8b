"""The one error a video file can cause, and the size beyond which pictures are refused."""

from __future__ import annotations

MAX_PIXELS = 1 << 27  # 134 megapixels; a larger picture in a header is damage or an attack


class VideoError(Exception):
    """A file cannot be read or written; the message names it, what was expected and what to do."""


def check_pixels(path: str, height: int, width: int, limit: int = MAX_PIXELS) -> None:
    """Refuse pictures that would not fit in memory."""
    if height * width > limit:
        raise VideoError(
            f"{path} would give pictures of {width}x{height}, more than the {limit} pixels that"
            " are read; make them smaller"
        )
