"""Compact token files: a token file made smaller by a method, its plan written beside the tokens.

Latents are merged as the method says. Codes cannot be averaged: each output keeps the code of the
token that represents it, and similarity is measured on the latents that the codes stand for.

Shape suffixes: K tokens that are kept, N tokens of the grid, h w places of a frame.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitok import Tokenizer, Tokens
from omnitok.groups import group_frames
from omnitok.token_facts import TokensError
from omnitok.token_layout import Layout, TokenFile, to_rows, window_of
from omnitok.token_plan import TokenPlan
from omnitok.tokens import tokens_of
from video.compress.plan import Plan
from video.compress.positions import grid_positions
from video.compress.registry import METHODS, plan

AnyPath = str | os.PathLike[str]


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
    """
    if method in METHODS and METHODS[method].needs != ("tokens",):
        needs = " and ".join(METHODS[method].needs[1:])
        able = sorted(name for name, m in METHODS.items() if m.needs == ("tokens",))
        raise ValueError(f"{method} needs {needs}, which no token file holds; choose one of {able}")
    if tokens.placement is not None or not tokens.num_tokens:
        what = "empty" if tokens.placement is None else "of a 3D asset"
        raise ValueError(f"these tokens are {what}; give those of a video or an image")
    made = plan(method, _features(tokens.data, load), budget, grid=tokens.grid, **options)
    rows = tokens.data.flatten(0, 2)
    place = made.rep[0]
    return Compact(
        data=_kept(rows, made),
        plan=TokenPlan(
            method=method,
            budget=budget,
            options=options,
            grid=tokens.grid,
            place=place,
            source=sources(made),
            size=made.size[0].float(),
        ),
        grid=tokens.grid,
        seconds=_seconds(tokens)[place // math.prod(tokens.grid[1:])],
    )


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
        ValueError: As `compress_tokens`.
    """
    src, dst = os.fspath(src), os.fspath(dst)
    with TokenFile(src) as file:
        layout = file.layout
        if layout.plan is not None:
            raise TokensError(f"{src} is a compact file; give the one that it was made from")
        tokens = tokens_of(file, 0, layout.grid[0])
    if load is not None and tokens.codes is not None:
        load = partial(_same, load())  # loading is not the method's time
    started = time.perf_counter()
    made = compress_tokens(tokens, method, budget, load=load, **options)
    seconds = time.perf_counter() - started
    stored = to_rows(made.data[:, None, None], layout.info)
    compact = replace(layout, plan=made.plan)
    compact.write(Path(dst), hashlib.sha256(stored).hexdigest(), [stored])
    return CompressResult(
        src=src,
        dst=dst,
        kept=len(made.data),
        total=tokens.num_tokens,
        num_bytes=os.path.getsize(dst),
        seconds=seconds,
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


def _same(tok: Tokenizer) -> Tokenizer:
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
