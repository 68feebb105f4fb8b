"""Which tokens of a packed batch see each other in AToken, and where they are.

Items of any size lie one after the other in one sequence; nothing is padded. Every item is cut
into windows of a few latent frames, and the windows of equal size form a run of the shared
transformer's `Partition`. Everything here is integer work on the CPU, done once per shape.

Shape suffixes: N tokens, A axes (batch, t, x, y, z), S segments (an item's part of a window), B
items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnitok.nn.layout import GLOBAL, Layout, Partition

Ints = NDArray[np.int64]
Grid = tuple[int, int, int]  # latent frames, rows and columns of one item


@dataclass(frozen=True)
class Step:
    """Tokens that go through a stack together.

    Attributes:
        coords: [N, 5] int64 on the CPU: batch, t within the window (which begins at the number of
            kept frames once there are some), x, y, z.
        layout: Positions and windows, all tokens being one group.
        grids: The (rows, columns) that position tables are resampled to.
        rows: [N] int64 row of each token in the tables of `grids`, one after the other.
        tokens: [N] int64 index of the tokens among those of the whole batch; None for all in order.
        time: Latent frames to add to t, where the frames of earlier steps are seen.
        items: The item of each run of windows, where frames are kept for later steps.
        seen: Tokens of each of these items that were kept for this step.
        keep: Tokens of each of these items that are kept for the next steps.
    """

    coords: Ints
    layout: Layout
    grids: tuple[tuple[int, int], ...]
    rows: Tensor
    tokens: Tensor | None = None
    time: int = 0
    items: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    keep: tuple[int, ...] | None = None


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def grid_steps(
    grids: tuple[Grid, ...], window: int, kept: int, device: torch.device
) -> tuple[Step, ...]:
    """`steps` for images and clips whose tokens are whole grids in raster order."""
    return tuple(steps(grid_coords(grids), window, kept, device))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def grid_items(grids: tuple[Grid, ...], device: torch.device) -> Items:
    """`items_of` for images and clips whose tokens are whole grids."""
    return items_of(grid_coords(grids)[:, 0], device)


def grid_coords(grids: Sequence[Grid]) -> Ints:
    """[N, 5] coordinates (batch, t, x, y, z = 0) of whole grids in raster order."""
    parts = []
    for item, grid in enumerate(grids):
        txy = np.indices(grid, dtype=np.int64).reshape(3, -1)
        parts.append(np.stack([np.full_like(txy[0], item), *txy, np.zeros_like(txy[0])], axis=1))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Items:
    """The tokens of each item.

    Attributes:
        partition: One window for each item.
        back: [B] int64 place of each item among those windows.
    """

    partition: Partition
    back: Tensor


def items_of(batch_N: Ints, device: torch.device) -> Items:
    """Group tokens by the item that they belong to; every item must have some."""
    order, runs, item_N = windows_of(batch_N)
    firsts = np.cumsum([0, *(size for many, size in runs for _ in range(many))])[:-1]
    back = np.argsort(item_N[order][firsts])
    partition = Partition(torch.from_numpy(order).to(device), runs)
    return Items(partition, torch.from_numpy(back).to(device))


def steps(coords_NA: Ints, window: int, kept: int, device: torch.device) -> Iterator[Step]:
    """Cut a batch into windows that start at its smallest t.

    Args:
        coords_NA: [N, 5] batch, t, x, y, z.
        window: Latent frames of a window.
        kept: Latent frames before a window that it sees; 0 makes windows independent.
        device: Where the tables live.

    Yields:
        Without kept frames, one step of all tokens; else one for each window that has tokens.

    Source: Lu et al. 2025 (AToken), arXiv:2509.14476, and its published inference code.
    """
    which_N, t_N = np.divmod(coords_NA[:, 1] - coords_NA[:, 1].min(), window)
    if not kept:
        _, segment_N = np.unique(np.stack([coords_NA[:, 0], which_N]), axis=1, return_inverse=True)
        yield _step(_moved(coords_NA, t_N), segment_N.reshape(-1), device)
        return
    yield from _kept_steps(coords_NA, which_N, t_N, kept, device)


def _kept_steps(
    coords_NA: Ints, which_N: Ints, t_N: Ints, kept: int, device: torch.device
) -> Iterator[Step]:
    """A step for each window; time runs on over windows, since only differences matter."""
    item_N, time_N, end = coords_NA[:, 0], t_N.copy(), 0
    seen_B = np.zeros(item_N.max() + 1, np.int64)
    for which in np.unique(which_N):
        inside = which_N == which
        start, lead = end, kept if end else 0
        time_N[inside] += start
        end = int(time_N[inside].max()) + 1
        tokens = np.flatnonzero(inside)  # by item and time: what is kept of an item is its end
        tokens = tokens[np.lexsort((time_N[tokens], item_N[tokens]))]
        items, sizes = np.unique(item_N[tokens], return_counts=True)
        remembered = item_N[(which_N <= which) & (time_N >= end - kept)]
        keep_B = np.bincount(remembered, minlength=len(seen_B))
        moved = _moved(coords_NA[tokens], time_N[tokens] - start + lead)
        step = _step(moved, item_N[tokens], device)
        order = torch.arange(len(tokens), device=device)
        partition = Partition(order, tuple((1, int(size)) for size in sizes))
        step.layout.partitions[GLOBAL] = partition
        yield replace(
            step,
            tokens=torch.from_numpy(tokens).to(device),
            time=start - lead,
            items=tuple(items.tolist()),
            seen=tuple(seen_B[items].tolist()),
            keep=tuple(keep_B[items].tolist()),
        )
        seen_B = keep_B


def _moved(coords_NA: Ints, t_N: Ints) -> Ints:
    moved = coords_NA.copy()
    moved[:, 1] = t_N
    return moved


def _step(coords_NA: Ints, segment_N: Ints, device: torch.device) -> Step:
    """A step of tokens that see the tokens of their segment."""
    order, runs, segment_N = windows_of(segment_N)
    grid_SA = np.zeros((segment_N.max() + 1, 2), np.int64)
    np.maximum.at(grid_SA, segment_N, coords_NA[:, 2:4] + 1)
    grids, table_S = np.unique(grid_SA, axis=0, return_inverse=True)
    starts = np.cumsum([0, *grids.prod(axis=1)])[:-1]
    table_N = table_S.reshape(-1)[segment_N]
    rows = starts[table_N] + coords_NA[:, 2] * grids[table_N, 1] + coords_NA[:, 3]
    partition = Partition(torch.from_numpy(order).to(device), runs)
    positions = torch.from_numpy(coords_NA[:, 1:]).to(device, torch.float64)
    return Step(
        coords=coords_NA,
        layout=Layout(positions, {GLOBAL: partition}),
        grids=tuple((int(h), int(w)) for h, w in grids),
        rows=torch.from_numpy(rows).to(device),
    )


def windows_of(segment_N: Ints) -> tuple[Ints, tuple[tuple[int, int], ...], Ints]:
    """Order tokens by the size of their segment, the largest first.

    Returns:
        The order, its runs of (segments, tokens of each), and the segments counted from 0.
    """
    _, segment_N, sizes = np.unique(segment_N, return_inverse=True, return_counts=True)
    segment_N = segment_N.reshape(-1)
    order = np.lexsort((segment_N, -sizes[segment_N]))
    counts = np.unique(-sizes, return_counts=True)
    return order, tuple((int(n), -int(s)) for s, n in zip(*counts, strict=True)), segment_N
