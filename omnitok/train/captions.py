"""Which losses look at captions, and in which form files must have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from omnitok.train.config import ConfigError

CAPTIONED = ("contrastive", "distill")  # the latter by its kind


@dataclass(frozen=True)
class Captions:
    """What losses need of captions.

    Attributes:
        loss: Which one needs it.
        encoder: Folder of the text encoder; None if captions are to be embeddings.
        width: Numbers of an embedding.
    """

    loss: str
    encoder: str | None
    width: int | None

    @property
    def form(self) -> str:
        """The attribute of an item that has to be there."""
        return "embedding" if self.encoder is None else "text"


class Captioned(Protocol):
    """A file that may have a caption, in none, one or both of two forms."""

    name: str
    embedding: Any
    text: Any

    def caption(self, form: str) -> Tensor | str:
        """[E] its embedding, or its text; or a SampleError."""


def captions_of(losses: Mapping[str, Any]) -> Captions | None:
    """What the losses of a source need; None if they do not look at captions.

    Raises:
        ConfigError: They need different ones.
    """
    found: Captions | None = None
    for name in CAPTIONED:
        given = losses.get(name)
        if name not in losses or (name == "distill" and not _reads(given)):
            continue
        settings = given if isinstance(given, Mapping) else {}
        wanted = Captions(name, settings.get("texts"), settings.get("embedding"))
        if found is not None and (found.encoder, found.width) != (wanted.encoder, wanted.width):
            raise ConfigError(
                f"losses {found.loss!r} and {name!r} look at the same captions, so `texts` and "
                "`embedding` must be the same for both"
            )
        found = found or wanted
    return found


def _reads(distill: Any) -> bool:
    return isinstance(distill, Mapping) and distill.get("kind") == "captions"
