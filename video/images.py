"""Images, animated images and folders of images as videos.

Transparent pixels are shown on white. Orientation from EXIF is applied. 16-bit grey keeps its high
byte. Frames of an animation that ask for 10 ms or less are shown for 100 ms, as browsers do.
Of a TIFF with several pages the first one is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from video.clip import Pixels, VideoInfo
from video.errors import VideoError, check_pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
FOLDER_FPS = Fraction(25)
ANIMATION_PIXELS = 1 << 24  # per frame; Pillow takes a second for each one beyond this
SHORTEST = 10  # milliseconds; browsers show such a frame of an animation for 100 ms
MAGIC = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|P[1-6]\s|....ftypavi[fs]",
    re.DOTALL,
)
TURNS = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}  # EXIF orientation to clockwise degrees


def is_image(path: str) -> bool:
    """Whether a path is a folder or starts like an image (its name does not matter)."""
    if os.path.isdir(path):
        return True
    with open(path, "rb") as file:
        return MAGIC.match(file.read(16)) is not None and not path.endswith((".mjpeg", ".mjpg"))


def list_frames(folder: str) -> list[str]:
    """Images of a folder in natural order: frame2 before frame10."""
    try:
        names = [n for n in os.listdir(folder) if n.lower().endswith(SUFFIXES) and n[0] != "."]
    except OSError as error:
        raise _unusable(error) from error
    if not names:
        raise VideoError(f"{folder} holds no images; expected frames such as 000001.png")
    return [os.path.join(folder, name) for name in sorted(names, key=_natural)]


def _natural(name: str) -> tuple[list[int | str], str]:
    """Sorts numbers in names by value; "1.png" and "01.png" by name, not as the disk lists them."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdecimal() else part for part in parts], name


def _unusable(error: OSError) -> VideoError:
    return VideoError(
        f"{error.filename} cannot be opened ({error.strerror}); check the name and the permissions"
    )


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open an image with Pillow; a failure, also while it loads, becomes a VideoError."""
    try:
        # by name, Pillow maps uncompressed TIFFs into memory and forgets that they are turned
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            check_pixels(path, image.height, image.width)
            yield image
    except (VideoError, GeneratorExit):
        raise
    except Exception as error:  # Pillow's parsers raise a dozen kinds on damaged files
        raise VideoError(
            f"{path} is no image that can be read ({error}); expected one of"
            f" {', '.join(FORMATS)}, check that it is complete"
        ) from error


def load(image: Image.Image) -> Pixels:
    """[H, W, 3] uint8 pixels of the frame an image stands at, upright and on white."""
    picture = ImageOps.exif_transpose(image)
    if picture.mode.startswith("I"):
        high_byte = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(high_byte.clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def frame_seconds(image: Image.Image) -> Fraction:
    """How long an animation's current frame is shown."""
    milliseconds = Fraction(image.info.get("duration") or 0)
    return (milliseconds if milliseconds > SHORTEST else Fraction(100)) / 1000


@lru_cache(maxsize=64)
def _times(path: str, _mtime_ns: int) -> tuple[Fraction, ...]:
    """Time of every frame of an animation, and its end."""
    times = [Fraction(0)]
    with open_image(path) as image:
        for number in range(int(getattr(image, "n_frames", 1))):
            image.seek(number)
            image.load()
            times.append(times[-1] + frame_seconds(image))
    return tuple(times)


def probe_images(path: str, folder_fps: Fraction | None = None) -> VideoInfo:
    """Facts about an image, an animation or a folder of images."""
    folder = os.path.isdir(path)
    files = list_frames(path) if folder else [path]
    with open_image(files[0]) as image:
        animated = image.format in ANIMATED and getattr(image, "is_animated", False)
        if animated:
            check_pixels(path, image.height, image.width, limit=ANIMATION_PIXELS)
        turn = TURNS.get(image.getexif().get(0x0112, 1), 0)
        width, height = image.size
        if isinstance(image, TiffImageFile):  # Pillow may have turned its size already
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        if turn in (90, 270):
            width, height = height, width
        codec, mode = (image.format or "").lower(), image.mode
    try:
        file_size = sum(os.stat(file).st_size for file in files)
    except OSError as error:
        raise _unusable(error) from error
    fps: Fraction | None = None
    count, duration, variable = 1, Fraction(0), False
    if folder:
        fps = folder_fps or FOLDER_FPS
        count, duration = len(files), len(files) / fps
    elif animated:
        times = _times(path, os.stat(path).st_mtime_ns)
        count, duration = len(times) - 1, times[-1]
        fps = count / duration
        variable = len({b - a for a, b in pairwise(times)}) > 1
    return VideoInfo(
        path=path,
        kind="folder" if folder else "animation" if animated else "image",
        width=width,
        height=height,
        rotation=turn,
        fps=fps,
        num_frames=count,
        duration=float(duration),
        variable_rate=variable,
        codec=codec,
        pix_fmt=mode,
        color_range="full",
        color_space="rgb",
        file_size=file_size,
    )


class ImageSource:
    """Frames of an image, an animation or a folder, one after another."""

    def __init__(self, path: str, folder_fps: Fraction | None) -> None:
        self.info = probe_images(path, folder_fps)
        self.size = (self.info.height, self.info.width)
        self.damaged = 0
        self.warnings: list[str] = []
        self.times: list[float] | None
        if self.info.kind == "animation":
            self.times = [float(t) for t in _times(path, os.stat(path).st_mtime_ns)[:-1]]
        else:
            self.times = [float(n / (self.info.fps or 1)) for n in range(self.info.num_frames or 1)]
        self.end = self.info.duration

    def frames(self, start: float) -> Iterator[tuple[Pixels, float]]:
        """Yield [H, W, 3] pixels and seconds of every frame that is shown at or after `start`."""
        path = self.info.path
        times = self.times or [0.0]
        first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        if self.info.kind == "folder":
            for time, file in list(zip(times, list_frames(path), strict=True))[first:]:
                with open_image(file) as image:
                    yield self._resized(load(image), time, file), time
            return
        with open_image(path) as image:
            for number, time in enumerate(times):
                if self.info.kind == "animation":
                    image.seek(number)
                if number >= first:
                    yield self._resized(load(image), time, path), time

    def _resized(self, pixels: Pixels, time: float, file: str) -> Pixels:
        height, width = pixels.shape[:2]
        if (height, width) != (self.info.height, self.info.width):
            raise VideoError(
                f"{file} is {width}x{height} at {time:.3f} s, the frames before it are"
                f" {self.info.width}x{self.info.height}; make all frames of one size"
            )
        if (height, width) == self.size:
            return pixels
        picture = Image.fromarray(pixels).resize(self.size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(picture)

    def pick(self, numbers: Sequence[int]) -> Iterator[tuple[int, Pixels, float]]:
        """Yield (number, pixels, seconds) of the frames with these numbers, in order."""
        left = set(numbers)
        first = min(left)
        start = self.times[first] if self.times else 0.0
        for number, (pixels, time) in enumerate(self.frames(start), first):
            if number in left:
                yield number, pixels, time
            if number == max(left):
                return

    def close(self) -> None:
        """Nothing stays open between frames."""
