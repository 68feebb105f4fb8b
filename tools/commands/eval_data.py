"""What is evaluated: clips and pictures, read one at a time and cut as a protocol says.

Shape suffixes: T frames, C colours, H and W pixels.
"""

from __future__ import annotations

import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands.errors import InputError
from tools.commands.planning import IMAGES, is_media, is_shape
from tools.commands.protocol import Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to score.

    Attributes:
        name: What it is called in tables.
        frames: uint8 [T, 3, H, W].
        fps: Frames per second; None for a picture.
    """

    name: str
    frames: Tensor
    fps: float | None = None

    @property
    def kind(self) -> str:
        """Whether it is a "video" or, with a single frame, an "image"."""
        return "video" if len(self.frames) > 1 else "image"

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.frames.numel() // 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that has not been read yet.

    Attributes:
        name: What it is called in tables.
        kind: "video" or "image", by what it promises.
        read: Reads it; None means that the protocol leaves it out.
    """

    name: str
    kind: str
    read: Callable[[], Item | None]


def choose(sources: Sequence[Source], protocol: Protocol) -> list[Source]:
    """The sources of the protocol's kinds, of each kind as many as it takes."""
    chosen = []
    for kind in protocol.kinds:
        own = [source for source in sources if source.kind == kind]
        if protocol.clips is not None and len(own) > protocol.clips:
            picked = random.Random(protocol.seed).sample(range(len(own)), protocol.clips)
            own = [own[number] for number in sorted(picked)]
        chosen += own
    return chosen


def from_corpus(corpus: Path, protocol: Protocol) -> list[Source]:
    """The clips and images of a corpus that training never saw."""

    def reader(item: Any, entry: dict[str, Any], kind: str) -> Callable[[], Item | None]:
        def read() -> Item | None:
            import numpy as np
            import torch

            numbers = place(protocol, entry["key"], len(item))
            if numbers is None:
                return None
            frames = torch.from_numpy(np.array(item[numbers])).permute(0, 3, 1, 2)
            fps = entry.get("fps") if kind == "video" else None
            return Item(name=entry["key"], frames=fit(frames, protocol), fps=fps)

        return read

    return [
        Source(name=entry["key"], kind=kind, read=reader(item, entry, kind))
        for kind in ("video", "image")
        for item, entry in corpus_items(corpus / "val", kind)
    ]


def corpus_items(split: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """[T, H, W, 3] memory-mapped pixels and facts of each clip or image of a split."""
    from video.data.datasets import read_corpus

    entries = json.loads((split / f"{kind}s.json").read_text())
    yield from zip(read_corpus(split, f"{kind}s"), entries, strict=True)


def from_folder(folder: str, protocol: Protocol) -> list[Source]:
    """The videos and images of a folder and its subfolders.

    Raises:
        InputError: There are none, or no such folder.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is no folder; name one with videos or images")

    def reader(path: str, name: str) -> Callable[[], Item | None]:
        return lambda: read_item(path, name, protocol)

    sources = []
    for path in media_of(folder):
        name = os.path.relpath(path, folder)
        kind = "image" if os.path.splitext(path.lower())[1] in IMAGES else "video"
        sources.append(Source(name=name, kind=kind, read=reader(path, name)))
    if not sources:
        raise InputError(f"{folder} holds no videos or images; name a folder that does")
    return sources


def media_of(folder: str) -> list[str]:
    """The videos and images of a folder and its subfolders, but for hidden ones."""
    found = list[str]()
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        wanted = (n for n in names if n[0] != "." and is_media(n) and not is_shape(n))
        found += [os.path.join(at, name) for name in wanted]
    return sorted(found)


def read_item(path: str, name: str, protocol: Protocol) -> Item | None:
    """Read what the protocol takes of a file; None if that is too short.

    Raises:
        VideoError: The file cannot be read.
    """
    from video import probe, read_at

    info = probe(path)
    if info.kind == "image":
        return Item(name=name, frames=fit(read_at(path, indices=[0]).frames, protocol))
    rate = float(protocol.fps or info.fps or 25)
    if protocol.start == "first":
        frames = _leading(path, protocol)
        if len(frames) < protocol.frames and protocol.short == "skip":
            return None
        return Item(name=name, frames=frames, fps=rate / protocol.stride)
    count = info.num_frames if protocol.fps is None else math.floor(info.duration * rate)
    if not count:
        raise InputError(f"{path} does not say how many frames it has; use a protocol from 'first'")
    numbers = place(protocol, name, count)
    if numbers is None:
        return None
    if protocol.fps is None:
        clip = read_at(path, indices=numbers)
    else:
        clip = read_at(path, times=[info.start + number / rate for number in numbers])
    return Item(name=name, frames=fit(clip.frames, protocol), fps=rate / protocol.stride)


def _leading(path: str, protocol: Protocol) -> Tensor:
    """The first frames, fitted chunk by chunk."""
    import torch

    from video import open_video

    parts, seen = list[torch.Tensor](), 0
    with open_video(path, fps=protocol.fps, chunk=8) as reader:
        for frames, _ in reader:
            wanted = frames[-seen % protocol.stride :: protocol.stride]
            left = protocol.frames - sum(map(len, parts))
            if len(wanted):
                parts.append(fit(wanted[:left], protocol))
            seen += len(frames)
            if sum(map(len, parts)) >= protocol.frames:
                break
    return torch.cat(parts)


def place(protocol: Protocol, name: str, total: int) -> list[int] | None:
    """Which frames of a video of `total` frames make up its clip; None if they are too few."""
    if total < protocol.span and protocol.short == "skip" and protocol.frames > 1:
        return None
    slack = max(0, total - protocol.span)
    start = {"first": 0, "centre": min(slack, max(0, total // 2 - protocol.span // 2))}.get(
        protocol.start
    )
    if start is None:
        seed = f"{protocol.seed}:{zlib.crc32(os.fsencode(name))}"
        start = random.Random(seed).randint(0, slack)
    return list(range(start, min(total, start + protocol.span), protocol.stride))


def fit(frames_TCHW: Tensor, protocol: Protocol) -> Tensor:
    """Scale (as Pillow does, but for some last bits) and cut uint8 frames as a protocol says."""
    import torch
    from torch.nn import functional as F

    height, width = frames_TCHW.shape[2:]
    size = protocol.size
    if protocol.resize == "keep" or (height, width) == (size, size):
        return frames_TCHW.contiguous()
    scaled = (size, size)
    if protocol.resize == "crop":
        scale = size / min(height, width)
        scaled = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    parts = []
    for frame in torch.split(frames_TCHW, 1):
        x = F.interpolate(frame, scaled, mode=protocol.scaling, antialias=True)
        parts.append(x[:, :, top : top + size, left : left + size])
    return torch.cat(parts)
