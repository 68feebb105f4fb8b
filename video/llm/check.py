"""A self-test to run on a model before trusting it: fewer tokens against hidden tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from video.compress import Plan
from video.llm.compact import Planner, compact_call
from video.llm.forms import Form


def keep_every(step: int) -> Planner:
    """A method that keeps every `step`-th token of a clip."""

    def planner(x_TND: Tensor, budget: Any) -> Plan:
        num_in = x_TND.shape[0] * x_TND.shape[1]
        return Plan.keep(torch.arange(0, num_in, step, device=x_TND.device)[None], num_in)

    return planner


@torch.no_grad()
def check(
    model: Any,
    inputs: dict[str, Any],
    method: str | Planner | None = None,
    budget: float | int = 0.5,
    form: Form | None = None,
    **options: Any,
) -> float:
    """How far a model strays when tokens are left out instead of hidden by the attention mask.

    Both must give the same logits, but for rounding: where they do not, positions, further levels
    or the order of tokens are wrong for this class of model.

    Args:
        model: A model for conditional generation.
        inputs: Arguments of its `forward`, without labels.
        method: As `compact` takes it, one that leaves tokens out and merges none; every second
            token by default.
        budget: As `compact` takes it.
        form: As `compact` takes it.
        **options: Settings of the method.

    Returns:
        The largest difference of logits at the last place of any prompt.
    """
    full = compact_call(model, inputs, keep_every(1), 1.0, form=form)[0]
    short, left = compact_call(model, inputs, method or keep_every(2), budget, form=form, **options)
    hidden = full["attention_mask"]
    if left is not None:
        hidden = torch.zeros_like(hidden).scatter(1, left.index, left.mask.to(hidden.dtype))
    ends = hidden.cumsum(1).argmax(1), short["attention_mask"].cumsum(1).argmax(1)
    rows = torch.arange(len(hidden), device=hidden.device)
    expected = model(**{**full, "attention_mask": hidden}).logits[rows, ends[0]]
    got = model(**short).logits[rows, ends[1]]
    return float((expected - got).abs().max())
