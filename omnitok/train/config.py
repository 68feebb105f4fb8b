"""What a training run is made of: plain dataclasses, built from nested dicts by `from_dict`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

from omnitok.token_facts import conform

T = TypeVar("T")
KINDS = ("images", "pans", "videos", "meshes")
SCHEDULES = ("trapezoid", "cosine", "constant")
INFLATIONS = ("average", "first", "still")


class ConfigError(ValueError):
    """A training config cannot be used; the message names the key and what it expects."""


@dataclass(kw_only=True)
class SourceConfig:
    """One ingredient of a stage's data mix.

    Attributes:
        kind: "images" (single frames), "pans" (a crop that moves over a photograph), "videos" or
            "meshes".
        sizes: (T, H, W) of the clips; every batch has one of them. For meshes what
            `shapes` makes of the numbers.
        batch: Clips in a batch of the first size; batches of other sizes hold as many as keep the
            pixels of a batch the same. Divisible by the number of processes.
        weight: Share of the batches that come from it, relative to the others.
        data: Names of the datasets to draw from; empty means all that hold this kind.
        stride: Least and largest step between the frames of a video.
        fps: Frames per second that videos are sampled at; None takes every frame, `stride` apart.
        jitter: Largest change of brightness, contrast and saturation, as a factor around 1.
        losses: Instead of the stage's, for these batches.
    """

    kind: str
    sizes: list[tuple[int, int, int]]
    batch: int
    weight: float = 1.0
    data: list[str] = field(default_factory=list)
    stride: tuple[int, int] = (1, 3)
    fps: float | None = None
    jitter: float = 0.0
    losses: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _choice("kind", self.kind, KINDS)
        if not self.sizes or min(min(size) for size in self.sizes) < 1:
            raise ConfigError(
                f"sizes={self.sizes} must be at least one (T, H, W) of positive sizes"
            )
        if self.losses is not None and not self.losses:
            raise ConfigError("losses is empty; name at least one, or leave it out")
        if self.batch < 1 or self.weight <= 0:
            raise ConfigError(f"batch={self.batch} and weight={self.weight} must be positive")
        if not 1 <= self.stride[0] <= self.stride[1]:
            raise ConfigError(f"stride={self.stride} must be two positive numbers in order")
        if (self.fps is not None and self.fps <= 0) or not 0 <= self.jitter < 1:
            raise ConfigError(f"fps={self.fps} must be above 0 and jitter={self.jitter} in [0, 1)")

    def batch_of(self, size: tuple[int, int, int]) -> int:
        """Clips in a batch of `size`."""
        first, this = (t * h * w for t, h, w in (self.sizes[0], size))
        return max(1, self.batch * first // this)


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Peak rate.
        min_lr: Rate at the end.
        betas: Decay of the first and second moments.
        weight_decay: Of matrices; vectors (norms, biases) have none.
        warmup: Steps of linear warm-up.
        schedule: "trapezoid" (flat, then linearly down), "cosine" or "constant".
        decay_from: Share of the run after which a trapezoid falls.
        lr_scale: Factor on the rate of parameters whose names start with a prefix.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights that are saved; 0 saves the weights themselves.
    """

    lr: float = 4e-4
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup: int = 100
    schedule: str = "trapezoid"
    decay_from: float = 0.4
    lr_scale: dict[str, Any] = field(default_factory=dict)
    clip: float = 1.0
    ema: float = 0.995

    def __post_init__(self) -> None:
        _choice("schedule", self.schedule, SCHEDULES)
        if not 0 <= self.min_lr <= self.lr or self.clip <= 0 or self.warmup < 0:
            raise ConfigError(
                f"min_lr={self.min_lr} must lie between 0 and lr={self.lr}, clip={self.clip} be "
                f"above 0 and warmup={self.warmup} not negative"
            )
        if not (0 <= self.decay_from <= 1 and 0 <= self.ema < 1):
            raise ConfigError(
                f"decay_from={self.decay_from} must be in [0, 1] and ema={self.ema} in [0, 1)"
            )
        if not all(0 <= beta < 1 for beta in self.betas) or self.weight_decay < 0:
            raise ConfigError(
                f"betas={self.betas} must be in [0, 1) and weight_decay={self.weight_decay} not "
                "be negative"
            )
        check_numbers("lr_scale", self.lr_scale)


