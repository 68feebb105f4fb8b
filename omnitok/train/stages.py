"""The models of a run's stages: how the first begins, and each next one grows out of the last."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from omnitok.checkpoint import CheckpointError
from omnitok.hub import load
from omnitok.interop.omnitokenizer_inflate import MOVING
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from omnitok.model import Autoencoder
from omnitok.pixels import to_float
from omnitok.planes_start import start_planes
from omnitok.train.config import ConfigError, OptimConfig, StageConfig, TrainConfig
from omnitok.train.network import Model, build_model
from omnitok.train.pca import start_as_pca
from omnitok.train.sampler import Sampler
from omnitok.train.transition import CLIPS, OWN, PLANES, learn_from_stills, move_over

PCA_BATCHES = 48  # that the first weights are fitted to
FIT_BATCHES = 8  # that a new bottleneck is fitted to
CLIPS_EACH = 64  # of such a batch at most: recipes for many GPUs have batches of thousands


def _check_stage(stage: StageConfig, optim: OptimConfig, model: Model) -> None:
    """Refuse a stage that asks for parts which a model does not have.

    Raises:
        ConfigError: It does.
    """
    meshes = any(source.kind == "meshes" for source in stage.mix)
    if meshes and getattr(model, "planes", None) is None:
        raise ConfigError(
            f"stage {stage.name!r} has meshes in its mix, but the model has no 3D stage; use "
            "model=tiny-3d or give it planes"
        )
    names = [name for name, _ in model.named_parameters()]
    for what, prefixes in (("freezes", stage.freeze), ("scales the rate of", optim.lr_scale)):
        if wrong := [p for p in prefixes if not any(name.startswith(p) for name in names)]:
            raise ConfigError(
                f"stage {stage.name!r} {what} {wrong[0]!r}, which no weight starts with; choose of "
                f"{sorted({name.split('.')[0] for name in names})}"
            )
    if isinstance(model, Autoencoder) and stage.inflate not in (None, "still"):
        raise ConfigError(
            f"stage {stage.name!r} has inflate={stage.inflate}, which only an OmniTokenizer knows; "
            "use inflate=still or leave it out"
        )


class StageModels:
    """Builds models, the same on every process.

    Args:
        config: The run.
        sampler: Whole batches of it.
        device: Where models go.

    Raises:
        ConfigError: A stage asks for what its model does not have.
    """

    def __init__(self, config: TrainConfig, sampler: Sampler, device: torch.device) -> None:
        self.config, self.sampler, self.device = config, sampler, device
        for number, stage in enumerate(config.stages):
            with torch.device("meta"):
                model = build_model(config.model, self._quantizer_of(number))
            _check_stage(stage, stage.optim or config.optim, model)
            before = {source.kind for s in config.stages[:number] for source in s.mix}
            inflates = stage.inflate is not None and isinstance(model, Autoencoder)
            if inflates and before != {"images"}:
                raise ConfigError(
                    f"stage {stage.name!r} inflates what stages of images alone have taught, but "
                    f"those before it have {sorted(before) or 'nothing'}; leave inflate out"
                )

    def _quantizer_of(self, number: int) -> Mapping[str, Any] | None:
        given = [s.quantizer for s in self.config.stages[: number + 1] if s.quantizer is not None]
        return given[-1] if given else None

    def fresh(self, number: int) -> Model:
        """A model of the shape that a stage trains."""
        return build_model(self.config.model, self._quantizer_of(number)).to(self.device)

    def first(self) -> Model:
        """The model that the first stage starts with.

        Raises:
            ConfigError: The weights to start from cannot be read, or do not fit.
        """
        model, origin = self.fresh(0), self.config.start_from
        if origin is not None:
            try:
                start: Any = load(origin, self.device)
                self._move(getattr(start, "model", start), model, 0)  # some are no tokenizer's
            except CheckpointError as error:
                raise ConfigError(f"start_from={origin}: {error}") from error
        elif isinstance(model, Autoencoder):
            start_as_pca(model, self._clips(PCA_BATCHES))
        self._start_planes(model, 0)
        return model

    def grow(self, old: Model, number: int, start: Mapping[str, Tensor]) -> tuple[Model, set[str]]:
        """The model that a stage starts with, and the names of weights that it keeps as they were.

        Args:
            old: As the stage before left it.
            number: Of the stage.
            start: Weights of `STILLS` that the run began with.
        """
        new = self.fresh(number)
        inflated = self.config.stages[number].inflate is not None
        if inflated and isinstance(old, Autoencoder):  # a new bottleneck is fitted to what results
            old = copy.deepcopy(old)
            learn_from_stills(old, start)
        self._move(old, new, number)
        planes = self._start_planes(new, number)
        before = dict(old.named_parameters())
        alike = old.config.quantizer == new.config.quantizer
        begun = (
            *((PLANES,) if planes else ()),
            *(() if alike else OWN),
            *((*MOVING, *CLIPS) if inflated else ()),
        )
        return new, {name for name in before if not name.startswith(begun)}

    def _drawn(self, first: int, count: int, kinds: Collection[str], key: str) -> Iterator[Tensor]:
        """Batches of these kinds, spread from number `first` to the end; alike on all processes."""
        numbers = range(first, len(self.sampler))
        fitting = [n for n in numbers if self.sampler.source_of(n).kind in kinds]
        for number in fitting[:: max(1, len(fitting) // count)]:
            yield self.sampler.draw(number, CLIPS_EACH).tensors[key].to(self.device)

    def _clips(self, count: int, first: int = 0) -> Iterator[Tensor]:
        """Clips of batches from number `first` on."""
        for pixels in self._drawn(first, count, ("images", "pans", "videos"), "pixels"):
            yield to_float(pixels, torch.float32)

    def _move(self, old: Model, new: Model, stage: int) -> None:
        clips = self._clips(FIT_BATCHES, self._first_batch_of(stage))
        published = isinstance(new, OmniTokenizerNet)
        move_over(old, new, clips, self.config.stages[stage].inflate if published else None)

    def _first_batch_of(self, stage: int) -> int:
        return self.sampler.first_of(sum(s.steps for s in self.config.stages[:stage]))

    def _start_planes(self, model: Model, number: int) -> bool:
        """Give the 3D parts their first weights if this stage is the first with meshes."""
        kinds = [{source.kind for source in s.mix} for s in self.config.stages[: number + 1]]
        first = "meshes" in kinds[-1] and not any("meshes" in k for k in kinds[:-1])
        if not (first and isinstance(model, Autoencoder) and model.planes is not None):
            return False
        first_batch = self._first_batch_of(number)
        rasters = self._drawn(first_batch, PCA_BATCHES, ("meshes",), "raster")
        start_planes(model, list(rasters))
        return True
