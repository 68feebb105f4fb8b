"""Steps of the trainer, with all that belongs to them, against the same work on ready tensors."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

from omnitok.train.loop import Trainer
from omnitok.train.network import run_batch
from omnitok.train.parallel import join
from omnitok.train.sampler import Batch
from tools.bench_figures import Figure
from tools.train_config import read_config
from tools.train_run import find_data


def training(corpus: Path, steps: int) -> list[Figure]:
    """`tiny-kl` in its second stage, its blocks compiled.

    Data, averaging, clipping, the optimizer and the log are in the one; forward and backward passes
    on the same batches in the other, of which the fastest round counts for each kind of batch.
    """
    config = read_config(
        [
            "curriculum=tiny-kl",
            f"data.corpus.path={corpus / 'train'}",
            "validation={}",
            "stages.0.steps=1",
            f"stages.1.steps={steps}",
            "save_every=100000",
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder, find_data(config), join())
        kinds: dict[str, list[float]] = {}
        ready: dict[str, Batch] = {}
        stamps: list[tuple[str, float]] = []
        trainer.hooks.on_step = lambda values: stamps.append((values["kind"], values["seconds"]))
        trainer.run()
        for (_, before), (kind, after) in pairwise(stamps):
            kinds.setdefault(kind, []).append(after - before)
        stage = config.stages[1]
        for number in range(1, steps):
            batch = trainer.sampler[number]
            ready.setdefault(batch.kind, batch)
        whole = alone = 0.0
        for kind, batch in ready.items():
            losses = trainer.objectives.of(stage, stage.mix[batch.source])
            seconds = []
            for _ in range(5):
                begin = time.perf_counter()
                result, _ = run_batch(
                    trainer.network, trainer.model, batch, losses, trainer.world.device, 0, True
                )
                result.total.backward()  # type: ignore[no-untyped-call]
                seconds.append(time.perf_counter() - begin)
            trainer.optimizer.zero_grad()
            times = sorted(kinds[kind])
            whole += len(times) * times[len(times) // 2]
            alone += len(times) * sorted(seconds)[len(seconds) // 2]
    waited = Figure(
        name="share of the time that training waits for data",
        measured=f"{trainer.waited:.2f} s",
        against=f"{trainer.seconds:.1f} s",
        ratio=trainer.waited / trainer.seconds,
        most=0.05,
    )
    step = Figure(
        name="a training step, medians of each kind of batch",
        measured=f"{1e3 * whole / (steps - 1):.0f} ms",
        against=f"{1e3 * alone / (steps - 1):.0f} ms forward and backward on ready tensors",
        ratio=whole / alone,
        most=1.25,
    )
    return [step, waited]
