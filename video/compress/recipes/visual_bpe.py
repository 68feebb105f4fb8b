"""Visual BPE: neighbouring codes that often meet become one.

Source: Zhang et al. 2025, arXiv:2506.23639 (Being-VL). As in the published code, a pair counts only
where its first code is the smaller one, pairs along the diagonal count but never merge, and the
first merge turns a grid into a sequence.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class VisualBPE:
    """A vocabulary of merges.

    Attributes:
        merges: Pairs of codes, and the code that each became, in the order in which they came.
    """

    merges: tuple[tuple[int, int, int], ...]

    @staticmethod
    def train(grids: Sequence[Tensor], codebook_size: int, num_merges: int) -> "VisualBPE":
        """Merge the pair that is most frequent, the lowest of equals, again and again.

        Args:
            grids: Codes [h, w] of pictures or frames, below `codebook_size`.
            codebook_size: The first new code.
            num_merges: How many; fewer where no pair is left.
        """
        maps: list[list[list[int]]] = [grid.tolist() for grid in grids]
        merges: list[tuple[int, int, int]] = []
        for new in range(codebook_size, codebook_size + num_merges):
            counts: Counter[Pair] = Counter()
            for rows in maps:
                counts.update(_pairs(rows))
            if not counts:
                break
            pair = min(counts, key=lambda pair: (-counts[pair], pair))
            maps = [[_merge(rows, pair, new)] for rows in maps]
            merges.append((*pair, new))
        return VisualBPE(tuple(merges))

    def encode(self, codes: Tensor) -> Tensor:
        """Codes [h, w] as a shorter sequence [n] int64."""
        rows = codes.tolist()
        for first, second, new in self.merges:
            rows = [_merge(rows, (first, second), new)]
        return torch.tensor([code for row in rows for code in row], dtype=torch.long)


def _pairs(rows: list[list[int]]) -> list[Pair]:
    """Neighbours to the right, below, and both, of which the first is the smaller one."""
    found = []
    for y, row in enumerate(rows):
        below = rows[y + 1] if y + 1 < len(rows) else []
        for x, code in enumerate(row):
            for other in (*row[x + 1 : x + 2], *below[x : x + 2]):
                if code < other:
                    found.append((code, other))
    return found


def _merge(rows: list[list[int]], pair: Pair, new: int) -> list[int]:
    """Replace a pair row by row; the neighbour to the right goes before the one below."""
    gone: set[tuple[int, int]] = set()
    merged = []
    for y, row in enumerate(rows):
        for x, code in enumerate(row):
            if (y, x) in gone:
                continue
            beside = [(y, x + 1)] if x + 1 < len(row) else []
            beside += [(y + 1, x)] if y + 1 < len(rows) else []
            partner = [at for at in beside if at not in gone and (code, rows[at[0]][at[1]]) == pair]
            gone.update(partner[:1])
            merged.append(new if partner else code)
    return merged
