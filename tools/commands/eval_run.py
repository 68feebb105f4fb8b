"""The evaluation itself: one clip at a time through all methods."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tools.commands.errors import InputError, UsageError, bug, sentence
from tools.commands.eval_data import Item, Source
from tools.commands.eval_methods import Method
from tools.commands.reporting import Report
from tools.commands.scoring import Features, Networks, Score, Tally
from tools.commands.stopping import check

if TYPE_CHECKING:
    from torch import Tensor

Entry = tuple[Method, Score, "tuple[Tensor, Tensor] | None", "Tensor | None"]


@dataclass
class Outcome:
    """What an evaluation found.

    Attributes:
        rows: One dict for each set and method.
        failed: Name and reason of every file that could not be scored.
        left_out: Files that the protocol has no use for.
        refused: Kind and model of rows that are left out since the model cannot code such clips.
        bugs: How many of the failures are ours.
        notes: What the table lacks, and why.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    refused: set[tuple[str, str]] = field(default_factory=set)
    bugs: int = 0
    notes: list[str] = field(default_factory=list)


def evaluate(
    sources: Sequence[Source],
    methods: Sequence[Method],
    networks: Networks,
    command: Callable[[str], Sequence[str]],
    report: Report,
) -> Outcome:
    """Score all methods on all sources; a file that fails is left out for every method.

    Args:
        sources: What to score.
        methods: How, in the order in which they need each other.
        networks: For the scores.
        command: The words that repeat the rows of a model.
        report: Where to say how far it is.
    """
    outcome = Outcome()
    tallies: dict[tuple[str, str], Tally] = {}
    originals: dict[str, Features] = {}
    with report.progress(len(sources)) as progress:
        for number, source in enumerate(sources):
            check()
            progress.start(source.name)
            try:
                item = source.read()
                if item is None:
                    outcome.left_out.append(source.name)
                    continue
                while True:
                    able = _able(methods, item.kind, outcome)
                    try:
                        entries = _score(item, able, networks)
                        break
                    except RefusedError as error:
                        others = sum(m.name == m.model for m in able) - 1
                        if (item.kind, error.model) in tallies or not others:
                            raise
                        outcome.refused.add((item.kind, error.model))
                        outcome.notes.append(f"no {item.kind}s of {error}")
                        report.error(outcome.notes[-1])
                features = networks.features(item.frames)
            except UsageError:
                raise
            except Exception as error:
                known = sentence(error)
                outcome.bugs += known is None
                outcome.failed[source.name] = known or bug(error)
                report.error(f"failed: {source.name}: {outcome.failed[source.name]}")
                continue
            finally:
                progress.finish()
            originals.setdefault(item.kind, Features()).add(features, item.kind)
            for method, score, own, codes in entries:
                tally = tallies.setdefault((item.kind, method.name), _tally(method))
                tally.add(item, score, own, codes)
            best = ", ".join(
                f"{m.name} {s.psnr:.2f} dB" for m, s, _, _ in entries if m.name == m.model
            )
            report.note(f"{number + 1}/{len(sources)} {item.name}: {best}")
    for kind in ("video", "image"):
        for method in methods:
            if (kind, method.name) in tallies:
                tally = tallies[kind, method.name]
                distances = tally.features.distances(originals[kind], kind, outcome.notes)
                outcome.rows.append(
                    {
                        "set": kind,
                        "method": method.name,
                        "model": method.model,
                        **tally.summary(),
                        **distances,
                        **_gains(kind, method, tallies),
                        "command": shlex.join(command(method.model)),
                        "items": {name: asdict(score) for name, score in tally.scores.items()},
                    }
                )
    outcome.notes = networks.notes + outcome.notes + _overspent(outcome.rows)
    return outcome


def _overspent(rows: list[dict[str, Any]]) -> list[str]:
    """Codecs that cannot do with the bytes of the tokenizer beside them."""
    items = {(row["set"], row["method"]): row["items"] for row in rows}
    notes = []
    for row in rows:
        if "bytes of" not in row["method"]:
            continue
        own, model = row["items"], items[row["set"], row["model"]]
        if many := sum(own[n]["bits_per_pixel"] > model[n]["bits_per_pixel"] for n in own):
            notes.append(
                f"{row['method']}: {many} of {len(own)} {row['set']}s need more bytes than that "
                "even at the lowest quality"
            )
    return notes


class RefusedError(InputError):
    """A tokenizer cannot code a clip.

    Attributes:
        model: Its name.
    """

    def __init__(self, model: str, item: Item, why: str) -> None:
        size = "x".join(map(str, (len(item.frames), *item.frames.shape[2:])))
        super().__init__(f"{model}, which cannot code {item.name} ({size}): {why}")
        self.model = model


def _able(methods: Sequence[Method], kind: str, outcome: Outcome) -> list[Method]:
    """Those whose tokenizer has not refused clips of a kind, and the baselines of those."""
    able = [m for m in methods if (kind, m.model) not in outcome.refused]
    names = {m.name for m in able} | {m.base for m in able}
    return [m for m in methods if m.name in names]


def _score(item: Item, methods: Sequence[Method], networks: Networks) -> list[Entry]:
    bits: dict[str, float] = {}
    entries: list[Entry] = []
    for method in methods:
        check()
        if item.kind not in method.kinds:
            continue
        try:
            result = method.code(item, bits)
        except Exception as error:
            known = sentence(error) or (str(error) if isinstance(error, ValueError) else None)
            if known is None or method.name != method.model:
                raise
            raise RefusedError(method.model, item, known) from error
        score = networks.score(item, result)
        entries.append((method, score, networks.features(result.frames), result.codes))
        bits[method.name] = result.bits
    return entries


def _tally(method: Method) -> Tally:
    from omnitok.metrics.codebook import CodebookStats

    return Tally(CodebookStats(*method.codebook) if method.codebook else None)


def _gains(kind: str, method: Method, tallies: dict[tuple[str, str], Tally]) -> dict[str, Any]:
    """Decibels over the baseline, and LPIPS as a share of the baseline's."""
    if method.base is None:
        return {"gain": None, "lpips_ratio": None}
    own, base = (tallies[kind, name].summary() for name in (method.name, method.base))
    ratio = None if not base["lpips"] or own["lpips"] is None else own["lpips"] / base["lpips"]
    return {"gain": own["psnr"] - base["psnr"], "lpips_ratio": ratio}
