"""Protocols of evaluation: what is cut out of which files, written down once and never changed.

A protocol is a JSON file; those that ship lie in `tools/protocols`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from tools.commands.errors import UsageError

FOLDER = Path(__file__).parents[1] / "protocols"
DEFAULT = "clips-33x256"
_CHOICES: dict[str, tuple[Any, ...]] = {
    "resize": ("crop", "stretch", "keep"),
    "scaling": ("bilinear", "bicubic"),
    "start": ("first", "centre", "random"),
    "short": ("keep", "skip"),
    "lpips": ("alex", "vgg"),
    "crops": (1, 4, 9),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is compared.

    Attributes:
        name: How to ask for it.
        about: Where it comes from and what it must not be compared with.
        kinds: "video", "image" or both.
        frames: Of a clip.
        size: Side of the square in pixels.
        resize: "crop" scales the short side and cuts out the centre, "stretch" ignores the aspect,
            "keep" leaves frames as they are.
        scaling: "bilinear" or "bicubic", both antialiased.
        fps: Sample videos at this rate; None takes frames as they are.
        stride: Distance of frames, after sampling.
        start: Where a clip begins: "first" frame, "centre" of the video, or "random" by the seed.
        short: What to do with videos of fewer frames: "keep" or "skip".
        clips: Files at most of each kind, chosen by the seed; None for all.
        seed: Of every choice.
        crops: Crops of every frame that features are taken from: 1 (the whole), 4 or 9.
        lpips: Network of LPIPS: "alex" or "vgg".
    """

    name: str
    about: str = ""
    kinds: tuple[str, ...] = ("video", "image")
    frames: int = 33
    size: int = 256
    resize: str = "crop"
    scaling: str = "bilinear"
    fps: float | None = None
    stride: int = 1
    start: str = "first"
    short: str = "keep"
    clips: int | None = None
    seed: int = 0
    crops: int = 9
    lpips: str = "alex"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose of {choices}")
        if not self.kinds or not set(self.kinds) <= {"video", "image"}:
            raise ValueError(f"kinds={list(self.kinds)} must be 'video', 'image' or both")
        for name in ("frames", "size", "fps", "stride", "clips"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be above 0")

    @property
    def span(self) -> int:
        """Frames from the first to the last of a clip."""
        return (self.frames - 1) * self.stride + 1


def names() -> list[str]:
    """The protocols that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_protocol(name: str) -> Protocol:
    """The protocol of a name, or in a file.

    Raises:
        UsageError: There is none, or it is not well formed.
    """
    from omnitok.token_facts import conform

    path = FOLDER / f"{name}.json" if name in names() else Path(name)
    if not path.is_file():
        raise UsageError(
            f"--protocol {name}: there is no such file, nor does one of that name ship; choose of "
            f"{names()}"
        )
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, expected an object")
        known = {entry.name for entry in fields(Protocol)} - {"name"}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown keys {unknown}; it takes {sorted(known)}")
        hints = get_type_hints(Protocol)
        values = {key: conform(key, value, hints[key]) for key, value in values.items()}
        return Protocol(name=name, **values)
    except (ValueError, OSError) as error:
        raise UsageError(f"--protocol {name}: {error}") from error
