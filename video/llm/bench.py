"""What fewer tokens cost and save in a model: time, memory, and how far its answer moves."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video.llm.compact import Planner, Report, compact
from video.llm.forms import Form

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(kw_only=True)
class Measured:
    """One method on all prompts; times are of the fastest round, summed over prompts.

    Attributes:
        method: Its name; "none" for the model as it is.
        budget: What was asked for.
        tokens: Visual tokens of all prompts.
        kept: Those the language model got; of methods inside it, the mean over its layers.
        places: Places of all prompts, text included.
        method_seconds: Of the method alone.
        first_seconds: Until the first word, encoder included.
        total_seconds: Until the last word.
        peak_bytes: Most memory held on top of what was held before; None where it is not known.
        divergence: Mean Kullback-Leibler divergence of the first word from the full answer, nats.
        same_word: Share of prompts with the same first word as with all tokens.
        accuracy: Share of prompts whose first word is the label, where labels are given.
        answers: [prompts, vocabulary] log-probabilities of the first word.
    """

    method: str
    budget: float | int
    tokens: int = 0
    kept: float = 0.0
    places: int = 0
    method_seconds: float = 0.0
    first_seconds: float = 0.0
    total_seconds: float = 0.0
    peak_bytes: int | None = None
    divergence: float = 0.0
    same_word: float = 1.0
    accuracy: float | None = None
    answers: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)


def measure(
    model: Any,
    prompts: Sequence[dict[str, Any]],
    methods: Sequence[tuple[str | Planner, float | int]],
    *,
    labels: Sequence[int] | None = None,
    words: int = 8,
    rounds: int = 3,
    form: Form | None = None,
) -> list[Measured]:
    """Run a model with and without methods, in turns, and compare their answers.

    Args:
        model: A model for conditional generation, on the device to measure.
        prompts: Arguments of `generate`, one prompt each, on the same device.
        methods: Each a method and a budget, as `compact` takes them.
        labels: The right first word of each prompt.
        words: Words to generate.
        rounds: Rounds that are timed, after one that is not.
        form: As `compact` takes it.

    Returns:
        The model as it is, and then each method.

    Raises:
        ValueError: There are no prompts, or not one label for each.
    """
    if not prompts or (labels is not None and len(labels) != len(prompts)):
        raise ValueError(
            f"there are {len(prompts)} prompts and {len(labels or ())} labels; give at least one "
            "prompt, and one label for each or none"
        )
    rows = [Measured(method="none", budget=1.0)]
    rows += [Measured(method=m if isinstance(m, str) else m.__name__, budget=b) for m, b in methods]
    entries: list[Callable[[], AbstractContextManager[Report]]] = [
        lambda: nullcontext(Report()),
        *[lambda m=m, b=b: compact(model, m, b, form=form, timed=True) for m, b in methods],
    ]
    for number in range(rounds + 1):
        for row, enter in zip(rows, entries, strict=True):
            timed = _round(model, prompts, enter, words, row if number == 0 else None)
            if number:
                for name, seconds in timed.items():
                    best = getattr(row, name) if number > 1 else seconds
                    setattr(row, name, min(best, seconds))
    _compare(rows, labels)
    rows[0].tokens = rows[1].tokens if len(rows) > 1 else 0
    rows[0].kept = float(rows[0].tokens)
    rows[0].places = rows[1].places if len(rows) > 1 else 0
    return rows


@torch.no_grad()
def _round(
    model: Any,
    prompts: Sequence[dict[str, Any]],
    enter: Callable[[], AbstractContextManager[Report]],
    words: int,
    row: Measured | None,
) -> dict[str, float]:
    """All prompts once; notes what does not depend on time in `row`."""
    timed = dict.fromkeys(("method_seconds", "first_seconds", "total_seconds"), 0.0)
    answers = []
    before = _reset_peak(model)
    with enter() as report:
        for prompt in prompts:
            start = _clock(model)
            model.generate(**prompt, max_new_tokens=1, do_sample=False)
            timed["first_seconds"] += _clock(model) - start
            timed["method_seconds"] += report.seconds
            start = _clock(model)
            model.generate(**prompt, max_new_tokens=words, do_sample=False)
            timed["total_seconds"] += _clock(model) - start
            if row is None:
                continue
            logits = model(**prompt).logits[:, -1].float()
            answers.append(logits.log_softmax(-1).cpu())
            row.tokens += report.tokens
            row.places += report.places
            row.kept += _kept(report)
    if row is not None:
        row.answers = torch.cat(answers)
        after = _peak(model)
        row.peak_bytes = None if before is None or after is None else max(0, after - before)
    return timed


def _kept(report: Report) -> float:
    """Visual tokens that a layer saw, the mean over layers."""
    if not report.layers:
        return float(report.kept)
    text = report.places - report.tokens
    return sum(report.layers) / len(report.layers) - text


def _compare(rows: list[Measured], labels: Sequence[int] | None) -> None:
    """Hold every answer against the full one, and against the labels."""
    full = rows[0].answers
    for row in rows:
        row.divergence = float((full.exp() * (full - row.answers)).sum(-1).mean())
        said = row.answers.argmax(-1)
        row.same_word = float((said == full.argmax(-1)).float().mean())
        if labels is not None:
            row.accuracy = float((said == torch.tensor(list(labels))).float().mean())


def _clock(model: Any) -> float:
    """Seconds, once the device has done its work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _reset_peak(model: Any) -> int | None:
    """Start to look for the most memory held; returns what is held now."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        return torch.cuda.memory_allocated(model.device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier runs left free
        _CLEAR.write_text("5")  # Linux: the peak becomes what is held now
    except (OSError, AttributeError):
        return None
    return _peak(model)


def _peak(model: Any) -> int | None:
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
