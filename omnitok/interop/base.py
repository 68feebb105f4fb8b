"""Networks published by others behind the face of our own tokenizer.

A subclass says what the network needs (whole groups of frames, whole patches, its pixel range) and
runs it; everything else is `omnitok.tokenizer.Tokenizer`. Clips are padded before the network and
cut after it, so that any number of frames and pixels comes back as it was.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, c latent channels, t, h, w tokens.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from omnitok.groups import first_frame, num_groups
from omnitok.nn.patch import pad_frames
from omnitok.nn.stack import StackCache
from omnitok.stream import EncodeStream
from omnitok.tokenizer import Tokenizer


class PublishedTokenizer(Tokenizer):
    """The interface of `Tokenizer` around a network published by others.

    A subclass sets the class attributes and writes `run_encoder` and `run_decoder`. A network that
    works in independent windows of its own also overrides `_frames_at_once` and `_groups_at_once`,
    after which streams are exact; a network without windows takes a clip as a whole, unless
    `window` cuts clips into windows that are tokenized on their own (and says so in the tokens).

    Args:
        model: The network, with `quantizer`, one of `omnitok.quantize`, and `config`, a dataclass
            with `name`, `patch` and `to_dict()`.
        weights_sha256: See `omnitok.checkpoint.hash_weights`.

    Attributes:
        multiple: (height, width) in pixels that the network takes multiples of.
        broken: The promises that the network does not hold, each with a sentence why.
    """

    model: Any
    config: Any
    broken: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: Any, weights_sha256: str) -> None:
        super().__init__(model, weights_sha256)
        self.multiple: tuple[int, int] = self.patch[1:]
        self.promises.update(self.broken)

    @abstractmethod
    def run_encoder(self, x_BCTHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whole groups of whole patches in [-1, 1] to [B, c, t, h, w] before quantization.

        Args:
            x_BCTHW: What `pad` gave, on the network's device and in its dtype.
            generator: KL: draw a sample with this noise; None for the mean.
        """

    @abstractmethod
    def run_decoder(self, z_BcTHW: Tensor) -> Tensor:
        """The way back: [B, 3, T, H, W] of whole groups and patches in [-1, 1], not clamped."""

    def pad(self, x_BCTHW: Tensor) -> Tensor:
        """Repeat the last frame and the edge pixels up to what the network takes."""
        groups = num_groups(x_BCTHW.shape[2], self.patch[0], self.causal)
        frames = first_frame(groups, self.patch[0], self.causal)
        return pad_frames(x_BCTHW, (1, *self.multiple), frames)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) in tokens of frames of (H, W) pixels, after padding."""
        h, w = (
            -(-pixels // multiple) * multiple // side
            for pixels, multiple, side in zip(size, self.multiple, self.patch[1:], strict=True)
        )
        return h, w

    def stream(self) -> EncodeStream:
        """A stream that takes frames as they come; use it as a context manager.

        Raises:
            RuntimeError: The network needs the whole clip at once.
        """
        if self.window is None and self._frames_at_once(StackCache()) == sys.maxsize:
            raise RuntimeError(
                f"tokenizer {self.config.name!r} cannot stream: its tokens depend on later frames; "
                "use tokenize on the whole clip, or set `window` to a number of frames that it "
                "may tokenize on their own"
            )
        return super().stream()

    def _frames_at_once(self, cache: StackCache) -> int:
        return sys.maxsize

    def _groups_at_once(self, cache: StackCache) -> int:
        return sys.maxsize

    def _encode_next(
        self, x_BCTHW: Tensor, cache: StackCache, generator: torch.Generator | None = None
    ) -> Tensor:
        x = self.pad(x_BCTHW.to(self.device, self.dtype))
        return rearrange(self.run_encoder(x, generator), "b c t h w -> b t (h w) c")

    def _decode_next(self, z_BcGHW: Tensor, cache: StackCache) -> Tensor:
        return self.run_decoder(z_BcGHW.to(self.device, self.dtype))
