"""The training loop: a pure function of the config, the data and the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitok.checkpoint import CheckpointError
from omnitok.losses import LossSet
from omnitok.losses.sharing import Draws
from omnitok.train.config import ConfigError, TrainConfig, differences, from_dict
from omnitok.train.log import Log
from omnitok.train.network import (
    Model,
    Network,
    Objectives,
    blocks_of,
    run_batch,
    save_model,
    share_noise,
    stack_checkpointing,
)
from omnitok.train.optim import Average, Optimizer, clip_gradients, schedule_of
from omnitok.train.parallel import World, join, put, spread, whole
from omnitok.train.sampler import Batch, Item, SampleError, Sampler, load
from omnitok.train.stages import StageModels
from omnitok.train.state import Checkpoints, pack, unpack
from omnitok.train.transition import STILLS

Values = dict[str, Any]


class TrainingError(RuntimeError):
    """A run cannot go on; what was saved before is good."""


@dataclass
class Hooks:
    """What a caller wants to be told.

    Attributes:
        on_step: Gets the values of every line of the log.
        on_broken: Gets (file, reason) once for every file that was passed over.
        validate: Gets the averaged model and the step; returns scores for the log. The first one
            decides which checkpoint is the best. One process is enough to have it.
        stop: Whether to save and leave; asked after every step, or with every line of the log if
            there are several processes.
    """

    on_step: Callable[[Values], None] | None = None
    on_broken: Callable[[str, str], None] | None = None
    validate: Callable[[Model, int], dict[str, float]] | None = None
    stop: Callable[[], bool] | None = None


class Trainer:
    """Trains one tokenizer; the same call on the same folder goes on where it was.

    Args:
        config: What to do.
        out: Folder for the log, the checkpoints and the weights.
        items: Dataset name -> kind -> files.
        world: The processes of the run; joined if it is not given.
        hooks: What to tell.

    Raises:
        ConfigError: The config cannot be run, or the folder holds a run with another one.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: str | Path,
        items: Mapping[str, Mapping[str, Sequence[Item]]],
        world: World | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.config, self.out, self.hooks = config, Path(out), hooks or Hooks()
        self.world = world or join()
        self.sampler = Sampler(config, items, (self.world.rank, self.world.size))
        self.models = StageModels(config, Sampler(config, items), self.world.device)
        self.notes: list[str] = []
        self.step, self.seconds, self.waited, self.best = 0, 0.0, 0.0, -math.inf
        self.broken: dict[str, str] = {}
        self._pending: list[tuple[Values, Tensor, list[str]]] = []
        torch.manual_seed(config.seed)
        self._validates = self.world.any(self.hooks.validate is not None)
        self.objectives = Objectives(config.stages, self.world.device)
        self.checkpoints = Checkpoints(self.out / "checkpoints", config.keep)
        saved = self.checkpoints.load()
        if saved is None:
            first = self.models.first()
            weights = first.state_dict().items()
            self.start = {name: w.clone() for name, w in weights if name.startswith(STILLS)}
            self._adopt(0, first)
        else:
            self._resume(*saved)
        self.log = Log(self.out, self.step) if self.world.is_first else None

    # the model of a stage

    def _adopt(self, number: int, model: Model) -> None:
        """Make a model, equal on every process, the one that trains in a stage."""
        config = self.config
        self.stage, stage = number, config.stages[number]
        self.model = model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(name.startswith(p) for p in stage.freeze))
        stack_checkpointing(model, config.gradient_checkpointing)
        share_noise(model, self.world.rank, self.world.size)
        if config.compile:
            for block in blocks_of(model):
                block.compile(dynamic=False)
        self.network = spread(Network(model), blocks_of(model), self.world, config.shard)
        optim = stage.optim or config.optim
        self.optimizer = Optimizer(self.model, self.objectives.heads(), optim)
        self.adversary = None
        if players := self.objectives.discriminators():
            self.adversary = torch.optim.AdamW(players, betas=optim.betas, weight_decay=0.0)
        self.average = Average(self.model, optim.ema)

    def _enter(self, number: int) -> None:
        """Go from one stage to the next: new parts, what is frozen, moments kept."""
        self.save()  # should the next one not be able to begin
        before = pack(self.model, self.optimizer, self.average)
        heads = self.optimizer.head_state()
        old = self.models.fresh(self.stage)
        old.load_state_dict(before["model"])
        torch.manual_seed(self._seed_of(-1))  # whatever was saved or resumed just before
        new, kept = self.models.grow(old, number, self.start)
        self._adopt(number, new)
        for name, parameter in self.model.named_parameters():
            if name in kept:
                put(self.average.values[name], before["average"][name])
                self.optimizer.restore(parameter, before["optimizer"][name])
        self.optimizer.load_head_state(heads)

    # one step

    def train_step(self, batches: Iterable[Batch]) -> None:
        """One update from the batches of a step."""
        number, stage, inside = self.config.stage_at(self.step)
        if number != self.stage:
            self._enter(number)
        config, optim = self.config, stage.optim or self.config.optim
        rate = schedule_of(config, stage, self.step, inside)
        self.optimizer.set_rate(rate)
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        files: list[str] = []
        for m, batch in enumerate(batches):
            seed = self._seed_of(m)
            torch.manual_seed(seed)  # noise of the bottleneck
            losses = self.objectives.of(stage, stage.mix[batch.source])
            result, inputs = run_batch(
                self.network,
                self.model,
                batch,
                losses,
                self.world.device,
                inside,
                config.autocast,
                Draws(seed, self.world.rank),
            )
            (result.total / stage.accumulate).backward()  # type: ignore[no-untyped-call]
            terms = {"loss": result.total.detach(), **result.terms}
            if isinstance(losses, LossSet) and inputs is not None and self.adversary is not None:
                inputs = replace(inputs, recon=inputs.recon.detach())
                terms |= self._play(losses, inputs, stage.accumulate)
            for name, term in terms.items():
                sums[name] = sums[name] + term if name in sums else term
            files += batch.files
            self._note_broken(batch)
        norm = self._update(optim.clip, rate)
        values = {
            "step": self.step,
            "stage": stage.name,
            "kind": batch.kind,
            "rate": rate,
            "names": list(sums),
        }
        scale = 1 / stage.accumulate
        stacked = torch.stack([*(x.float() * scale for x in sums.values()), norm.float()])
        self._pending.append((values, stacked, files))
        self.step += 1

    def _seed_of(self, part: int) -> int:
        """Of batch `part` of this step, or of what comes before it."""
        return hash((self.config.seed, self.step, part)) % 2**63

    def _play(self, losses: LossSet, inputs: Any, parts: int) -> dict[str, Tensor]:
        result = losses.discriminate(inputs)
        if result is None:
            return {}
        (result.total / parts).backward()  # type: ignore[no-untyped-call]
        return result.terms

    def _update(self, clip: float, rate: float) -> Tensor:
        extra = [*self.objectives.heads(), *self.objectives.discriminators()]
        for parameter in extra:  # they are copies on every process, outside of the wrapped model
            if parameter.grad is not None:
                self.world.mean(parameter.grad)
        norm = clip_gradients(self.model, clip)
        self.optimizer.step()
        if self.adversary is not None:
            self.adversary.param_groups[0]["lr"] = rate
            torch.nn.utils.clip_grad_norm_(self.objectives.discriminators(), clip)
            self.adversary.step()
            self.adversary.zero_grad()
        self.average.update(self.model)
        return norm

    def _note_broken(self, batch: Batch) -> None:
        for name, reason in batch.broken:
            if name not in self.broken:
                self.broken[name] = reason
                if self.hooks.on_broken is not None:
                    self.hooks.on_broken(name, reason)

    # the whole run

    def run(self, seconds: float | None = None) -> None:
        """Train to the end, or for about `seconds` of training in all.

        Raises:
            TrainingError: A loss or gradient is not finite, memory does not suffice, files cannot
                be read or written.
        """
        config = self.config
        limit = seconds if seconds is not None else config.seconds
        batches = load(self.sampler, self.sampler.first_of(self.step))
        late = self._late(limit)
        try:
            while self.step < config.steps and not late and not self._asked_to_stop():
                stage = config.stage_at(self.step)[1]
                begin = time.monotonic()
                parts = [next(batches) for _ in range(stage.accumulate)]
                waited = time.monotonic() - begin
                self.train_step(parts)
                self.seconds += time.monotonic() - begin
                self.waited += waited
                self._pending[-1][0].update(waited=round(waited, 4), seconds=round(self.seconds, 2))
                late = self._late(limit)
                self._after_step(late)
            self.save()
            self.broken = self.world.union(self.broken)
        except (RuntimeError, MemoryError, OSError, ValueError) as error:
            if (known := self._sentence(error)) is None:
                raise
            raise TrainingError(f"{known}; the run goes on from the last checkpoint") from error
        finally:
            if self.log is not None:
                with suppress(OSError):  # a full disk is told of above
                    self.log.close()

    def _late(self, limit: float | None) -> bool:
        """Whether the time is up, on any process."""
        return self._any(limit is not None and self.seconds >= limit)

    def _asked_to_stop(self) -> bool:
        return self._any(self.hooks.stop is not None and self.hooks.stop())

    def _any(self, mine: bool) -> bool:
        """Whether it is so on any process; between logged steps nobody asks, as all would wait."""
        if self.world.size > 1 and self.step % self.config.log_every:
            return False
        return self.world.any(mine)

    def _sentence(self, error: Exception) -> str | None:
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text:
            return (
                f"out of memory at step {self.step} ({text}); lower batch or sizes, or raise "
                "accumulate, or set gradient_checkpointing or shard"
            )
        if "DataLoader worker (pid" in text:  # not an error in one
            return (
                f"a process that prepares batches died at step {self.step} ({text}); if memory ran "
                "out, lower workers"
            )
        if isinstance(error, OSError) and error.strerror:
            return f"{error.filename or self.out} cannot be used ({error.strerror})"
        return str(error) if isinstance(error, SampleError | CheckpointError) else None

    def _after_step(self, late: bool) -> None:
        config, step = self.config, self.step
        scored = step % config.eval_every == 0 or step == config.steps or late
        scores = self._validate() if scored else {}  # of one process; all of them have to flush
        if scored or step % config.log_every == 0 or step % config.save_every == 0:
            self._flush(scores)
        if step % config.save_every == 0:
            self.save()

    def _flush(self, scores: Mapping[str, float]) -> None:
        """Fetch the values of the steps since the last time, check and log them."""
        pending, self._pending = self._pending, []
        for n, (values, stacked, files) in enumerate(pending):
            names = [*values.pop("names"), "norm"]
            numbers = self.world.mean(stacked).tolist()
            values |= dict(zip(names, numbers, strict=True))
            if not all(map(math.isfinite, numbers)):
                bad = next(k for k, x in zip(names, numbers, strict=True) if not math.isfinite(x))
                raise TrainingError(
                    f"{bad} of step {values['step']} is not finite; its files: "
                    f"{', '.join(sorted(set(files))[:8])}; the last good checkpoint is in "
                    f"{self.checkpoints.folder}"
                )
            if n == len(pending) - 1:
                values |= scores
            if self.log is not None:
                self.log.write(values)
                if self.hooks.on_step is not None:
                    self.hooks.on_step(values)

    def _validate(self) -> dict[str, float]:
        if not self._validates:
            return {}
        model, validate = self.averaged(), self.hooks.validate
        scores = validate(model, self.step) if validate is not None else {}
        if scores and (first := next(iter(scores.values()))) > self.best:
            self.best = first
            save_model(self.out / "best.safetensors", model)
        self.world.wait()
        return scores

    def averaged(self) -> Model:
        """The model with averaged weights, in eval mode; every process must ask."""
        values = {name: whole(tensor) for name, tensor in self.model.state_dict().items()}
        values |= {name: whole(tensor) for name, tensor in self.average.values.items()}
        model = self.models.fresh(self.stage)
        model.load_state_dict(values)
        return model.eval().requires_grad_(False)

    # state

    def save(self) -> None:
        """Write averaged weights for `omnitok.load` and the state to go on from."""
        self._flush({})
        state = pack(self.model, self.optimizer, self.average)
        model = self.averaged()
        if self.world.is_first:
            save_model(self.out / "weights.safetensors", model)
            self.checkpoints.save(
                self.step,
                {
                    **state,
                    "config": asdict(self.config),
                    "stage": self.stage,
                    "seconds": self.seconds,
                    "waited": self.waited,
                    "best": self.best,
                    "start": self.start,
                    "world": self.world.size,
                    "objectives": self.objectives.state_dict(),
                    "heads": self.optimizer.head_state(),
                    "adversary": self.adversary.state_dict() if self.adversary else None,
                },
            )
        self.world.wait()

    def _resume(self, step: int, state: Values) -> None:
        before = asdict(from_dict(TrainConfig, state["config"]))  # with options that came later
        changed = differences(before, asdict(self.config))
        if changed:
            raise ConfigError(
                f"{self.out} holds a run with another config ({'; '.join(changed[:3])}); choose "
                "another folder, or remove it"
            )
        if state["world"] != self.world.size:
            self.notes.append(
                f"the run was on {state['world']} processes and goes on with {self.world.size}: "
                "the same batches, shared otherwise; sums round differently"
            )
        self._adopt(state["stage"], self.models.fresh(state["stage"]))
        unpack(state, self.model, self.optimizer, self.average)
        self.objectives.load_state_dict(state["objectives"])
        self.optimizer.load_head_state(state["heads"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.step, self.seconds, self.best = step, state["seconds"], state["best"]
        # earlier versions did not keep these
        self.waited, start = state.get("waited", 0.0), state.get("start", {})
        self.start = {name: weight.to(self.world.device) for name, weight in start.items()}
