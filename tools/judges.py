"""What judges what compact tokens still say about a clip: two decodings in, numbers out.

Shape suffixes: T frames, C colours, H and W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PACKAGES = "pip install 'omnitok[judge]'"


class AbsentError(RuntimeError):
    """A network or package that a judge needs cannot be had; says what to do."""


class Column(NamedTuple):
    """A number that a judge gives.

    Attributes:
        key: Its name for programs.
        head: Its name in a table.
        show: Writes it there.
    """

    key: str
    head: str
    show: Callable[[float], str]


class Judge(Protocol):
    """Compares the decoding of compact tokens with that of all tokens.

    Making one raises `AbsentError` where it cannot be had.

    Attributes:
        name: What it looks at.
        columns: The numbers it gives.
        empty: What a table says where no clip has what it looks for.
    """

    name: str
    columns: tuple[Column, ...]
    empty: str

    def __init__(self, device: str) -> None: ...

    def compare(self, full_TCHW: Tensor, compact_TCHW: Tensor) -> dict[str, float]:
        """Compare two clips of the same shape.

        Args:
            full_TCHW: uint8, decoded from all tokens.
            compact_TCHW: uint8, decoded from those that were kept.

        Returns:
            A number for each column; none if the full clip has not what the judge looks for.
        """


@dataclass(kw_only=True)
class Absent:
    """Holds the place of a judge that cannot be had.

    Attributes:
        name: Of the judge.
        columns: Of the judge.
        why: What is missing, and what to do.
        empty: What a table says.
    """

    name: str
    columns: tuple[Column, ...]
    why: str
    empty: str = "-"

    def compare(self, full_TCHW: Tensor, compact_TCHW: Tensor) -> dict[str, float]:
        """No numbers."""
        return {}


class Once(Generic[T]):
    """Looks at a clip only once while the same one is asked for, as many compact ones need it."""

    def __init__(self, look: Callable[[Tensor], T]) -> None:
        self._look = look
        self._last: tuple[Tensor, T] | None = None

    def __call__(self, frames_TCHW: Tensor) -> T:
        """What there is to see in it."""
        if self._last is None or self._last[0] is not frames_TCHW:
            self._last = frames_TCHW, self._look(frames_TCHW)
        return self._last[1]


def assemble(kinds: Iterable[type[Judge]], device: str) -> list[Judge]:
    """Make a judge of each kind, or what holds its place."""
    judges: list[Judge] = []
    for kind in kinds:
        try:
            judges.append(kind(device))
        except AbsentError as error:
            judges.append(Absent(name=kind.name, columns=kind.columns, why=str(error)))
    return judges


def require(module: str) -> Any:
    """Import a module of an optional package.

    Raises:
        AbsentError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AbsentError(f"{module} cannot be loaded ({error}); {PACKAGES}") from error


def percent(share: float) -> str:
    """A share for a person."""
    return f"{share:.0%}"