@dataclass(kw_only=True)
class StageConfig:
    """A stretch of steps: what the model sees, what it is asked for and what of it learns.

    Attributes:
        name: Shown in the log.
        steps: Length.
        mix: Where batches come from.
        losses: Name -> weight, or a dict with "weight" and the options of that loss
            (`omnitok.losses`).
        accumulate: Batches of one update, each drawn on its own from the mix.
        order: "random" draws each batch's source by weight; "cycle" takes them in turn, as often
            as their weights say.
        freeze: Prefixes of the names of parameters that do not learn.
        quantizer: Bottleneck from this stage on; None keeps the one before.
        inflate: How a model that has seen images alone goes on to clips: "still" lets a clip that
            stands still profit from what images taught (`learn_from_stills` of
            `omnitok.train.transition`); an OmniTokenizer also knows "average" and "first", as
            published (`omnitok.interop.omnitokenizer_inflate`). None keeps all weights.
        optim: Optimizer settings and schedule of this stage alone; None takes part in the run's.
    """

    name: str
    steps: int
    mix: list[SourceConfig]
    losses: dict[str, Any] = field(default_factory=lambda: {"rmse": 1.0})
    accumulate: int = 1
    order: str = "random"
    freeze: list[str] = field(default_factory=list)
    quantizer: dict[str, Any] | None = None
    inflate: str | None = None
    optim: OptimConfig | None = None

    def __post_init__(self) -> None:
        _choice("order", self.order, ("random", "cycle"))
        if self.inflate is not None:
            _choice("inflate", self.inflate, INFLATIONS)
        if self.steps < 1 or self.accumulate < 1 or not self.mix or not self.losses:
            raise ConfigError(
                f"stage {self.name!r} needs at least one step, one batch, one source and one loss"
            )


@dataclass(kw_only=True)
class DatasetConfig:
    """Files to draw from.

    Attributes:
        path: A folder (searched through), a memory-mapped corpus, a webdataset .tar or a folder of
            them, or a .csv or .parquet list with a column "path" and perhaps "weight",
            "embedding" and "caption" (`video.data.lists`).
        format: "auto", "folder", "corpus", "tar" or "list".
        part: "all"; or "train" or "val", which share the files: each file's name decides, about
            one in `1 / holdout` goes to "val".
        holdout: Share of the files that "val" has.
    """

    path: str
    format: str = "auto"
    part: str = "all"
    holdout: float = 0.05

    def __post_init__(self) -> None:
        _choice("format", self.format, ("auto", "folder", "corpus", "tar", "list"))
        _choice("part", self.part, ("all", "train", "val"))
        if not 0 < self.holdout < 1:
            raise ConfigError(f"holdout={self.holdout} must be a share between 0 and 1")


@dataclass(kw_only=True)
class ValidationConfig:
    """Clips that the averaged weights are scored on while the run goes on.

    Attributes:
        data: Where the files are.
        kind: "images", "videos" or "meshes".
        size: (T, H, W): the first frames, scaled and cut from the middle; not used for meshes.
        count: How many files.
    """

    data: DatasetConfig
    kind: str
    size: tuple[int, int, int]
    count: int = 16

    def __post_init__(self) -> None:
        _choice("kind", self.kind, ("images", "videos", "meshes"))
        if min(self.size) < 1 or self.size[1] != self.size[2] or self.count < 1:
            raise ConfigError(
                f"size={self.size} must be positive with H equal to W, and count={self.count} be "
                "at least 1"
            )


