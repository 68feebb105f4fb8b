"""Tokens of one asset: codes or latents on a (t, h, w) grid, their times and their origin."""

import hashlib
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from omnitok.groups import frames_of_groups, group_frames, is_whole, num_groups
from omnitok.token_facts import (
    Placement,
    Preprocess,
    Source,
    TokenizerInfo,
    TokensError,
    conform,
    show,
    token_bits,
)
from omnitok.token_layout import (
    LATENT_DTYPES,
    Layout,
    TokenFile,
    check_shapes,
    check_values,
    storage_dtype,
    to_rows,
    window_of,
)

__all__ = [
    "Placement",
    "Preprocess",
    "Source",
    "TokenizerInfo",
    "Tokens",
    "TokensError",
    "frames_of_groups",
    "group_frames",
    "num_groups",
]


class HasWeights(Protocol):
    """A tokenizer, as far as token files care."""

    @property
    def weights_sha256(self) -> str:
        """Hash over its weights."""


class Maker(HasWeights, Protocol):
    """A tokenizer, as far as the tokens that it makes care."""

    @property
    def info(self) -> TokenizerInfo:
        """What its token files record."""


@dataclass(kw_only=True, eq=False, repr=False)
class Tokens:
    """Tokens of one asset, or of a run of time groups of it.

    Shapes and types are checked here; values are checked where tokens are saved and loaded, so
    that making tokens never waits for the device.

    Attributes:
        codes: [t, h, w] int64, or [t, h, w, K] for K > 1 codebooks; None for latents.
        latents: [t, h, w, c] float32, float16 or bfloat16; None for codes.
        size: Frames, height and width in pixels (T, H, W) that decoding must give back.
        pts: [T] float64 presentation times in seconds, or None where not known.
        info: The tokenizer that made them. Needed for saving.
        source: The file they were made from.
        preprocess: What was done to it first.
        compute: How they were computed: dtype, device, torch version, deterministic or not.
        placement: Where a 3D asset lies (`shapes.detokenize` turns its tokens back); None for
            pictures and clips.
    """

    codes: Tensor | None = None
    latents: Tensor | None = None
    size: tuple[int, int, int]
    pts: Tensor | None = None
    info: TokenizerInfo | None = None
    source: Source | None = None
    preprocess: Preprocess | None = None
    compute: dict[str, Any] | None = None
    placement: Placement | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) == (self.latents is None):
            raise TokensError("tokens need either codes or latents, and not both")
        if self.codes is not None and (
            self.codes.dtype != torch.int64 or self.codes.ndim not in (3, 4)
        ):
            raise TokensError(
                f"codes are {self.codes.dtype} {list(self.codes.shape)}; expected int64 [t, h, w] "
                "or [t, h, w, K]"
            )
        if self.latents is not None and (
            self.latents.dtype not in LATENT_DTYPES or self.latents.ndim != 4
        ):
            raise TokensError(
                f"latents are {self.latents.dtype} {list(self.latents.shape)}; expected float32, "
                "float16 or bfloat16 [t, h, w, c]"
            )
        self.size = conform("size", self.size, tuple[int, int, int])
        self.compute = conform("compute", self.compute, dict[str, Any] | None)
        check_shapes(self.size, self.grid, self.pts, self.info, self.preprocess)
        if self.info is not None:
            self._check_info(self.info)

    def __repr__(self) -> str:
        made_by = None if self.info is None else self.info.name
        return f"Tokens({self.kind} {list(self.data.shape)}, size={self.size}, info={made_by!r})"

    def _check_info(self, info: TokenizerInfo) -> None:
        """Hold the shapes to what the tokenizer makes."""
        if self.kind != info.kind:
            raise TokensError(f"these are {self.kind}, but tokenizer {info.name} makes {info.kind}")
        if self.latents is not None:
            have, want = self.latents.shape[3], info.latent_dim
        else:
            have, want = self.num_codebooks, info.num_codebooks
        if have != want or (self.codes is not None and self.codes.ndim != 3 + (want > 1)):
            raise TokensError(
                f"{self.kind} have shape {list(self.data.shape)}, but tokenizer {info.name} makes "
                f"{want} {'codes' if self.codes is not None else 'channels'} a token"
            )

    @property
    def data(self) -> Tensor:
        """The codes or the latents, whichever there is."""
        data = self.latents if self.codes is None else self.codes
        assert data is not None
        return data

    @property
    def kind(self) -> str:
        """What these tokens are: "codes" or "latents"."""
        return "latents" if self.codes is None else "codes"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens in time, height and width."""
        t, h, w = self.data.shape[:3]
        return t, h, w

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return math.prod(self.grid)

    @property
    def num_codebooks(self) -> int:
        """Codes per token."""
        return self.codes.shape[3] if self.codes is not None and self.codes.ndim == 4 else 1

    @property
    def bits_per_token(self) -> float:
        """Bits that tell one token from all others: log2 of the codebook size, or latent bits."""
        if self.latents is not None:
            return token_bits(None, self.latents.shape[3], self.latents.dtype.itemsize)
        if self.info is None or self.info.codebook_size is None:
            raise TokensError("codes without tokenizer info have no known number of bits; set info")
        return self.info.bits_per_token()

    @property
    def bits_per_pixel(self) -> float:
        """Token bits for each pixel of the clip; 0 for an empty one."""
        return self.num_tokens * self.bits_per_token / max(1, math.prod(self.size))

    @property
    def compression(self) -> float:
        """Bits of the clip as 24-bit RGB over bits of its tokens; infinite where those are 0."""
        return 24 / self.bits_per_pixel if self.bits_per_pixel else math.inf

    @classmethod
    def cat(cls, parts: Iterable["Tokens"]) -> "Tokens":
        """Join parts that follow each other in time.

        Facts (info, source, preprocess, compute) are those of the first part.

        Raises:
            TokensError: There are no parts, they are of different clips, or one that is not the
                last ends in the middle of a group.
        """
        parts = list(parts)
        if not parts:
            raise TokensError("there are no parts to join; give at least one")
        first = parts[0]
        run = Run(first)
        for part in parts:
            run.add(part)
        data = torch.cat([part.data for part in parts])
        codes, latents = (data, None) if first.latents is None else (None, data)
        return replace(first, codes=codes, latents=latents, size=run.size, pts=run.pts)

    def save(self, path: str | Path) -> None:
        """Write a token file (see `omnitok.token_file`), whole or not at all.

        Raises:
            TokensError: The tokens have no info, are not a whole clip, hold a value that is out of
                range or not finite, or the file cannot be written.
        """
        layout = self.layout()
        rows = to_rows(self.data, layout.info)
        layout.write(Path(path), hashlib.sha256(rows).hexdigest(), [rows])

    def layout(self) -> Layout:
        """Return what a file of these tokens says, apart from the codes or latents."""
        if self.info is None:
            raise TokensError("tokens without tokenizer info cannot be saved; set info")
        return Layout(
            info=self.info,
            dtype=storage_dtype(self.data, self.info),
            size=self.size,
            grid=self.grid,
            pts=self.pts,
            source=self.source,
            preprocess=self.preprocess,
            compute=self.compute,
            placement=self.placement,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tokenizer: HasWeights | None = None,
        weights_sha256: str | None = None,
        force: bool = False,
    ) -> "Tokens":
        """Read a token file.

        Args:
            path: The file.
            tokenizer: The tokenizer that is going to decode it; others' tokens are refused.
            weights_sha256: The same, by the hash of its weights.
            force: Take tokens of other weights all the same.

        Raises:
            TokensError: The file is not a token file of a known version, is damaged, holds a value
                that is out of range, or was made with other weights.
        """
        if tokenizer is not None:
            weights_sha256 = tokenizer.weights_sha256
        with TokenFile(path, weights_sha256=weights_sha256, force=force) as file:
            return tokens_of(file, 0, file.layout.grid[0])


def tokens_of(file: TokenFile, start: int, stop: int) -> Tokens:
    """Read the time groups `start` .. `stop` of an open file as tokens."""
    layout = file.layout
    info = layout.info
    window = window_of(layout.preprocess)
    first, last = frames_of_groups(start, stop, layout.size[0], info.patch[0], info.causal, window)
    return Tokens(
        **{info.kind: file.read(start, stop)},
        size=(last - first, *layout.size[1:]),
        pts=None if layout.pts is None else layout.pts[first:last],
        info=info,
        source=layout.source,
        preprocess=layout.preprocess,
        compute=layout.compute,
        placement=layout.placement,
    )


def refuse_others(tokens: Tokens, tokenizer: Maker) -> None:
    """Refuse to decode tokens that another tokenizer made, or that it cannot have made.

    Raises:
        TokensError: They are of another kind, other weights or another shape, or a code is out of
            range.
    """
    info = tokenizer.info
    if tokens.kind != info.kind:
        raise TokensError(
            f"the tokens hold {tokens.kind}, which tokenizer {info.name!r} does not decode; load "
            "the tokenizer that made them"
        )
    if tokens.info is not None and tokens.info.weights_sha256 != info.weights_sha256:
        raise TokensError(
            f"the tokens were made by {tokens.info.name!r} with weights "
            f"{tokens.info.weights_sha256[:12]}, but {info.name!r} has "
            f"{info.weights_sha256[:12]}; load the tokenizer that made them"
        )
    tokens._check_info(info)
    if tokens.codes is not None:
        check_values(tokens.codes, info)


class Run:
    """Parts that follow each other in time, added up.

    Args:
        first: The first part; the others must be of the same clip.
    """

    def __init__(self, first: Tokens) -> None:
        self.first = first
        self.size = (0, *first.size[1:])
        self.grid = (0, *first.grid[1:])
        self._pts = array("d")  # a tensor per part would pin, and so scatter, the memory around it

    def add(self, part: Tokens) -> None:
        """Add a part.

        Raises:
            TokensError: It is of another clip, or follows a part that ended within a group.
        """
        first = self.first
        for name in ("kind", "info", "source", "preprocess", "compute", "placement"):
            if getattr(part, name) != getattr(first, name):
                raise TokensError(
                    f"parts of different clips cannot be joined: {name} is "
                    f"{show(getattr(first, name))} and then {show(getattr(part, name))}"
                )
        same = [(p.size[1:], p.data.shape[1:], p.data.dtype, p.pts is None) for p in (first, part)]
        if same[0] != same[1]:
            raise TokensError(
                "parts of different clips cannot be joined: (height, width), token shape, type, "
                f"no pts are {same[0]} and then {same[1]}"
            )
        if part.size[0] == 0:
            return
        if first.info is not None and self.size[0]:
            pt, T, t = first.info.patch[0], self.size[0], self.grid[0]
            if not is_whole(T, t, pt, first.info.causal, window_of(first.preprocess)):
                raise TokensError(
                    f"a part cannot follow one that ended within a group: {T} frames in {t} groups "
                    f"of {pt}"
                )
        self.size = (self.size[0] + part.size[0], *self.size[1:])
        self.grid = (self.grid[0] + part.grid[0], *self.grid[1:])
        if part.pts is not None:
            self._pts.extend(part.pts.tolist())

    @property
    def pts(self) -> Tensor | None:
        """[T] float64 times of all frames, or None where the first part had none."""
        if self.first.pts is None:
            return None
        return torch.tensor(self._pts, dtype=torch.float64)
