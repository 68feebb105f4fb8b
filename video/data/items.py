"""One file of a training set: how a random clip is cut from it.

Shape suffixes: T frames, H and W pixels.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from omnitok.train.config import SourceConfig
from omnitok.train.sampler import SampleError
from video.data.colour import jitter
from video.data.crops import Pixels, Rng, pan, resize, span, window
from video.errors import VideoError
from video.probe import probe
from video.read import read_at

Size = tuple[int, int, int]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class PixelItem:
    """A picture or a video; what is its own is how its frames are read.

    Attributes:
        name: Where it is from.
        weight: How often to draw it, relative to the others.
    """

    name: str
    weight: float = 1.0

    @contextmanager
    def here(self) -> Iterator[PixelItem]:
        """Itself, or a copy that frames can be read from."""
        yield self

    def num_frames(self) -> int:
        """Length in frames."""
        raise NotImplementedError

    def fps(self) -> float:
        """Frames per second."""
        return 25.0

    def frames(self, numbers: Numbers) -> Pixels:
        """[T, H, W, 3] uint8 of the frames with these numbers."""
        raise NotImplementedError

    def sample(self, rng: Rng, source: SourceConfig, size: Size) -> dict[str, Tensor]:
        """A random crop of a random stretch: {"pixels": uint8 [3, T, H, W]}."""
        try:
            with self.here() as item:
                clip = item._cut(rng, source, size)
        except (VideoError, OSError) as error:
            raise SampleError(str(error)) from error
        if rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if size[0] > 1 and rng.random() < 0.3:
            clip = clip[::-1]
        if source.jitter:
            clip = jitter(rng, clip, source.jitter)
        pixels = torch.from_numpy(np.ascontiguousarray(clip)).permute(3, 0, 1, 2)
        return {"pixels": pixels.contiguous()}

    def _cut(self, rng: Rng, source: SourceConfig, size: Size) -> Pixels:
        if source.kind == "pans":
            return pan(rng, self.frames(np.zeros(1, np.int64))[0], size[0], size[1:])
        if source.fps is not None:
            step = max(1e-3, self.fps() / source.fps)
        else:
            low, high = source.stride
            step = low if rng.random() < 0.7 else int(rng.integers(low, high + 1))
        clip = self.frames(span(rng, self.num_frames(), size[0], step))
        top, left, height, width = window(rng, clip.shape[1], clip.shape[2], size[1:])
        return resize(clip[:, top : top + height, left : left + width], size[1:])


class ArrayItem(PixelItem):
    """Decoded pixels, memory-mapped.

    Args:
        name: Where they are from.
        pixels_THWC: uint8.
    """

    def __init__(self, name: str, pixels_THWC: Pixels) -> None:
        self.name, self.pixels = name, pixels_THWC
        # long clips do not drown short ones
        self.weight = float(np.sqrt(pixels_THWC.size))

    def num_frames(self) -> int:
        """Length in frames."""
        return len(self.pixels)

    def frames(self, numbers: Numbers) -> Pixels:
        """[T, H, W, 3] uint8."""
        return self.pixels[numbers]


@dataclass
class FileItem(PixelItem):
    """A picture or video file, decoded when it is drawn: only around the frames asked for.

    Attributes:
        name: The file.
        weight: How often to draw it, relative to the others.
        embedding: Of its caption: a .npy file, or the numbers.
        text: Its caption: a .txt or .json file, or the words.
    """

    name: str
    weight: float = 1.0
    embedding: FileItem | list[float] | None = None
    text: FileItem | str | None = None

    def caption(self, form: str) -> Tensor | str:
        """[E] float32 its "embedding", or its "text".

        Raises:
            SampleError: It cannot be read.
        """
        if form == "embedding":
            assert self.embedding is not None
            return read_embedding(self.embedding)
        assert self.text is not None
        return read_text(self.text)

    def read(self) -> bytes:
        """All bytes of the file."""
        return Path(self.name).read_bytes()

    def num_frames(self) -> int:
        """Length in frames."""
        return probe(self.name).num_frames or 1

    def fps(self) -> float:
        """Frames per second."""
        return float(probe(self.name).fps or 25)

    def frames(self, numbers: Numbers) -> Pixels:
        """[T, H, W, 3] uint8."""
        clip = read_at(self.name, indices=numbers.tolist())
        return np.asarray(clip.frames.permute(0, 2, 3, 1))


@dataclass
class TarItem(FileItem):
    """A member of a tar archive.

    Attributes:
        archive: The .tar file.
        offset: Where the member's bytes begin.
        size: How many there are.
    """

    archive: str = ""
    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """All bytes of the member."""
        with open(self.archive, "rb") as archive:
            archive.seek(self.offset)
            return archive.read(self.size)

    @contextmanager
    def here(self) -> Iterator[PixelItem]:
        """The member as a temporary file, since decoders seek."""
        suffix = os.path.splitext(self.name)[1]
        with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
            copy.write(self.read())
            copy.flush()
            try:
                yield FileItem(copy.name)
            except (VideoError, OSError) as error:
                raise VideoError(str(error).replace(copy.name, self.name)) from error


def read_embedding(source: FileItem | list[float]) -> Tensor:
    """[E] float32 from a .npy file, or from numbers."""
    name = source.name if isinstance(source, FileItem) else "its embedding"
    try:
        if not isinstance(source, FileItem):
            return torch.tensor(source, dtype=torch.float32)
        vector = np.load(io.BytesIO(source.read()), allow_pickle=False)
        return torch.from_numpy(vector).float()
    except (OSError, ValueError, EOFError, TypeError, RuntimeError, BadZipFile) as error:
        raise SampleError(f"{name} is no array of numbers ({error})") from error


def read_text(source: FileItem | str) -> str:
    """A caption from a .txt file, a .json file with "caption" or "text", or as it is."""
    if not isinstance(source, FileItem):
        return source
    try:
        text: Any = source.read().decode("utf-8")
        if source.name.lower().endswith(".json"):
            facts = json.loads(text)
            text = facts.get("caption", facts.get("text")) if isinstance(facts, dict) else None
    except (OSError, ValueError) as error:
        raise SampleError(f"{source.name} is no text that can be read ({error})") from error
    if not isinstance(text, str):
        raise SampleError(f"{source.name} has no 'caption' or 'text' in words")
    return text.strip()
