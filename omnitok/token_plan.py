"""What a compact token file holds instead of a whole grid: a few tokens, and who they stand for.

Shape suffixes: K tokens that are held, N tokens of the grid.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from omnitok.token_facts import TokensError, conform, show

SPAN = 2**31  # tokens of a grid that a plan can speak of
_SHORT = 2**16 - 1  # tokens that 16 bits can tell apart, besides "dropped"
_BITS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPlan:
    """Which tokens were kept.

    Attributes:
        method: How they were chosen.
        budget: The share or number of tokens that was asked for.
        options: Settings of the method.
        grid: Tokens in time, height and width.
        place: [K] int64 increasing, the place in the grid (flattened) each is held at.
        source: [N] int64 the token that each place went into, -1 for those that were dropped.
        size: [K] float32 how many tokens each stands for.
    """

    method: str
    budget: float | int | None
    options: dict[str, Any]
    grid: tuple[int, int, int]
    place: Tensor
    source: Tensor
    size: Tensor

    def facts(self) -> dict[str, Any]:
        """Return the JSON object of the plan."""
        return {"method": self.method, "budget": self.budget, "options": self.options}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file says of the plan, no more than has to be said.

        `held` is a bit for each place, most significant first; `source` is left out where all that
        is not held was dropped, and `size` where it is the number of places that went in.
        """
        N = math.prod(self.grid)
        bits = torch.zeros(-(-N // 8) * 8, dtype=torch.uint8)
        bits[self.place] = 1
        tensors = {"held": (bits.view(-1, 8) * _BITS).sum(1, dtype=torch.uint8)}
        if int((self.source >= 0).sum()) > len(self.place):
            short = len(self.place) <= _SHORT
            dropped = self.source.where(self.source >= 0, _SHORT if short else -1)
            tensors["source"] = dropped.to(torch.uint16 if short else torch.int32)
        if not torch.equal(self.size, self._members()):
            tensors["size"] = self.size
        return tensors

    def _members(self) -> Tensor:
        """[K] float32 how many places went into each token."""
        members = self.source[self.source >= 0]
        return torch.bincount(members, minlength=len(self.place)).float()

    @classmethod
    def read(
        cls, facts: Any, tensors: dict[str, Tensor], grid: tuple[int, int, int]
    ) -> "TokenPlan":
        """Read a plan, trusting neither facts nor tensors.

        Raises:
            TokensError: A fact is missing or of the wrong type, or the tensors are not of a plan.
        """
        names = {"method", "budget", "options"}
        if not isinstance(facts, dict) or set(facts) != names:
            raise TokensError(f"plan is {show(facts)}; expected an object with {sorted(names)}")
        N, held = math.prod(grid), tensors["held"]
        if held.dtype != torch.uint8 or held.shape != (-(-N // 8),) or N >= SPAN:
            raise TokensError(f"damaged: its plan holds {list(held.shape)} bytes for {N} tokens")
        place = (held[:, None] & _BITS).flatten().nonzero().flatten()
        source = torch.full((N,), -1)
        if "source" in tensors:
            source = tensors["source"].long()
            short = tensors["source"].dtype == torch.uint16
            source = source.masked_fill(source == _SHORT, -1) if short else source
        elif bool((place < N).all()):
            source[place] = torch.arange(len(place))
        plan = cls(
            method=conform("plan.method", facts["method"], str),
            budget=conform("plan.budget", facts["budget"], int | float | None),
            options=conform("plan.options", facts["options"], dict[str, Any]),
            grid=grid,
            place=place,
            source=source,
            size=torch.empty(0),
        )
        plan.check_places()
        size = tensors.get("size", plan._members())
        object.__setattr__(plan, "size", size)
        plan.check()
        return plan

    def check_places(self) -> None:
        """Refuse places and sources that do not fit the grid, or each other.

        Raises:
            TokensError: They do not.
        """
        N, K, place, source = math.prod(self.grid), len(self.place), self.place, self.source
        types = place.dtype, source.dtype
        if types != (torch.int64, torch.int64) or (place.shape, source.shape) != ((K,), (N,)):
            raise TokensError(
                f"plan has places and sources of {types[0]} {list(place.shape)} and {types[1]} "
                f"{list(source.shape)}; expected int64 [K] and [{N}]"
            )
        if (N > 0) != (K > 0) or K > N:
            raise TokensError(f"plan keeps {K} of {N} tokens")
        if not N:
            return
        sound = bool((place.diff() > 0).all()) and 0 <= int(place[0]) <= int(place[-1]) < N
        sound = sound and -1 <= int(source.min()) <= int(source.max()) < K
        if not sound or not torch.equal(source[place], torch.arange(K)):
            raise TokensError("plan contradicts itself: its places and sources do not fit")

    def check(self) -> None:
        """Refuse a plan that cannot be.

        Raises:
            TokensError: It is none of its grid.
        """
        self.check_places()
        size = self.size
        if size.dtype != torch.float32 or size.shape != self.place.shape:
            raise TokensError(
                f"plan has sizes of {size.dtype} {list(size.shape)}; expected float32 "
                f"[{len(self.place)}]"
            )
        if not bool((torch.isfinite(size) & (size >= 0)).all()):
            raise TokensError("plan has a size that is no finite number of at least 0")

    @cached_property
    def standing(self) -> Tensor:
        """[N] int64 the token that stands for each place when all are wanted again.

        For a dropped one that is the token last held or merged at its place in the frame; else the
        next one there; else what stands at the nearest place that has any.
        """
        t, h, w = self.grid
        if not t:
            return self.source
        by_place = self.source.view(t, h * w)
        step = torch.arange(t)[:, None]
        last = step.where(by_place >= 0, -1).cummax(0).values
        following = step.where(by_place >= 0, t).flip(0).cummin(0).values.flip(0)
        at = last.where(last >= 0, following)
        standing = by_place.gather(0, at.clamp(max=t - 1))
        empty, full = (at[0] == t).nonzero().flatten(), (at[0] < t).nonzero().flatten()
        if len(empty):
            rows, columns = torch.arange(h * w) // w, torch.arange(h * w) % w
            places = torch.stack([rows, columns], 1).float()
            parts = torch.split(places[empty], 1024)
            nearest = torch.cat([torch.cdist(part, places[full]).argmin(1) for part in parts])
            standing[:, empty] = standing[:, full[nearest]]
        return standing.flatten()
