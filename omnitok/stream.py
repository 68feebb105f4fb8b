"""Frames in, tokens out: the exact stream of a tokenizer.

Shape suffixes: none; frames are uint8 [n, 3, H, W].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from omnitok.nn.stack import StackCache
from omnitok.pixels import to_float
from omnitok.token_layout import LATENT_DTYPES
from omnitok.tokens import Preprocess, Tokens

if TYPE_CHECKING:
    from omnitok.tokenizer import Tokenizer


class EncodeStream:
    """Frames in, tokens out, as soon as a group (or a window of groups) is complete.

    Memory holds the frames of less than that, and the keys and values of the last groups, whatever
    the length of the stream. An error inside the `with` block ends the stream.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._dtype = tokenizer.dtype if tokenizer.dtype in LATENT_DTYPES else torch.float32
        self._cache = StackCache()
        self._waiting: list[Tensor] = []
        self._size: tuple[int, int] | None = None
        self._finished = False

    def __enter__(self) -> EncodeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._finished = True

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tokens:
        """Take the next frames.

        Args:
            frames: uint8 [n, 3, H, W], n >= 1, all of one size.

        Returns:
            Tokens of the groups that became complete; the grid's t may be 0.

        Raises:
            ValueError: The shape, type or size is wrong.
            RuntimeError: The stream is finished.
        """
        self._check(frames)
        outputs, count, taken = [], 0, 0
        while True:
            tok = self._tokenizer
            wanted = tok.window or tok._frames_at_once(self._cache)
            room = wanted - sum(map(len, self._waiting))
            if len(frames) - taken < room:
                break
            group = torch.cat([*self._waiting, frames[taken : taken + room]])
            outputs.append(self._encode(group))
            count, taken, self._waiting = count + wanted, taken + room, []
        if taken < len(frames):
            self._waiting.append(frames[taken:].clone())
        return self._tokens(outputs, count)

    @torch.no_grad()
    def finish(self) -> Tokens:
        """End the stream and return the tokens of the frames that are left."""
        if self._finished:
            raise RuntimeError("the stream is finished; open a new one with Tokenizer.stream()")
        if self._size is None:
            raise ValueError("the stream got no frames; push at least one before finish()")
        self._finished = True
        if not self._waiting:
            return self._tokens([], 0)
        group = torch.cat(self._waiting)
        self._waiting = []
        return self._tokens([self._encode(group)], len(group))

    def _check(self, frames: Tensor) -> None:
        if self._finished:
            raise RuntimeError("the stream is finished; open a new one with Tokenizer.stream()")
        if (
            frames.ndim != 4
            or frames.shape[1] != 3
            or frames.dtype != torch.uint8
            or 0 in frames.shape
        ):
            raise ValueError(
                f"got {frames.dtype} {list(frames.shape)}; expected uint8 [T, 3, H, W] with at "
                "least one frame and pixel"
            )
        size = (frames.shape[2], frames.shape[3])
        if self._size is not None and size != self._size:
            raise ValueError(
                f"frames of {size} pixels follow frames of {self._size} pixels in one stream; "
                "start a new stream for them"
            )
        self._size = size

    def _encode(self, group: Tensor) -> Tensor:
        """[n, 3, H, W] frames of the next groups to [t, h, w, (K or c)] codes or latents."""
        tok = self._tokenizer
        x = to_float(group.to(tok.device).transpose(0, 1)[None], tok.dtype)
        assert self._size is not None
        z = tok._encode_next(x, self._cache)
        z = rearrange(z[0], "g (y x) c -> g y x c", y=tok.grid(self._size)[0])
        if tok.codebook_size is None:
            return z.to("cpu", self._dtype)
        return tok._codes(z).cpu()

    def _tokens(self, outputs: list[Tensor], frames: int) -> Tokens:
        tok = self._tokenizer
        assert self._size is not None
        if outputs:
            values = torch.cat(outputs)
        else:
            values = self._nothing()
        discrete = tok.codebook_size is not None
        return Tokens(
            codes=values if discrete else None,
            latents=None if discrete else values,
            size=(frames, *self._size),
            info=tok.info,
            preprocess=None if tok.window is None else Preprocess(window=(tok.window, 0)),
            compute=tok.compute,
        )

    def _nothing(self) -> Tensor:
        tok = self._tokenizer
        assert self._size is not None
        grid = tok.grid(self._size)
        if tok.codebook_size is None:
            return torch.empty(0, *grid, tok.model.quantizer.dim, dtype=self._dtype)
        many = tok.model.quantizer.num_codebooks
        return torch.empty(0, *grid, *([many] if many > 1 else []), dtype=torch.int64)
