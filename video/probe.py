"""What kind of file this is, and everything about it that does not need its frames."""

from __future__ import annotations

import os
import stat

from video.clip import VideoInfo
from video.errors import VideoError
from video.images import is_image, probe_images
from video.index import scan


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Tell what a video, an image, an animation or a folder of frames holds.

    Args:
        path: File or folder.

    Returns:
        The facts; a video's packets are counted, only its first frame is decoded.

    Raises:
        VideoError: There is nothing that can be shown.
    """
    path = check_path(path)
    return probe_images(path) if is_image(path) else scan(path).info


def check_path(path: str | os.PathLike[str]) -> str:
    """Absolute path of a file or folder that exists, holds something and may be read."""
    name = os.fsdecode(path)
    try:
        status = os.stat(name)
        if stat.S_ISREG(status.st_mode):
            with open(name, "rb"):
                pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{name} cannot be opened ({reason}); check the name and the permissions"
        ) from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise VideoError(f"{name} is no regular file; copy the stream to a file first")
    if stat.S_ISREG(status.st_mode) and not status.st_size:
        raise VideoError(f"{name} is empty; expected a video or an image, fetch the file again")
    return os.path.abspath(name)
