"""Compact token files: a token file made smaller by a method, its plan written beside the tokens.

Latents are merged as the method says. Codes cannot be averaged: each output keeps the code of the
token that represents it, and similarity is measured on the latents that the codes stand for.

Shape suffixes: K tokens that are kept, N tokens of the grid, h w places of a frame.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitok import Tokenizer, Tokens
from omnitok.groups import group_frames
from omnitok.token_facts import TokenizerInfo, TokensError
from omnitok.token_file import pieces, write_errors
from omnitok.token_layout import Layout, TokenFile, to_rows, window_of
from omnitok.token_plan import TokenPlan
from video.compress.plan import Plan
from video.compress.positions import grid_positions
from video.compress.registry import METHODS, known_method
from video.compress.windows import in_windows

AnyPath = str | os.PathLike[str]
_COPIES, _PLANNED = 3, 200  # of the features, and bytes for each token, while a plan is made


@dataclass(frozen=True, kw_only=True)
class Compact:
    """The tokens that a compact file holds.

    Attributes:
        data: [K, c] latents, or [K] or [K, books] codes.
        plan: Where they are and what they stand for.
        grid: (t, h, w) of the whole.
        seconds: [K] float64 when each is shown first; frame numbers where no times are known.
    """

    data: Tensor
    plan: TokenPlan
    grid: tuple[int, int, int]
    seconds: Tensor

    @property
    def positions(self) -> Tensor:
        """[K, 3] float64 time group, row and column of each token."""
        return grid_positions(self.grid)[self.plan.place]


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """What `compress_file` did.

    Attributes:
        src: The token file.
        dst: The compact one.
        kept: Tokens that stayed.
        total: Tokens there were.
        num_bytes: Size of `dst`.
        seconds: Time the method took.
    """

    src: str
    dst: str
    kept: int
    total: int
    num_bytes: int
    seconds: float


def compress_tokens(
    tokens: Tokens,
    method: str = "dycoke",
    budget: float | int | None = 0.25,
    *,
    load: Callable[[], Tokenizer] | None = None,
    **options: Any,
) -> Compact:
    """Make the tokens of a clip fewer.

    Args:
        tokens: Of a video or an image, with info.
        method: A name of `METHODS` that needs nothing but tokens.
        budget: As `plan` takes it.
        load: Gives the tokenizer that made the tokens; only called for codes.
        **options: Settings of the method.

    Raises:
        KeyError: There is no such method.
        ValueError: The method needs more than tokens, a setting does not fit, or these are no
            tokens of a clip.
        TypeError: The method has no such setting.
    """
    seconds = _seconds(tokens)
    work = _Work(tokens, method, budget, load, options)
    kept = [work.keep(tokens.data[start:stop]) for start, stop in work.windows]
    plan = work.plan()
    group = plan.place // math.prod(tokens.grid[1:])
    return Compact(data=torch.cat(kept), plan=plan, grid=tokens.grid, seconds=seconds[group])


class _Work:
    """A method on its way through the tokens of a clip, which it gets window by window.

    Attributes:
        windows: The first time group of each, and the one past its last.
        seconds: Time the method has taken so far.
    """

    def __init__(
        self,
        clip: Tokens | Layout,
        method: str,
        budget: float | int | None,
        load: Callable[[], Tokenizer] | None,
        options: dict[str, Any],
    ) -> None:
        needs = known_method(method, options).needs[1:]
        if needs:
            able = sorted(name for name, m in METHODS.items() if m.needs == ("tokens",))
            raise ValueError(
                f"{method} needs {' and '.join(needs)}, which no token file holds; choose one of "
                f"{able}"
            )
        if tensors := [name for name, value in options.items() if isinstance(value, Tensor)]:
            raise ValueError(
                f"{tensors[0]} is a tensor, which no token file can record; leave it out, or use "
                "video.compress.plan"
            )
        t, h, w = clip.grid
        if clip.placement is not None or not t:
            what = "empty" if clip.placement is None else "of a 3D asset"
            raise ValueError(f"these tokens are {what}; give those of a video or an image")
        step, self._decide = in_windows(method, t, h * w, budget, grid=clip.grid, **options)
        self.windows = [(start, min(start + step, t)) for start in range(0, t, step)]
        self.seconds = 0.0
        self._facts: dict[str, Any] = {"method": method, "budget": budget, "options": options}
        self._facts["grid"] = clip.grid
        self._load = None if load is None else cache(partial(_maker, load, clip.info))
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sources = self._kept = 0

    def keep(self, data: Tensor) -> Tensor:
        """[K, ...] the tokens that stay of the next window [n, h, w, ...]."""
        features = _features(data, self._load)  # loading is not the method's time
        started = time.perf_counter()
        made = self._decide(features)
        kept, source = _kept(data.flatten(0, 2), made), sources(made)
        source = source.where(source < 0, source + self._kept)
        self._parts.append((made.rep[0] + self._sources, source, made.size[0].float()))
        self._sources, self._kept = self._sources + len(source), self._kept + len(kept)
        self.seconds += time.perf_counter() - started
        return kept

    def plan(self) -> TokenPlan:
        """What was decided, after the last window."""
        place, source, size = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return TokenPlan(place=place, source=source, size=size, **self._facts)


def whole_tokens(tokens: Tokens) -> Compact:
    """All tokens of a clip, in the form of compact ones."""
    N = tokens.num_tokens
    every = torch.arange(N)
    plan = TokenPlan(
        method="none",
        budget=None,
        options={},
        grid=tokens.grid,
        place=every,
        source=every,
        size=torch.ones(N),
    )
    seconds = _seconds(tokens)[every // math.prod(tokens.grid[1:])]
    return Compact(data=tokens.data.flatten(0, 2), plan=plan, grid=tokens.grid, seconds=seconds)


def compress_file(
    src: AnyPath,
    dst: AnyPath,
    method: str = "dycoke",
    budget: float | int | None = 0.25,
    *,
    load: Callable[[], Tokenizer] | None = None,
    **options: Any,
) -> CompressResult:
    """Turn a token file into a compact one.

    Methods that do not look ahead go through the file window by window: only the plan, about 20
    bytes for each token, grows with the clip.

    Args:
        src: A token file of a video or an image.
        dst: The compact file; it appears when it is complete.
        method: As `compress_tokens` takes it.
        budget: As `compress_tokens` takes it.
        load: As `compress_tokens` takes it.
        **options: Settings of the method.

    Raises:
        TokensError: `src` is damaged or compact already, or `dst` cannot be written.
        KeyError: As `compress_tokens`.
        ValueError: As `compress_tokens`; or a method that looks at the whole clip needs more memory
            than there is.
        TypeError: As `compress_tokens`.
    """
    src, dst = os.fspath(src), os.fspath(dst)
    with TokenFile(src) as file, write_errors(Path(dst)):
        layout = file.layout
        if layout.plan is not None:
            raise TokensError(f"{src} is a compact file; give the one that it was made from")
        work = _Work(layout, method, budget, load, options)
        _check_room(src, layout, method, work)
        digest = hashlib.sha256()
        with tempfile.TemporaryFile(dir=Path(dst).parent) as spool:
            for start, stop in work.windows:
                stored = to_rows(work.keep(file.read(start, stop))[:, None, None], layout.info)
                digest.update(stored)
                spool.write(stored)
            plan, size = work.plan(), spool.tell()
            replace(layout, plan=plan).write(Path(dst), digest.hexdigest(), pieces(spool, 0, size))
    return CompressResult(
        src=src,
        dst=dst,
        kept=len(plan.place),
        total=len(plan.source),
        num_bytes=os.path.getsize(dst),
        seconds=work.seconds,
    )


def _check_room(src: str, layout: Layout, method: str, work: _Work) -> None:
    """Refuse to read at once what does not fit into memory.

    Raises:
        ValueError: It does not.
    """
    need = math.prod(layout.grid) * (_COPIES * 4 * layout.info.latent_dim + _PLANNED)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if len(work.windows) == 1 and need > have:
        able = sorted(name for name, m in METHODS.items() if not m.looks_ahead(1, {}))
        raise ValueError(
            f"{src} holds {math.prod(layout.grid):,} tokens, and {method} looks at all of them at "
            f"once: that needs about {need / 2**30:.1f} GiB of memory, and this machine has "
            f"{have / 2**30:.1f}; tokenize shorter clips, or choose a method that goes through it "
            f"in windows: {able}"
        )


def read_compact(path: AnyPath) -> Compact:
    """Read the tokens of a compact file as they are, not spread over the grid.

    Raises:
        TokensError: It is damaged, or not compact.
    """
    with TokenFile(os.fspath(path)) as file:
        layout = file.layout
        if layout.plan is None:
            raise TokensError(f"{path} holds all its tokens; use Tokens.load")
        data = file.read_rows(0, layout.num_rows)
    group = layout.plan.place // math.prod(layout.grid[1:])
    return Compact(data=data, plan=layout.plan, grid=layout.grid, seconds=_seconds(layout)[group])


def sources(made: Plan) -> Tensor:
    """[N] int64 the output that each token of one clip went into, -1 for none.

    Of several outputs the one it weighs most in counts.

    Args:
        made: A plan of one clip, its outputs in order.
    """
    order = made.weight.argsort(stable=True)  # later writes win: the largest weight
    source = torch.full((made.num_in,), -1)
    source[made.src[order]] = made.out[order]
    source[made.rep[0]] = torch.arange(made.num_out)
    return source


def _maker(load: Callable[[], Tokenizer], info: TokenizerInfo | None) -> Tokenizer:
    """Load the tokenizer that made the tokens.

    Raises:
        ValueError: It is another one.
    """
    tok = load()
    if info is not None and tok.weights_sha256 != info.weights_sha256:
        raise ValueError(
            f"the tokens were made by {info.name!r} with weights {info.weights_sha256[:12]}, but "
            f"these are {tok.weights_sha256[:12]}; load the tokenizer that made them"
        )
    return tok


def _features(data: Tensor, load: Callable[[], Tokenizer] | None) -> Tensor:
    """[t, h * w, c] float tokens to decide on."""
    if data.is_floating_point():
        return data.flatten(1, 2)
    if load is None:
        raise ValueError("codes need the tokenizer that made them; pass load")
    z = load().dequantize(data[None])[0]
    return z.flatten(2).permute(1, 2, 0).float().cpu()


def _kept(rows: Tensor, made: Plan) -> Tensor:
    """The tokens that stay, averaged in float32 where they are numbers."""
    if not rows.is_floating_point():
        return made.apply(rows[None], "rep")[0]
    return made.apply(rows[None].float())[0].to(rows.dtype)


def _seconds(tokens: Tokens | Layout) -> Tensor:
    """[t] float64 time of the first frame of each time group."""
    if tokens.info is None:
        raise ValueError("tokens without tokenizer info have no known times; set info")
    patch, causal = tokens.info.patch[0], tokens.info.causal
    starts = group_frames(tokens.size[0], patch, causal, window_of(tokens.preprocess))
    first = torch.tensor(starts[:-1])
    return first.double() if tokens.pts is None else tokens.pts[first]