@dataclass(kw_only=True)
class TrainConfig:
    """A run. "To resume" is to run the same config again.

    Attributes:
        model: {"preset": NAME} and any entries of its config to replace.
        stages: In order.
        data: Name -> files to draw from.
        validation: Name -> clips to score.
        start_from: Weights to begin with, as `omnitok.load` takes them; None begins as the PCA of
            the data.
        seed: Of everything random. Batch b draws from (seed, b) alone.
        optim: The optimizer and its schedule over all stages without one of their own.
        autocast: Whether to compute in bfloat16 where that is safe.
        compile: Whether to compile the blocks; pays off after some minutes of training.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        shard: Whether to spread weights and optimizer over the processes (FSDP2).
        workers: Processes that prepare batches; 0 prepares them in between.
        log_every: Steps between lines of the log.
        save_every: Steps between checkpoints.
        eval_every: Steps between validations.
        keep: Checkpoints to keep, beside the best.
        seconds: Training time after which to stop, however far the steps are.
    """

    model: dict[str, Any]
    stages: list[StageConfig]
    data: dict[str, DatasetConfig] = field(default_factory=dict)
    validation: dict[str, ValidationConfig] = field(default_factory=dict)
    start_from: str | None = None
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    autocast: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False
    workers: int = 1
    log_every: int = 1
    save_every: int = 200
    eval_every: int = 400
    keep: int = 2
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a run needs at least one stage")
        if self.stages[0].inflate is not None and self.start_from is None:
            raise ConfigError(
                f"stage {self.stages[0].name!r} inflates what has seen images, but nothing has; "
                "begin with a stage of images, or name weights with start_from"
            )
        if min(self.log_every, self.save_every, self.eval_every, self.keep) < 1 or self.workers < 0:
            raise ConfigError(
                "log_every, save_every, eval_every and keep must be at least 1, workers at least 0"
            )
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must not be negative")
        if self.seconds is not None and self.seconds <= 0:
            raise ConfigError(f"seconds={self.seconds} must be above 0")

    @property
    def steps(self) -> int:
        """Length of the run."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, StageConfig, int]:
        """Number of the stage that `step` (from 0) belongs to, the stage, and the step in it."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, stage, step
            step -= stage.steps
        raise ValueError(f"step {step} is past the end of the last stage")


MAY_CHANGE = (  # on the way: nothing that they change reaches the weights
    "workers", "log_every", "save_every", "eval_every", "keep", "seconds", "validation", "compile",
    "gradient_checkpointing", "shard",
)  # fmt: skip


def differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """One "key: old, now new" for every entry in which two configs (as dicts) differ."""
    found = []
    for key in sorted(set(before) | set(now)):
        a, b, name = before.get(key), now.get(key), f"{at}{key}"
        if a == b or (not at and key in MAY_CHANGE):
            continue
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            a, b = dict(enumerate(a)), dict(enumerate(b))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        else:
            found.append(f"{name}: {a!r}, now {b!r}")
    return found


def from_dict(cls: type[T], values: Any, at: str = "") -> T:
    """Build a config from nested dicts, lists and scalars.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    where = f" in {at}" if at else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{at or 'config'} is {values!r}; expected keys and values")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose of {sorted(hints)}"
            raise ConfigError(f"unknown key {key!r}{where}; {hint}")
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for part in fields:
        needed = part.default is part.default_factory is dataclasses.MISSING
        if needed and part.name not in values:
            raise ConfigError(f"key {part.name!r}{where} is missing; expected {part.type}")
    built = {key: _value(values[key], hints[key], f"{at}.{key}".strip(".")) for key in values}
    try:
        return cls(**built)
    except ConfigError as error:
        raise ConfigError(f"{error}{where}") from None


def _value(value: Any, hint: Any, at: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        if value is None and types.NoneType in args:
            return None
        return _value(value, next(a for a in args if a is not types.NoneType), at)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, at)  # type: ignore[arg-type]
    if origin is list:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at} is {value!r}; expected a list")
        return [_value(v, args[0], f"{at}[{i}]") for i, v in enumerate(value)]
    if origin is dict and dataclasses.is_dataclass(args[1]):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at} is {value!r}; expected names and values")
        return {str(k): _value(v, args[1], f"{at}.{k}") for k, v in value.items()}
    try:
        return conform(at, dict(value) if isinstance(value, Mapping) else value, hint)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_numbers(name: str, values: Mapping[str, Any]) -> None:
    """Raise a ConfigError unless all values are numbers."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name}: {key!r} is {value!r}; expected a number")


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r} is unknown; choose one of {list(known)}")
