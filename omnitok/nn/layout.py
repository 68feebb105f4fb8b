"""Where the tokens of one group sit, and which of them attend to each other.

A group is the unit of causality: the tokens of one time step of a clip, or of one image. A layout
knows the position of every token of a group and can part the group into windows. Windows need not
be equal (nothing is padded and nothing is masked): those of equal size form a run.

Shape suffixes: N tokens of a group, A axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from omnitok.nn.rope import rotary_phasors

GLOBAL, LOCAL, SHIFTED = LAYER_KINDS = ("global", "local", "shifted")


@dataclass(frozen=True)
class Partition:
    """A group's tokens in window order.

    Attributes:
        order: [N] int64, raster index of each token in window order.
        runs: (windows, tokens per window), in that order along `order`.
        soft_cap: Bound on the size of attention scores, see `omnitok.nn.attention.attend`.
    """

    order: Tensor
    runs: tuple[tuple[int, int], ...]
    soft_cap: float | None = None


class Layout:
    """Positions and windows of the tokens of one group; made once per shape and device.

    Args:
        coords_NA: [N, 4] float64 positions (t, x, y, z), t relative to the group.
        partitions: A partition for every layer kind that the model uses.
    """

    def __init__(self, coords_NA: Tensor, partitions: dict[str, Partition]) -> None:
        self.coords_NA = coords_NA
        self.partitions = partitions
        self._phasors: dict[tuple[str, int, float], Tensor] = {}
        self._moves: dict[tuple[str, str], tuple[Tensor, Tensor] | None] = {}
        self._turn: tuple[Tensor, int, float, Tensor] | None = None  # of the last times

    @torch.inference_mode(False)  # so that training may use a table first made for inference
    def move(self, before: str, after: str) -> tuple[Tensor, Tensor] | None:
        """The permutation (and its inverse) from one kind's token order to another's.

        None where the orders are equal. "raster" names the order of the input.
        """
        key = (before, after)
        if key not in self._moves:
            raster = torch.arange(len(self.coords_NA), device=self.coords_NA.device)
            old = raster if before == "raster" else self.partitions[before].order
            new = raster if after == "raster" else self.partitions[after].order
            forth = torch.argsort(old)[new]
            same = bool((forth == raster).all())
            self._moves[key] = None if same else (forth, torch.argsort(forth))
        return self._moves[key]

    def phasors(
        self, kind: str, head_width: int, base: float, times: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """[G, N, head_width / 2] rotary phasors in the token order of `kind`.

        Args:
            kind: A layer kind.
            head_width: Width of one head.
            base: Of the rotary frequencies.
            times: [G] float64 time positions of the groups.
            out: Where they go; None makes a place.
        """
        key = (kind, head_width, base)
        if key not in self._phasors:
            coords = self.coords_NA[self.partitions[kind].order]
            self._phasors[key] = rotary_phasors(coords, head_width, base)
        last = self._turn  # streams in other threads may change it
        if last is None or last[0] is not times or last[1:3] != key[1:]:
            shift = torch.zeros(len(times), 4, dtype=torch.float64, device=times.device)
            shift[:, 0] = times
            turn = rotary_phasors(shift, head_width, base)[:, None]
            last = self._turn = (times, head_width, base, turn)
        return torch.mul(self._phasors[key], last[3], out=out)


def _cuts(size: int, window: int, offset: int) -> list[tuple[int, int]]:
    """(start, length) of the windows along one axis."""
    edges = sorted({0, size, *range(offset, size, window)})
    return [(a, b - a) for a, b in pairwise(edges)]


def _windows(height: int, width: int, window: int, offset: int) -> Partition:
    raster = torch.arange(height * width).view(height, width)
    by_size: dict[int, list[Tensor]] = {}
    for y, dy in _cuts(height, window, offset):
        for x, dx in _cuts(width, window, offset):
            by_size.setdefault(dy * dx, []).append(raster[y : y + dy, x : x + dx].reshape(-1))
    sizes = sorted(by_size, reverse=True)
    order = torch.cat([index for size in sizes for index in by_size[size]])
    return Partition(order, tuple((len(by_size[size]), size) for size in sizes))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def grid_layout(height: int, width: int, window: int, device: torch.device) -> Layout:
    """The layout of one time step of an image or clip.

    Args:
        height: Patches from top to bottom.
        width: Patches from left to right.
        window: Side of the local windows in patches; "shifted" windows start half a side earlier.
        device: Where the tables live.
    """
    rows = torch.arange(height, dtype=torch.float64) + 0.5
    columns = torch.arange(width, dtype=torch.float64) + 0.5
    x, y = torch.meshgrid(rows, columns, indexing="ij")
    coords = torch.stack([torch.zeros_like(x), x, y, torch.zeros_like(x)], dim=-1).flatten(0, 1)
    count = height * width
    partitions = {
        GLOBAL: Partition(torch.arange(count), ((1, count),)),
        LOCAL: _windows(height, width, window, 0),
        SHIFTED: _windows(height, width, window, window // 2),
    }
    placed = {k: Partition(p.order.to(device), p.runs) for k, p in partitions.items()}
    return Layout(coords.to(device), placed)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def planes_layout(side: int, device: torch.device) -> Layout:
    """The layout of three planes of `side` x `side` tokens that cross: xy, then xz, then yz.

    A token lies at its place on its own two axes and at 0 on the third, so that an image is an xy
    plane. All tokens attend to each other in every layer: planes must exchange what they hold.

    Args:
        side: Tokens on a side.
        device: Where the tables live.
    """
    places = torch.arange(side, dtype=torch.float64) + 0.5
    a, b = (axis.flatten() for axis in torch.meshgrid(places, places, indexing="ij"))
    zero = torch.zeros_like(a)
    rows = [(zero, a, b, zero), (zero, a, zero, b), (zero, zero, a, b)]  # t x y z
    coords = torch.cat([torch.stack(row, dim=-1) for row in rows])
    count = 3 * side * side
    whole = Partition(torch.arange(count, device=device), ((1, count),))
    return Layout(coords.to(device), dict.fromkeys(LAYER_KINDS, whole))
