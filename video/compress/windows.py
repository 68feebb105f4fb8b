"""Plans of long videos, a few frames at a time.

Shape suffixes: T frames at hand, N tokens of a frame, D width.
"""

import inspect
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from video.compress.budget import evenly, exact, window
from video.compress.merge import distinct
from video.compress.plan import Plan
from video.compress.registry import known_method, plan


def in_windows(
    method: str,
    frames: int,
    tokens: int,
    budget: float | int | None,
    *,
    grid: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[int, Callable[[Tensor], Plan]]:
    """Decide as `plan` does, on a video that comes a few frames at a time.

    Args:
        method: As `plan` takes it; one that needs tokens only.
        frames: Frames of the video.
        tokens: Tokens of a frame.
        budget: As `plan` takes it, of all frames together.
        grid: As `plan` takes it.
        **options: As `plan` takes them.

    Returns:
        How many frames to give at a time, which are all of them for methods that look ahead, and a
        function of the next ones [n, N, D] that returns their part of the plan.

    Raises:
        KeyError: As `plan`.
        ValueError: The budget is none.
        TypeError: As `plan`.
    """
    known = known_method(method, options)
    keep = None if budget is None else exact(budget, frames * tokens)
    step = window(tokens)
    if keep == frames * tokens:
        return step, lambda x_TND: Plan.identity(1, len(x_TND) * tokens, x_TND.device)
    if known.looks_ahead(keep, options):
        return frames, lambda x_TND: plan(method, x_TND, budget, grid=grid, **options)
    if known.walk is not None:
        walk = known.walk(frames, tokens, keep, **options)

        def next_places(x_TND: Tensor) -> Plan:
            places = [walk(x_ND[None]) + t * tokens for t, x_ND in enumerate(x_TND)]
            return Plan.keep(torch.cat(places, dim=1), len(x_TND) * tokens).in_order()

        return step, torch.no_grad()(next_places)
    counts = None if keep is None else iter(evenly(keep, frames))
    if "grid" in inspect.signature(known.run).parameters:
        options["grid"] = grid

    def next_frames(x_TND: Tensor) -> Plan:
        if counts is None:
            return distinct(known.run(x_TND[None], None, **options)).in_order()
        here = list(islice(counts, len(x_TND)))
        if not any(here):
            empty = torch.empty(1, 0, dtype=torch.long, device=x_TND.device)
            return Plan.keep(empty, len(x_TND) * tokens)
        return distinct(known.run(x_TND[None], here, **options)).in_order()

    return step, torch.no_grad()(next_frames)
