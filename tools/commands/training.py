"""`omnitok train`: a tokenizer from a curriculum, and on from where it stopped."""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands.errors import DONE, InputError, UsageError
from tools.commands.loading import pick_device
from tools.commands.options import add_json
from tools.commands.reporting import Report, clock
from tools.commands.stopping import SIGNALS, Stopped

if TYPE_CHECKING:
    from omnitok.train.config import TrainConfig

FEW = 10  # steps that warm up: by them nobody can tell how long the rest takes


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
    _mix(parser)


def _mix(parser: argparse.ArgumentParser) -> None:
    """Let settings stand behind options as well, where argparse takes no more of them."""
    parse = parser.parse_known_args

    def mixed(words: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        found, rest = parse(words, namespace)
        found.settings += [word for word in rest if not word.startswith("-")]
        return found, [word for word in rest if word.startswith("-")]

    parser.parse_known_args = mixed  # type: ignore[method-assign, assignment]


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
        return (_dry_run if args.dry_run else _train)(config, args, report)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    except (TrainingError, SampleError) as error:
        raise InputError(str(error)) from error
    finally:
        leave()


def _dry_run(config: TrainConfig, args: argparse.Namespace, report: Report) -> int:
    import torch

    from tools.train_plan import plan_lines, plan_run
    from tools.train_run import find_data

    device = torch.device(pick_device(args.device or "auto"))
    plan = plan_run(config, find_data(config), device)
    report.result(plan, plan_lines(plan))
    return DONE


def _train(config: TrainConfig, args: argparse.Namespace, report: Report) -> int:
    from omnitok.train.loop import Hooks, Trainer
    from omnitok.train.parallel import join
    from omnitok.train.state import alone_in
    from tools.train_run import Validator, find_data

    world = join(None if args.device is None else pick_device(args.device))
    out, data = Path(args.out), find_data(config)
    with alone_in(out) if world.is_first else nullcontext():
        validate = Validator(config, out, world.device) if world.is_first else None
        stop = _Stop()
        hooks = Hooks(
            on_step=_bar(config, report),
            on_broken=lambda name, reason: report.error(f"passed over {name}: {reason}"),
            validate=validate,
            stop=lambda: stop.signum is not None,
        )
        trainer = Trainer(config, out, data, world, hooks)
        for note in (*(validate.notes if validate is not None else ()), *trainer.notes):
            report.note(note)
        if trainer.step:
            report.note(f"going on at step {trainer.step} of {config.steps}")
        with stop:
            trainer.run()
    result: dict[str, Any] = {
        "out": str(out),
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "waited_share": round(trainer.waited / max(trainer.seconds, 1e-9), 4),
        "broken_files": sorted(trainer.broken),
        "best": trainer.best if math.isfinite(trainer.best) else None,
        "stopped": stop.signum is not None,
    }
    lines = [
        f"{trainer.step} of {config.steps} steps in {trainer.seconds:.0f} s, of which "
        f"{100 * result['waited_share']:.1f} % waited for data",
        f"{len(trainer.broken)} files were passed over",
        f"weights: {out / 'weights.safetensors'}   log: {out / 'log.csv'}   "
        f"tensorboard --logdir {out}",
    ]
    if stop.signum is not None:
        lines.append("stopped and saved; run the same command again to go on")
    if world.is_first:
        report.result(result, lines)
    return DONE if stop.signum is None else 128 + stop.signum


class _Stop:
    """Ctrl-C and friends while it trains: the first asks to save and leave, the next stops at once.

    Attributes:
        signum: The first signal; None if there was none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            taken = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._take) for s in taken}

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _take(self, signum: int, _: object) -> None:
        if self.signum is not None:
            raise Stopped(signum)
        self.signum = signum
        os.write(2, b"\nsaving after this step; once more to stop at once\n")


class _Clock:
    """How long the rest of a run takes, by its steps of late."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._begin: float | None = None
        self._steps: deque[tuple[str, float]] = deque(maxlen=100)

    def left(self, values: Mapping[str, Any]) -> float | None:
        """Seconds from the step with these values to the end; None while there are too few.

        Each kind of batch counts as often as it came, with the median of its steps: a new size that
        compiles, or a page of a file that is read late, says nothing about the rest.
        """
        if self._begin is not None:
            self._steps.append((values["kind"], values["seconds"] - self._begin))
        self._begin = values["seconds"]
        if len(self._steps) < FEW:
            return None
        kinds: dict[str, list[float]] = {}
        for kind, seconds in self._steps:
            kinds.setdefault(kind, []).append(seconds)
        each = sum(len(x) * statistics.median(x) for x in kinds.values()) / len(self._steps)
        left: float = (self._config.steps - values["step"] - 1) * each
        limit = self._config.seconds
        return left if limit is None else min(left, max(0.0, limit - values["seconds"]))


def _bar(config: TrainConfig, report: Report) -> Callable[[dict[str, Any]], None]:
    """What shows every step: a bar with the time left on a terminal, now and then a line."""
    clock_of, last = _Clock(config), [0.0]

    def show(values: dict[str, Any]) -> None:
        now, left = time.monotonic(), clock_of.left(values)
        scores = {k: v for k, v in values.items() if k.startswith(("psnr", "iou"))}
        parts = [f"step {values['step'] + 1}/{config.steps}", values["stage"]]
        parts.append(f"loss {values['loss']:.4f}")
        parts += [] if left is None else [f"{clock(left)} left"]
        line = "  ".join([*parts, *(f"{k} {v:.2f}" for k, v in scores.items())])
        if sys.stderr.isatty() and not report.quiet:
            print(f"\r\033[K{line}", end="\n" if scores else "", file=sys.stderr, flush=True)
        elif scores or now - last[0] > 30:
            report.note(line)
            last[0] = now

    return show
