"""Which tokens stay.

Equal scores go to the lowest index. Shape suffixes: P independent problems, N tokens, K kept.
"""

import torch
from torch import Tensor


def ranks(score_PN: Tensor, largest: bool = True) -> Tensor:
    """The place of every token when sorted by score, 0 for the first."""
    return score_PN.argsort(dim=1, descending=largest, stable=True).argsort(dim=1)


def top(score_PN: Tensor, k: int, order: str = "index") -> Tensor:
    """The `k` largest scores.

    Args:
        score_PN: Scores.
        k: How many; all where there are fewer.
        order: "index" or "score", largest first.

    Returns:
        [P, K] int64.
    """
    index = score_PN.argsort(dim=1, descending=True, stable=True)[:, :k]
    return index.sort(dim=1).values if order == "index" else index


def every(num: int, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Places spread evenly from the first to the last of `num`: [K] int64, K at most `num`."""
    if k < 2:
        return torch.zeros(min(k, num), dtype=torch.long, device=device)
    return (
        torch.linspace(0, num - 1, min(k, num), dtype=torch.float64, device=device).round().long()
    )


def others(index_PK: Tensor, num: int) -> Tensor:
    """What is left of `num` tokens: [P, num - K] int64, in order. `index_PK` has no repeats."""
    chosen = mask(index_PK, num)
    return chosen.to(torch.uint8).argsort(dim=1, stable=True)[:, : num - index_PK.shape[1]]


def mask(index_PK: Tensor, num: int) -> Tensor:
    """[P, num] bool, true at the indices."""
    empty = torch.zeros(len(index_PK), num, dtype=torch.bool, device=index_PK.device)
    return empty.scatter(1, index_PK, True)
