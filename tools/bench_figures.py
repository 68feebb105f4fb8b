"""A measured figure beside what it is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of a table.

    Attributes:
        name: What is measured.
        measured: The value, with its unit.
        against: What it is compared with, measured in the same run.
        ratio: The one over the other.
        least: The smallest ratio wanted, if any.
        most: The largest ratio wanted, if any.
    """

    name: str
    measured: str
    against: str = ""
    ratio: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def row(self) -> list[str]:
        """Cells: name, measured, against, ratio, wanted, whether it is reached."""
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        if self.ratio is None or (self.least is None and self.most is None):
            return [self.name, self.measured, self.against, ratio, "", ""]
        if self.least is not None:
            wanted, reached = f"at least {self.least:g}", self.ratio >= self.least
        else:
            wanted, reached = f"at most {self.most:g}", self.ratio <= (self.most or 0)
        return [self.name, self.measured, self.against, ratio, wanted, "yes" if reached else "NO"]


HEAD = ["figure", "measured", "against", "ratio", "wanted", "reached"]


def fastest(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest of some rounds, in which the contenders take turns.

    A first round is not counted. Contenders wait for their device themselves.
    """
    best = dict.fromkeys(contenders, float("inf"))
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = perf_counter()
            run()
            if number:
                best[name] = min(best[name], perf_counter() - start)
    return best
