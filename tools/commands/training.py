"""`omnitok train`: a tokenizer from a curriculum, and on from where it stopped."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands.errors import DONE, FAILED, UsageError
from tools.commands.options import add_json
from tools.commands.reporting import Report

if TYPE_CHECKING:
    from omnitok.train.config import TrainConfig


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="train a tokenizer from a curriculum",
        description="Train a tokenizer: a curriculum, a model and data, each a config of its name "
        "or your own, and any value of a config as key=value. Run the same command again to go on "
        "where a run stopped. Under torchrun all processes train one model.",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="such as curriculum=tiny-kl model=small data=my_photos optim.lr=2e-4",
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR", default="runs/train", help="folder of the run"
    )
    parser.add_argument("--configs", metavar="DIR", help="folder with configs of your own")
    parser.add_argument(
        "--device", metavar="D", default=None, help="cpu, cuda; default: a GPU if any"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or say what training would do."""
    from omnitok.train.config import ConfigError
    from omnitok.train.loop import TrainingError
    from omnitok.train.parallel import leave
    from omnitok.train.sampler import SampleError
    from tools.train_config import read_config

    first = int(os.environ.get("RANK", 0)) == 0
    report = Report(json=args.json, quiet=args.quiet or not first)
    try:
        config = read_config(args.settings, args.configs)
        return _dry_run(config, report) if args.dry_run else _train(config, args, report)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    except (TrainingError, SampleError) as error:
        report.error(f"omnitok: {error}")
        return FAILED
    finally:
        leave()


def _dry_run(config: TrainConfig, report: Report) -> int:
    from tools.train_plan import plan_lines, plan_run
    from tools.train_run import find_data

    plan = plan_run(config, find_data(config))
    report.result(plan, plan_lines(plan))
    return DONE


def _train(config: TrainConfig, args: argparse.Namespace, report: Report) -> int:
    from omnitok.train.loop import Hooks, Trainer
    from omnitok.train.parallel import join
    from tools.train_run import Validator, find_data

    world = join(args.device)
    out = Path(args.out)
    validate = Validator(config, out, world.device) if world.is_first else None
    hooks = Hooks(
        on_step=_bar(config, report),
        on_broken=lambda name, reason: report.error(f"passed over {name}: {reason}"),
        validate=validate,
    )
    trainer = Trainer(config, out, find_data(config), world, hooks)
    for note in (*(validate.notes if validate is not None else ()), *trainer.notes):
        report.note(note)
    if trainer.step:
        report.note(f"going on at step {trainer.step} of {config.steps}")
    trainer.run()
    result: dict[str, Any] = {
        "out": str(out),
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "waited_share": round(trainer.waited / max(trainer.seconds, 1e-9), 4),
        "broken_files": sorted(trainer.broken),
        "best": trainer.best if trainer.step and validate is not None else None,
    }
    if world.is_first:
        report.result(
            result,
            [
                f"{trainer.step} of {config.steps} steps in {trainer.seconds:.0f} s, of which "
                f"{100 * result['waited_share']:.1f} % waited for data",
                f"{len(trainer.broken)} files were passed over",
                f"weights: {out / 'weights.safetensors'}   log: {out / 'log.csv'}   "
                f"tensorboard --logdir {out}",
            ],
        )
    return DONE


def _bar(config: TrainConfig, report: Report) -> Any:
    """What shows every step: a bar with the time left on a terminal, now and then a line."""
    import time

    began = time.monotonic()
    last = [0.0]
    first = [-1]

    def show(values: dict[str, Any]) -> None:
        now = time.monotonic()
        if first[0] < 0:
            first[0] = values["step"]
        done = values["step"] + 1 - first[0]
        left = (config.steps - values["step"] - 1) * (now - began) / done
        scores = {k: v for k, v in values.items() if k.startswith("psnr")}
        line = (
            f"step {values['step'] + 1}/{config.steps}  {values['stage']}  "
            f"loss {values['loss']:.4f}  {left / 60:.0f} min left"
        )
        line += "".join(f"  {k} {v:.2f}" for k, v in scores.items())
        if sys.stderr.isatty() and not report.quiet:
            print(f"\r\033[K{line}", end="\n" if scores else "", file=sys.stderr, flush=True)
        elif scores or now - last[0] > 30:
            report.note(line)
            last[0] = now

    return show
