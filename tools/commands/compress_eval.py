"""`omnitok eval-compress`: what methods of compression keep of clips, and of a model's answers."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tools.commands.compressing import budget
from tools.commands.errors import DONE, UsageError
from tools.commands.eval_table import csv_of, table
from tools.commands.loading import load, pick_device
from tools.commands.options import add_compute, add_json, side
from tools.commands.plotting import Line, plot
from tools.commands.reporting import Report
from tools.commands.stopping import check
from tools.judges import Absent, Judge, assemble

if TYPE_CHECKING:
    from torch import Tensor

    from omnitok import Tokenizer
    from video.llm.bench import Measured

METHODS = ("dycoke", "evs", "framefusion", "tome", "dpc_knn", "lftr")
BUDGETS = (0.1, 0.25, 0.5)


@dataclass(kw_only=True)
class Undone:
    """A method on all clips: tokens spread back to their sources, decoded, and compared.

    Attributes:
        method: Its name.
        budget: What was asked for.
        kept: Share of the tokens that stayed.
        seconds: Of the method alone, over all clips.
        psnr: Decibels against the decoding of all tokens, the mean over frames and clips.
        source_psnr: The same against the source.
        judged: What judges say, by key of their columns; the mean over the clips that have what a
            judge looks for, None if no clip has.
        num_judged: How many clips those are.
    """

    method: str
    budget: float | int | None
    kept: float
    seconds: float
    psnr: float
    source_psnr: float
    judged: dict[str, float | None]
    num_judged: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """What is written to a file."""
        facts = asdict(self)
        judged, num_judged = facts.pop("judged"), facts.pop("num_judged")
        return {**facts, **judged, "num_judged": num_judged}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "eval-compress",
        help="measure what methods of compression keep",
        description="Tokenizes clips, compresses their tokens by every method, spreads what is "
        "left back to its sources, decodes it and compares it with the decoding of all tokens: "
        "PSNR, labels of two classifiers (python -m tools.feature_nets fetches them), words that "
        "can be read and identities of faces (pip install 'omnitok[judge]'). "
        "With --llm, also runs a video language model with and without each method: tokens, time "
        "to the first word, total time, memory, and how far its answer moves.",
    )
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="a video, an image or a folder")
    parser.add_argument(
        "--method",
        action="append",
        metavar="M",
        help=f"may be given several times (default: {' '.join(METHODS)})",
    )
    parser.add_argument(
        "--budget",
        action="append",
        type=budget,
        metavar="B",
        help="a share or a number; may be given several times (default: 0.1 0.25 0.5)",
    )
    parser.add_argument("--model", default="tiny-kl", metavar="NAME|PATH", help="the tokenizer")
    parser.add_argument("--frames", type=int, default=17, metavar="N", help="default: 17")
    parser.add_argument("--size", type=side, default=128, metavar="S", help="default: 128 pixels")
    parser.add_argument("--llm", metavar="DIR", help="a model and its processor, as transformers")
    parser.add_argument(
        "--question", default="What happens in this video?", metavar="TEXT", help="for the model"
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="write the table and a plot here")
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from video import compress
    from video.llm import INSIDE

    report = Report(json=args.json)
    names = args.method or METHODS
    budgets = args.budget or BUDGETS
    known = {*compress.METHODS, *(INSIDE if args.llm else ())}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--method {unknown[0]} is unknown; choose one of {sorted(known)}")
    pairs = [(name, share) for name in names for share in budgets]
    llm = _load_llm(args) if args.llm else None
    clips = dict(_clips(args))
    plain = {n for n, m in compress.METHODS.items() if m.needs == ("tokens",)}
    tok = load(args.model, args)
    judges = assemble(judge_kinds(), pick_device(args.device))
    undone = undo(tok, clips, [p for p in pairs if p[0] in plain], judges, report)
    measured = [] if llm is None else _measured(*llm, args.question, clips, pairs)
    data = {
        "command": "eval-compress",
        "clips": list(clips),
        "frames": args.frames,
        "size": args.size,
        "model": args.model,
        "undone": [row.facts() for row in undone],
        "judges": {judge.name: getattr(judge, "why", None) for judge in judges},
        "llm": [{k: v for k, v in asdict(m).items() if k != "answers"} for m in measured],
    }
    lines = describe(undone, measured, judges, len(clips))
    if args.output:
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text("\n".join(lines) + "\n")
        (folder / "table.csv").write_text(csv_of(data["undone"]))
        (folder / "result.json").write_text(json.dumps(data, indent=2) + "\n")
        (folder / "plot.svg").write_text(_plot(undone))
    report.result(data, lines)
    return DONE


def _clips(args: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """Name and first frames of every clip."""
    import video
    from tools.commands.planning import is_media, make_plan

    plan = make_plan(
        args.clips, None, wanted=is_media, ending=lambda _: "", is_file_name=lambda _: False
    )
    for job in plan.jobs:
        check()
        if job.error:
            raise UsageError(job.error)
        with video.open_video(job.src, size=args.size, chunk=args.frames) as reader:
            frames, _ = next(iter(reader))
        yield job.src, frames[: args.frames]


def judge_kinds() -> tuple[type[Judge], ...]:
    """The judges there are."""
    from tools.judge_faces import SameFace
    from tools.judge_labels import EfficientNetLabel, MobileNetLabel
    from tools.judge_text import ReadText

    return MobileNetLabel, EfficientNetLabel, ReadText, SameFace


def undo(
    tok: Tokenizer,
    clips: dict[str, Tensor],
    pairs: list[tuple[str, float | int | None]],
    judges: Sequence[Judge],
    report: Report,
) -> list[Undone]:
    """Compress every clip by every method, undo it, and compare."""
    import time
    from dataclasses import replace

    from omnitok.metrics.pixel import psnr
    from video.compress.files import compress_tokens

    found: list[list[dict[str, float]]] = [[] for _ in pairs]
    for name, frames in clips.items():
        report.note(f"compressing {name}")
        tokens = tok.tokenize(frames)
        full = tok.detokenize(tokens)
        for (method, share), scores in zip(pairs, found, strict=True):
            check()
            start = time.perf_counter()
            few = compress_tokens(tokens, method, share, load=lambda: tok)
            seconds = time.perf_counter() - start
            spread = few.data[few.plan.standing].view_as(tokens.data)
            codes, latents = (spread, None) if tokens.kind == "codes" else (None, spread)
            back = tok.detokenize(replace(tokens, codes=codes, latents=latents))
            score = {
                "kept": len(few.data) / tokens.num_tokens,
                "seconds": seconds,
                "psnr": float(psnr(back, full).mean()),
                "source_psnr": float(psnr(back, frames).mean()),
            }
            for judge in judges:
                score |= judge.compare(full, back)
            scores.append(score)
    keys = [column.key for judge in judges for column in judge.columns]
    return [_mean(*pair, scores, keys) for pair, scores in zip(pairs, found, strict=True)]


def _mean(
    method: str, share: float | int | None, scores: list[dict[str, float]], keys: list[str]
) -> Undone:
    """A method's scores on each clip, made one."""
    judged = {key: [score[key] for score in scores if key in score] for key in keys}
    return Undone(
        method=method,
        budget=share,
        kept=fmean(score["kept"] for score in scores),
        seconds=sum(score["seconds"] for score in scores),
        psnr=fmean(score["psnr"] for score in scores),
        source_psnr=fmean(score["source_psnr"] for score in scores),
        judged={key: fmean(values) if values else None for key, values in judged.items()},
        num_judged={key: len(values) for key, values in judged.items()},
    )


