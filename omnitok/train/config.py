"""What a training run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class SourceConfig:
    """One ingredient of a stage's data mix.

    Attributes:
        kind: "images" (single frames), "pans" (a crop that moves over a photograph) or "videos".
        weight: Share of the steps that draw from it, relative to the others.
        batch: Clips in a step.
        frames: Frames of a clip.
        size: Side of the square crops in pixels.
    """

    kind: str
    weight: float
    batch: int
    frames: int
    size: int

    def __post_init__(self) -> None:
        kinds = ("images", "pans", "videos")
        if self.kind not in kinds:
            raise ValueError(f"unknown data kind {self.kind!r}; choose one of {list(kinds)}")
        if min(self.batch, self.frames, self.size) < 1 or self.weight <= 0:
            raise ValueError(f"batch, frames, size and weight must be positive in {self}")


@dataclass(kw_only=True)
class StageConfig:
    """A stretch of steps with one data mix.

    Attributes:
        name: Shown in the log.
        steps: Length.
        mix: Where batches come from.
    """

    name: str
    steps: int
    mix: list[SourceConfig]


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: Peak rate.
        weight_decay: Of everything.
        warmup: Steps of linear warm-up.
        decay_from: Share of the run after which the rate falls linearly to zero.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights that are saved.
    """

    lr: float = 4e-4
    weight_decay: float = 0.0
    warmup: int = 100
    decay_from: float = 0.4
    clip: float = 1.0
    ema: float = 0.995


@dataclass(kw_only=True)
class TrainConfig:
    """A run. "To resume" is to run the same config again.

    Attributes:
        preset: Shape of the tokenizer.
        stages: In order.
        start_from: A checkpoint whose weights to begin with; None begins as the PCA of the data.
        seed: Of everything random. Step s draws from (seed, s) alone.
        loss_weights: Weight of each term that the quantizer returns; the pixel loss has 1.
        autocast: Whether to compute in bfloat16 where that is safe.
        compile: Whether to compile the blocks; pays off after some minutes of training.
        save_every: Steps between checkpoints.
        eval_every: Steps between validations.
        optim: The optimizer and its schedule.
    """

    preset: str
    stages: list[StageConfig]
    start_from: str | None = None
    seed: int = 0
    loss_weights: dict[str, float] = field(default_factory=dict)
    autocast: bool = True
    compile: bool = False
    save_every: int = 200
    eval_every: int = 400
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def steps(self) -> int:
        """Length of the run."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> StageConfig:
        """The stage that step `step` (from 0) belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise ValueError(f"step {step} past the end of the last stage")
