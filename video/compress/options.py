"""Settings of methods, held to what the methods can work with."""

import math
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

from omnitok.token_facts import conform

_SHARES = ("contextual", "k", "q", "rate", "ratio", "temporal")  # where they are floats
_MAY_BE_0 = ("r", "r_frame", "r_patch", "steps")  # of the whole numbers


def takes_tensor(hint: Any) -> bool:
    """Whether a setting of this type is a tensor."""
    return Tensor in (hint, *get_args(hint))


def check_options(method: str, run: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse a setting of another type, or out of range.

    Args:
        method: For messages.
        run: Its parameters say what type a setting is of.
        options: The settings; all are parameters of `run`.

    Raises:
        ValueError: One of them is.
    """
    hints = get_type_hints(run)
    for name, value in options.items():
        hint = hints[name]
        if takes_tensor(hint) and isinstance(value, Tensor):
            continue
        if get_origin(hint) is Sequence:
            hint = GenericAlias(tuple, (get_args(hint)[0], ...))
        value = conform(f"{method} setting {name}", value, hint)
        least = 0 if name in _MAY_BE_0 else 1
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and number < least:
                raise ValueError(f"{method} setting {name} is {number}; expected at least {least}")
            if type(number) is float and not _fits(name, number):
                most = "from 0 to 1" if name in _SHARES else "not negative"
                raise ValueError(f"{method} setting {name} is {number}; expected a number {most}")


def _fits(name: str, number: float) -> bool:
    if name == "threshold":  # of a cosine, which may be negative
        return math.isfinite(number)
    return 0 <= number <= (1 if name in _SHARES else math.inf)