def _load_llm(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model of --llm and its processor."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise UsageError("--llm needs transformers; pip install 'omnitok[llm]'") from error
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            args.llm, local_files_only=True, dtype=args.dtype
        )
        processor = transformers.AutoProcessor.from_pretrained(args.llm, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"--llm {args.llm} cannot be loaded ({error})") from error
    return model.to(pick_device(args.device)).eval(), processor


def _measured(
    model: Any,
    processor: Any,
    question: str,
    clips: dict[str, Tensor],
    pairs: list[tuple[str, float | int | None]],
) -> list[Measured]:
    """Run a language model on the clips."""
    from video.llm.bench import measure

    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    prompts = [
        dict(processor(text=[text], videos=[frames], return_tensors="pt").to(model.device))
        for frames in clips.values()
    ]
    return measure(model, prompts, [(name, share) for name, share in pairs if share is not None])


def describe(
    undone: list[Undone], measured: list[Measured], judges: Sequence[Judge], num_clips: int
) -> list[str]:
    """The tables and what has to be known about them, in markdown."""
    lines: list[str] = []
    if undone:
        head = "method|budget|kept|time|PSNR to all tokens|PSNR to source"
        columns = [(judge, column) for judge in judges for column in judge.columns]
        rows = [[*head.split("|"), *(column.head for _, column in columns)]]
        for r in undone:
            rows.append([r.method, str(r.budget or "default"), f"{r.kept:.1%}"])
            rows[-1] += [f"{1e3 * r.seconds:.1f} ms", f"{r.psnr:.2f} dB"]
            rows[-1] += [f"{r.source_psnr:.2f} dB"]
            for judge, column in columns:
                value = r.judged[column.key]
                rows[-1].append(judge.empty if value is None else column.show(value))
        lines += [*table(rows), "", "Judges compare with the decoding of all tokens."]
        for judge in judges:
            seen = undone[0].num_judged[judge.columns[0].key]
            if isinstance(judge, Absent):
                lines.append(f"No {judge.name}: {judge.why}.")
            elif seen < num_clips:
                lines.append(
                    f"{judge.name}: {judge.empty} in {num_clips - seen} of {num_clips} clips."
                )
    if measured:
        head = "method|budget|tokens|method time|first word|total|peak|divergence|same first word"
        rows = [[*head.split("|"), "accuracy"]]
        for m in measured:
            peak = "" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.1f} MiB"
            rows.append([m.method, str(m.budget), f"{m.kept:,.0f} of {m.tokens:,}"])
            rows[-1] += [f"{1e3 * m.method_seconds:.1f} ms", f"{1e3 * m.first_seconds:.1f} ms"]
            rows[-1] += [f"{1e3 * m.total_seconds:.1f} ms", peak, f"{m.divergence:.4f} nats"]
            rows[-1] += [f"{m.same_word:.0%}", "" if m.accuracy is None else f"{m.accuracy:.0%}"]
        lines += ["", *table(rows)] if lines else table(rows)
    return lines


def _plot(undone: list[Undone]) -> str:
    lines = [
        Line(
            name=method,
            points=sorted((100 * r.kept, r.psnr) for r in undone if r.method == method),
        )
        for method in dict.fromkeys(r.method for r in undone)
    ]
    return plot(lines, "tokens kept, %", "PSNR to the decoding of all tokens, dB")
