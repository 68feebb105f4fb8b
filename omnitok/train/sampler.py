"""Which clips a step sees: a pure function of the seed and the number of the batch.

So a run resumes to the sample from its step alone, on any number of processes and workers.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from omnitok.train.captions import Captioned, Captions, captions_of
from omnitok.train.config import ConfigError, SourceConfig, StageConfig, TrainConfig

TRIES = 50  # files in a row that may be broken
Rng = np.random.Generator
Numbers = np.ndarray[Any, np.dtype[np.float64]]
Size = tuple[int, int, int]


class SampleError(ValueError):
    """A file that no sample can be had from; the message says why."""


class Item(Protocol):
    """One file of a dataset."""

    name: str
    weight: float

    def sample(self, rng: Rng, source: SourceConfig, size: Size) -> dict[str, Tensor]:
        """Tensors of one random sample, equal in shape for equal sizes; or a SampleError."""


@dataclass
class Batch:
    """Samples of one kind and size.

    Attributes:
        kind: As in `SourceConfig`.
        source: Place of its source in the stage's mix.
        tensors: "pixels" uint8 [B, 3, T, H, W], and "text" [B, E] if losses need embeddings of
            captions; for meshes what `shapes` makes.
        files: Where each sample is from.
        captions: Their captions, if losses need those.
        broken: (name, reason) of files that were passed over.
    """

    kind: str
    source: int
    tensors: dict[str, Tensor]
    files: list[str]
    captions: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)


class Sampler(TorchDataset[Batch]):
    """Batches by number: batch `step * accumulate + m` counted through the stages.

    Args:
        config: The run.
        items: Dataset name -> kind ("images", "videos", "meshes") -> files.
        share: (rank, world): which part of every batch to draw.

    Raises:
        ConfigError: The mix names data that is not there, or batches cannot be shared evenly.
    """

    def __init__(
        self,
        config: TrainConfig,
        items: Mapping[str, Mapping[str, Sequence[Item]]],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.config, self.share = config, share
        self._pools = {}
        for stage in config.stages:
            for source in stage.mix:
                wanted = _captions_of(stage, source)
                self._pools[_key(source, wanted)] = self._pool(stage, source, items, wanted)
                for size in source.sizes:
                    if source.batch_of(size) % share[1]:
                        raise ConfigError(
                            f"stage {stage.name!r}: {source.batch_of(size)} clips of size {size} "
                            f"cannot be shared by {share[1]} processes; make it a multiple"
                        )

    @staticmethod
    def _pool(
        stage: StageConfig,
        source: SourceConfig,
        items: Mapping[str, Mapping[str, Sequence[Item]]],
        wanted: Captions | None,
    ) -> tuple[list[Item], Numbers]:
        kind = "images" if source.kind == "pans" else source.kind
        if missing := sorted(set(source.data) - set(items)):
            raise ConfigError(
                f"stage {stage.name!r} draws from data {missing[0]!r}, which is not among "
                f"{sorted(items)}"
            )
        pool = [i for name in source.data or sorted(items) for i in items[name].get(kind, ())]
        if not pool:
            names = source.data or sorted(items)
            raise ConfigError(f"stage {stage.name!r} asks for {kind}, but {names} hold none")
        if wanted is not None:
            pool = _with_captions(pool, wanted, stage, kind)
        weight = np.array([item.weight for item in pool], dtype=np.float64)
        if weight.sum() <= 0:
            raise ConfigError(f"stage {stage.name!r} asks for {kind}, and all have weight 0")
        return pool, weight.cumsum() / weight.sum()

    def __len__(self) -> int:
        return sum(stage.steps * stage.accumulate for stage in self.config.stages)

    def first_of(self, step: int) -> int:
        """Number of the first batch of a step."""
        total = 0
        for stage in self.config.stages:
            inside = min(step, stage.steps)
            total, step = total + inside * stage.accumulate, step - inside
        return total

    def stage_of(self, number: int) -> tuple[StageConfig, int]:
        """The stage that draws a batch, and the batch's number in it."""
        for stage in self.config.stages:
            if number < stage.steps * stage.accumulate:
                return stage, number
            number -= stage.steps * stage.accumulate
        raise IndexError("past the last batch")

    def source_of(self, number: int) -> SourceConfig:
        """The source that a batch is drawn from."""
        return self.choose(number)[1]

    def choose(self, number: int) -> tuple[int, SourceConfig, Size]:
        """Of a batch: the place of its source in the mix, that source, and its (T, H, W)."""
        stage, inside = self.stage_of(number)
        rng = np.random.default_rng([self.config.seed, number])
        point = _halton(inside) if stage.order == "cycle" else rng.random()
        weights = np.array([source.weight for source in stage.mix])
        place = int((weights.cumsum() / weights.sum() <= point).sum())
        source = stage.mix[place]
        return place, source, source.sizes[int(rng.integers(len(source.sizes)))]

    def __getitem__(self, number: int) -> Batch:
        return self.draw(number)

    def draw(self, number: int, most: int | None = None) -> Batch:
        """Our part of a batch, or of that the first `most` samples."""
        place, source, size = self.choose(number)
        wanted = _captions_of(self.stage_of(number)[0], source)
        batch = Batch(source.kind, place, {}, [])
        samples = []
        rank, world = self.share
        each = source.batch_of(size) // world
        for n in range(rank * each, rank * each + min(each, most or each)):
            samples.append(self._sample(number, n, source, size, batch, wanted))
        batch.tensors = {k: torch.stack([s[k] for s in samples]) for k in samples[0]}
        return batch

    def _sample(
        self,
        number: int,
        n: int,
        source: SourceConfig,
        size: Size,
        batch: Batch,
        wanted: Captions | None,
    ) -> dict[str, Tensor]:
        pool, odds = self._pools[_key(source, wanted)]
        for attempt in range(TRIES):
            rng = np.random.default_rng([self.config.seed, number, n, attempt])
            item = pool[min(int(np.searchsorted(odds, rng.random(), "right")), len(pool) - 1)]
            try:
                sample = item.sample(rng, source, size)
                caption = None if wanted is None else _read_caption(item, wanted)
            except SampleError as error:
                batch.broken.append((item.name, str(error)))
                continue
            batch.files.append(item.name)
            if isinstance(caption, str):
                batch.captions.append(caption)
            elif caption is not None:
                sample["text"] = caption
            return sample
        raise SampleError(
            f"{TRIES} files in a row cannot be used, the last one {batch.broken[-1][0]}: "
            f"{batch.broken[-1][1]}"
        )


