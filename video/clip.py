"""What is known about a file, and a piece of video in memory."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # one picture, [H, W, 3] RGB


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts about a file, as the viewer sees it.

    Attributes:
        path: The file or folder.
        kind: "video", "image", "animation" (gif, webp, apng) or "folder" (one image per frame).
        width: Pixels of a row after rotation.
        height: Pixels of a column after rotation.
        rotation: Clockwise quarter turns the file asks for, in degrees: 0, 90, 180 or 270.
        fps: Average frames per second; None for an image.
        num_frames: Frames the file announces; None where only decoding can tell.
        duration: Seconds from the first frame to the end of the last one; 0 for an image.
        start: Presentation time of the first frame, in seconds.
        variable_rate: Whether the times of the frames leave a steady clock by more than rounding.
        codec: Name of the compression.
        pix_fmt: Pixel format as stored.
        color_range: "limited", "full" or "unknown".
        color_space: Matrix between RGB and YUV: "bt709", "bt601", "bt2020", "rgb" or "unknown".
        has_audio: Whether there is sound (it is not carried along).
        file_size: Bytes.
    """

    path: str
    kind: str
    width: int
    height: int
    rotation: int = 0
    fps: Fraction | None = None
    num_frames: int | None = None
    duration: float = 0.0
    start: float = 0.0
    variable_rate: bool = False
    codec: str = ""
    pix_fmt: str = ""
    color_range: str = "unknown"
    color_space: str = "unknown"
    has_audio: bool = False
    file_size: int = 0


@dataclass(kw_only=True)
class Clip:
    """Frames in memory with their times.

    Attributes:
        frames: [T, 3, H, W] uint8.
        pts: [T] float64 presentation times in seconds, increasing.
        fps: Frames per second (average); None for an image.
        info: What is known about the file the frames come from; None for frames made otherwise.
    """

    frames: Tensor
    pts: Tensor
    fps: Fraction | None = None
    info: VideoInfo | None = None
