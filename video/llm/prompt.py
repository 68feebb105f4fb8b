"""A prompt with fewer places: ids, mask, positions and labels stay together.

Shape suffixes: B batch, L places of the prompt, S places that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # label of a place that is not to be predicted


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """Which places of a prompt are left.

    Attributes:
        index: [B, S] int64 places of the prompt, in order.
        mask: [B, S] bool; False where a sample has fewer places than the longest: its padding.
    """

    index: Tensor
    mask: Tensor

    def take(self, x: Tensor, fill: int | None = None) -> Tensor:
        """Take [..., B, L] to [..., B, S], with `fill` in the padding."""
        y = x.gather(-1, self.index.expand(*x.shape[:-1], -1))
        return y if fill is None else y.masked_fill(~self.mask, fill)


def shrink(mask: Tensor, drop: Tensor) -> Shrunk:
    """Leave places out of a batch of prompts.

    Samples of unequal length are padded on the side that was padded before, else on the left, so
    that generation goes on from the last place.

    Args:
        mask: [B, L] bool, False for padding.
        drop: [B, L] bool, the places to leave out.
    """
    keep = mask & ~drop
    length = int(keep.sum(1).max())
    if not bool(mask[:, -1].all()):
        order = (~keep).long().argsort(dim=1, stable=True)[:, :length]
    else:
        order = keep.long().argsort(dim=1, stable=True)[:, keep.shape[1] - length :]
    return Shrunk(index=order, mask=keep.gather(1, order))


def places_of(rep: Tensor, num_in: int) -> Tensor:
    """A place of its own for every output, in order: that of its representative where it is free.

    Args:
        rep: [K] int64 representatives in ascending order; several outputs may share one.
        num_in: Places there are, at least K.
    """
    steps = torch.arange(len(rep), device=rep.device)
    spaced = (rep - steps).cummax(0).values + steps  # at least one apart
    return spaced.minimum(num_in - len(rep) + steps)


def count_positions(mask: Tensor) -> Tensor:
    """[B, L] int64 positions that count the places which are not padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
