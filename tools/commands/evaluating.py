"""`omnitok eval`: scores of tokenizers beside baselines of equal size, in one table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tools.commands import eval_data, protocol
from tools.commands.errors import BUG, DONE, FAILED, InputError, UsageError
from tools.commands.eval_methods import LinearBaselines, codebook_use, methods
from tools.commands.eval_run import evaluate
from tools.commands.eval_table import describe, per_file, table, text_for
from tools.commands.loading import load, pick_device
from tools.commands.options import add_compute, add_json, side
from tools.commands.reporting import Report

__all__ = ["add_parser", "run", "table"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "eval",
        help="score tokenizers on held-out clips",
        description="Scores every video and image of a folder, or what a corpus holds out, as a "
        "protocol says, beside PCA, JPEG, WebP, x264 and AV1 of equal size. PCA is fitted to the "
        "training split of the corpus.",
        epilog=f"Protocols: {', '.join(protocol.names())}, or a JSON file like those in "
        "tools/protocols. LPIPS and feature distances need networks: python -m tools.feature_nets.",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|PATH",
        help="a name from `omnitok models`, or a weights file; may be given several times "
        "(default: tiny and tiny-kl)",
    )
    parser.add_argument("--data", metavar="DIR", help="score the files of this folder")
    parser.add_argument("--corpus", metavar="DIR", default="corpus", help="made by `make corpus`")
    parser.add_argument(
        "--protocol", metavar="NAME|FILE", help=f"what to cut out of files ({protocol.DEFAULT})"
    )
    parser.add_argument("--frames", type=count, metavar="N", help="other than the protocol's")
    parser.add_argument("--size", type=side, metavar="S", help="other than the protocol's")
    parser.add_argument(
        "--tokens",
        type=number,
        metavar="N",
        default=0,
        help="count the use of codebooks on so many training tokens of the corpus as well",
    )
    parser.add_argument(
        "--probe", metavar="DIR", help="labelled files, one subfolder for each class"
    )
    parser.add_argument("--networks", metavar="DIR", help="made by python -m tools.feature_nets")
    parser.add_argument("--only-models", action="store_true", help="leave out all baselines")
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        metavar="FILE",
        default=[],
        help="write the table here as well: .md, .csv or .json; may be given several times",
    )
    parser.add_argument("--per-file", metavar="FILE", help="write a csv of every file's scores")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def number(text: str) -> int:
    """A number of things, 0 or more."""
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text[:12])


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:12]):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text[:12])


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from omnitok.checkpoint import write_atomically
    from tools.commands.probing import labelled, probe
    from tools.commands.scoring import Networks
    from tools.feature_nets import folder

    report = Report(json=args.json)
    corpus = Path(args.corpus)
    has_corpus = (corpus / "train" / "videos.json").exists()
    if args.data is None and not (corpus / "val" / "videos.json").exists():
        raise UsageError(
            f"there is no corpus in {corpus}; run `make corpus`, name its folder with --corpus, or "
            "a folder of your own videos and images with --data"
        )
    if args.tokens and not has_corpus:
        raise UsageError(
            f"--tokens counts codes of training clips, and there is no corpus in {corpus}; run "
            "`make corpus` or leave it out"
        )
    if args.networks and not Path(args.networks).is_dir():
        raise UsageError(f"--networks {args.networks} is no folder; leave it out or name one")
    chosen = _protocol(args)
    _check_outputs(args)
    models = {name: load(name, args) for name in args.model or ("tiny", "tiny-kl")}
    files = labelled(args.probe) if args.probe else []
    sources = eval_data.choose(
        eval_data.from_corpus(corpus, chosen)
        if args.data is None
        else eval_data.from_folder(args.data, chosen),
        chosen,
    )
    if not sources:
        raise InputError(
            f"{args.data or corpus} holds none of the {' and '.join(chosen.kinds)} files that "
            f"protocol {chosen.name} takes; choose another --protocol or folder"
        )
    notes = list[str]()
    linear = LinearBaselines(corpus, report.note) if has_corpus and not args.only_models else None
    if not has_corpus and not args.only_models:
        notes.append(f"no PCA: there is no corpus in {corpus}; run `make corpus`")
    rows = methods(models, linear, notes.append)
    if args.only_models:
        rows = [method for method in rows if method.name == method.model]
    place = Path(args.networks) if args.networks else folder()
    networks = Networks(place, chosen, pick_device(args.device))
    outcome = evaluate(sources, rows, networks, lambda model: _command(args, model), report)
    if not outcome.rows:
        short = f", {len(outcome.left_out)} are too short for it" if outcome.left_out else ""
        raise InputError(
            f"none of the {len(sources)} files could be scored by protocol {chosen.name}: "
            f"{len(outcome.failed)} failed{short}"
        )
    probes: dict[str, Any] = {}
    for name, tok in models.items() if files else ():
        try:
            probes[name] = probe(tok, files, chosen, report.error)
        except InputError as error:
            notes.append(f"no probe of {name}: {error}")
    codebooks: dict[str, Any] = {}
    for name, tok in models.items():
        if has_corpus and tok.codebook_size is not None and args.tokens:
            report.note(f"counting the codes of {args.tokens:,} training tokens of {name}")
            try:
                codebooks[name] = codebook_use(tok, corpus, args.tokens)
            except ValueError as error:  # too many codes, or clips that it cannot take
                notes.append(f"no codes of {name} on training tokens: {error}")
    data = {
        "command": "eval",
        "protocol": asdict(chosen),
        "networks": networks.facts,
        "rows": outcome.rows,
        "notes": notes + outcome.notes,
        "failed": outcome.failed,
        "left_out": outcome.left_out,
        "codebooks": codebooks,
        "baselines": linear.facts() if linear else [],
        "probes": probes,
    }
    lines = describe(data)
    report.result(data, lines)
    texts = {name: text_for(Path(name), data, lines) for name in args.output}
    if args.per_file:
        texts[args.per_file] = per_file(outcome.rows)
    for name, text in texts.items():  # names of files may be any bytes
        write_atomically(Path(name), text.encode("utf-8", "backslashreplace"))
    lacking = outcome.failed or outcome.refused or (files and len(probes) < len(models))
    return BUG if outcome.bugs else FAILED if lacking else DONE


def _protocol(args: argparse.Namespace) -> protocol.Protocol:
    chosen = protocol.load_protocol(args.protocol or protocol.DEFAULT)
    changed = {k: getattr(args, k) for k in ("frames", "size") if getattr(args, k) is not None}
    if changed and args.protocol:
        raise UsageError(
            f"--protocol {args.protocol} is fixed, so --{' and --'.join(changed)} cannot change "
            "it; leave them out, or write a protocol of your own"
        )
    if not changed:
        return chosen
    name = ", ".join(f"{key} {value}" for key, value in changed.items())
    return replace(chosen, name=f"{chosen.name} with {name}", **changed)


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse what could not be written, before hours of work."""
    wanted: list[tuple[str, tuple[str, ...]]]
    wanted = [(name, (".md", ".csv", ".json")) for name in args.output]
    wanted += [(args.per_file, (".csv",))] if args.per_file else []
    for name, suffixes in wanted:
        path = Path(name)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"{name} cannot be written; name a file in a folder that exists")
        if path.suffix not in suffixes:
            raise UsageError(f"{name} must end in {' or '.join(suffixes)}; give it such a name")
        if path.exists() and not args.overwrite:
            raise UsageError(f"{name} exists; name another file, or replace it with --overwrite")
    if len({Path(name).absolute() for name, _ in wanted}) < len(wanted):
        raise UsageError("two outputs have the same name; give them different ones")


def _command(args: argparse.Namespace, model: str) -> Sequence[str]:
    """The words that repeat the rows of a model."""
    words = ["omnitok", "eval", "--model", model]
    for name in ("data", "protocol", "frames", "size", "networks"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    for name, default in (("corpus", "corpus"), ("device", "auto"), ("dtype", "float32")):
        if getattr(args, name) != default:
            words += [f"--{name}", getattr(args, name)]
    return words
