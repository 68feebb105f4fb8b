"""Fewer frames: choosing, merging and pooling them, of token files' tokens or of any tensor."""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from omnitok import Tokens
from omnitok.groups import group_frames
from omnitok.token_layout import window_of
from video.compress.budget import exact
from video.compress.plan import Plan
from video.compress.recipes.lftr import alike_frames
from video.compress.score import change, cosine_matrix
from video.compress.select import every, top

AnyTokens = TypeVar("AnyTokens", Tensor, Tokens)


def select_frames(
    tokens: AnyTokens, keep: float | int, *, by: str = "even", text: Tensor | None = None
) -> AnyTokens:
    """Keep some of the frames, in their order.

    Args:
        tokens: [T, N, ...] of any kind, or `omnitok.Tokens`, of which time groups are the frames.
        keep: Frames that stay: a fraction as a float, or a count as an int.
        by: "even" distances, "change" since the frame before (the first counts as changed), or
            "text" by the cosine of the mean of a frame and of the text.
        text: [L, D] in the space of the tokens, for "text".

    Returns:
        The same kind; tokens keep the times of the frames that they are of.

    Raises:
        ValueError: `by` is unknown, does not go with the tokens, or `keep` is not a budget.
    """
    x = _data(tokens)
    count = exact(keep, len(x))
    if by == "even":
        index = every(len(x), count, x.device)[None]
    elif by not in ("change", "text"):
        raise ValueError(f"by={by!r}; choose of 'even', 'change', 'text'")
    elif not x.is_floating_point():
        raise ValueError(f"by={by!r} needs float tokens; these are {x.dtype}: pass by='even'")
    elif by == "change":
        index = top(change(_means(x)[None, :, None])[..., 0], count)
    elif text is None or text.shape[-1] != x.shape[-1]:
        given = "missing" if text is None else list(text.shape)
        raise ValueError(f"by='text' needs text of [L, {x.shape[-1]}]; it is {given}")
    else:
        score = cosine_matrix(_means(x), text.view(-1, text.shape[-1]).mean(0, keepdim=True))
        index = top(score.T, count)
    return _apply(tokens, Plan.keep(index, len(x)), "rep")


def merge_frames(
    tokens: AnyTokens,
    keep: float | int | None = None,
    *,
    threshold: float = 0.9,
    average: bool = True,
) -> AnyTokens:
    """Make one frame of frames that follow each other and are alike.

    Args:
        tokens: Float [T, N, ...], or `omnitok.Tokens` of latents.
        keep: Frames that stay: a fraction as a float, or a count as an int; cut where frames
            change most.
        threshold: Without `keep`: cut where the cosine of the means of frames is below this.
        average: Average the frames, or keep the first of them.

    Returns:
        The same kind; a merged frame has the times of its first.

    Raises:
        ValueError: Tokens are codes, or `keep` is not a budget.
    """
    x = _floats(tokens, "merged")
    groups = None if keep is None else exact(keep, len(x))
    plan = alike_frames(_means(x)[:, None], groups, threshold, average)
    return _apply(tokens, plan, "weight")


def pool_time(tokens: AnyTokens, stride: int) -> AnyTokens:
    """Average every `stride` frames; those left over at the end are averaged as well.

    Args:
        tokens: Float [T, N, ...], or `omnitok.Tokens` of latents.
        stride: Frames that become one.

    Returns:
        The same kind; a pooled frame has the times of its first.

    Raises:
        ValueError: Tokens are codes, or the stride is below 1.
    """
    x = _floats(tokens, "averaged")
    if stride < 1:
        raise ValueError(f"stride={stride}; expected 1 or more frames")
    label = torch.arange(len(x), device=x.device)[None] // stride
    return _apply(tokens, Plan.from_labels(label), "weight")


def _data(tokens: Tensor | Tokens) -> Tensor:
    x = tokens.data if isinstance(tokens, Tokens) else tokens
    if x.dim() < 2 or not x.numel():
        raise ValueError(f"tokens are {list(x.shape)}; expected [T, N, ...], none of them 0")
    return x


def _floats(tokens: Tensor | Tokens, verb: str) -> Tensor:
    x = _data(tokens)
    if not x.is_floating_point():
        raise ValueError(
            f"{x.dtype} tokens cannot be {verb}; use latents, or select_frames, which keeps codes"
        )
    return x


def _means(x: Tensor) -> Tensor:
    """[T, D] the mean of each frame, in float32 at least."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.flatten(1, -2).mean(1) if x.dim() > 2 else wide


def _apply(tokens: AnyTokens, frames: Plan, reduce: str) -> AnyTokens:
    x = _data(tokens)
    y = frames.apply(x.flatten(1)[None], reduce)[0].view(-1, *x.shape[1:])
    if isinstance(tokens, Tensor):
        return y
    codes, latents = (y, None) if tokens.kind == "codes" else (None, y)
    starts = _frame_starts(tokens)
    shown = [t for g in frames.rep[0].tolist() for t in range(starts[g], starts[g + 1])]
    size = (len(shown), tokens.size[1], tokens.size[2])
    pts = None if tokens.pts is None else tokens.pts[shown]
    return replace(tokens, codes=codes, latents=latents, size=size, pts=pts)


def _frame_starts(tokens: Tokens) -> list[int]:
    """Where every time group starts, and how many frames there are."""
    (T, *_), (t, *_), info = tokens.size, tokens.grid, tokens.info
    if tokens.placement is not None:
        raise ValueError("these are tokens of a 3D asset, which has no frames")
    if info is not None:
        return group_frames(T, info.patch[0], info.causal, window_of(tokens.preprocess))
    if t == T:
        return list(range(T + 1))
    raise ValueError(
        f"these tokens are {t} groups of {T} frames, with no info that says how: pass tokens with "
        "info, or their latents alone"
    )
