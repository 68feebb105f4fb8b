"""What a compact token file holds instead of a whole grid: a few tokens, and who they stand for.

Shape suffixes: K tokens that are held, N tokens of the grid.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnitok.token_facts import TokensError, conform, show

SPAN = 2**31  # tokens of a grid that a plan can speak of


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPlan:
    """Which tokens were kept.

    Attributes:
        method: How they were chosen.
        budget: The share or number of tokens that was asked for.
        options: Settings of the method.
        place: [K] int64 increasing, the place in the grid (t, h, w, flattened) each is held at.
        source: [N] int32 the token that each place went into; `~k` for places that were dropped
            and that token `k` stands in for when the tokens are decoded.
        size: [K] float32 how many tokens each stands for.
    """

    method: str
    budget: float | int | None
    options: dict[str, Any]
    place: Tensor
    source: Tensor
    size: Tensor

    def facts(self) -> dict[str, Any]:
        """Return the JSON object of the plan."""
        return {"method": self.method, "budget": self.budget, "options": self.options}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the plan."""
        return {"place": self.place, "source": self.source, "size": self.size}

    @classmethod
    def read(cls, facts: Any, tensors: dict[str, Tensor]) -> "TokenPlan":
        """Read a plan, trusting neither facts nor tensors; `check` comes after.

        Raises:
            TokensError: A fact is missing or of the wrong type.
        """
        names = {"method", "budget", "options"}
        if not isinstance(facts, dict) or set(facts) != names:
            raise TokensError(f"plan is {show(facts)}; expected an object with {sorted(names)}")
        return cls(
            method=conform("plan.method", facts["method"], str),
            budget=conform("plan.budget", facts["budget"], int | float | None),
            options=conform("plan.options", facts["options"], dict[str, Any]),
            **{name: tensors[name] for name in ("place", "source", "size")},
        )

    def check(self, num_tokens: int) -> None:
        """Refuse a plan that is not of a grid of so many tokens.

        Raises:
            TokensError: It is not.
        """
        place, source, K = self.place, self.source, len(self.place)
        types = place.dtype, source.dtype, self.size.dtype
        shapes = place.shape, source.shape, self.size.shape
        if types != (torch.int64, torch.int32, torch.float32) or shapes != (
            (K,),
            (num_tokens,),
            (K,),
        ):
            raise TokensError(
                f"plan holds {[str(t) for t in types]} of {[list(s) for s in shapes]}; expected "
                f"int64 [K], int32 [{num_tokens}] and float32 [K]"
            )
        if num_tokens >= SPAN or (num_tokens > 0) != (K > 0):
            raise TokensError(f"plan keeps {K} of {num_tokens} tokens; expected 1..{SPAN - 1}")
        if not num_tokens:
            return
        token = source.where(source >= 0, ~source)
        sound = bool((place.diff() > 0).all()) and 0 <= int(place[0]) <= int(place[-1])
        sound = sound and int(place[-1]) < num_tokens and int(token.max()) < K
        if not sound or not torch.equal(source[place].long(), torch.arange(K)):
            raise TokensError("plan contradicts itself: its places and sources do not fit")
        if not bool((torch.isfinite(self.size) & (self.size >= 0)).all()):
            raise TokensError("plan has a size that is no finite number of at least 0")

    def standing_for(self, start: int, stop: int) -> Tensor:
        """[stop - start] int64 the token that stands for each place of a run of them."""
        source = self.source[start:stop].long()
        return source.where(source >= 0, ~source)