class _Carried(TorchDataset["Batch | SampleError"]):
    """Batches by number; an error travels as a value, which a worker would drown in a traceback."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __getitem__(self, number: int) -> Batch | SampleError:
        try:
            return self.sampler[number]
        except SampleError as error:
            return error


def _leave_signals(_: int) -> None:
    """Let the process that trains decide what Ctrl-C means; it ends this one with SIGTERM."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def load(sampler: Sampler, start: int) -> Iterator[Batch]:
    """Batches from number `start` on, prepared ahead by `workers` processes.

    Raises:
        SampleError: There are none to be had from the files.
    """
    workers = sampler.config.workers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*set_vital.*")  # of torchdata, about torch
        loader = StatefulDataLoader(
            _Carried(sampler),
            batch_size=None,
            sampler=range(start, len(sampler)),
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            worker_init_fn=_leave_signals,
        )
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, SampleError):
            raise batch
        yield batch


def _key(source: SourceConfig, wanted: Captions | None) -> str:
    return repr((source.kind, source.data, wanted and wanted.form))


def _captions_of(stage: StageConfig, source: SourceConfig) -> Captions | None:
    if source.kind == "meshes":
        return None
    return captions_of(stage.losses if source.losses is None else source.losses)


def _with_captions(pool: list[Item], wanted: Captions, stage: StageConfig, kind: str) -> list[Item]:
    """The files that have captions in the form that is wanted."""
    kept = [item for item in pool if getattr(item, wanted.form, None) is not None]
    if kept:
        return kept
    where = f"stage {stage.name!r}: loss {wanted.loss!r} needs"
    if wanted.encoder is None and any(getattr(i, "text", None) is not None for i in pool):
        raise ConfigError(
            f"{where} embeddings, but captions of its {kind} are text; give the loss `texts`, a "
            "folder with a SigLIP or CLIP model for transformers, or save embeddings as x.npy "
            "beside x.jpg (in a list: column 'embedding')"
        )
    ending, column = (".npy", "embedding") if wanted.encoder is None else (".txt", "caption")
    raise ConfigError(
        f"{where} captions as {wanted.form}, but none of its {len(pool)} {kind} has one; put "
        f"x{ending} beside x.jpg (in a list: column {column!r})"
    )


def _read_caption(item: Item, wanted: Captions) -> Tensor | str:
    caption = cast(Captioned, item).caption(wanted.form)
    if isinstance(caption, Tensor) and caption.shape != (wanted.width or len(caption),):
        raise SampleError(
            f"its caption is an embedding {list(caption.shape)}, but loss {wanted.loss!r} is set "
            f"to embedding={wanted.width}"
        )
    return caption


def _halton(n: int) -> float:
    """Point n of the base-2 van der Corput sequence: every stretch of it is spread evenly."""
    point, half = 0.0, 0.5
    while n:
        n, bit = divmod(n, 2)
        point, half = point + bit * half, half / 2
    return point
