"""What the trainer calls: one face for every model and every kind of batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnitok.checkpoint import save_checkpoint
from omnitok.config import TokenizerConfig
from omnitok.interop.omnitokenizer import OMNITOKENIZER
from omnitok.interop.omnitokenizer_config import OmniTokenizerConfig
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from omnitok.losses import LossInputs, LossResult, LossSet, build
from omnitok.losses.sharing import Draws
from omnitok.losses.teachers import ImageEncoder, TextEncoder
from omnitok.model import Autoencoder
from omnitok.pixels import to_float
from omnitok.planes import PlaneBatch
from omnitok.presets import preset
from omnitok.quantize import KL
from omnitok.train.captions import CAPTIONED, captions_of
from omnitok.train.config import ConfigError, SourceConfig, StageConfig, check_numbers
from omnitok.train.sampler import Batch

Model = Autoencoder | OmniTokenizerNet
OMNITOKENIZER_RANGE = 0.5  # its pixels lie in +- this


def build_model(values: Mapping[str, Any], quantizer: Mapping[str, Any] | None) -> Model:
    """A fresh model.

    Args:
        values: {"preset": NAME} with entries of its config to replace, or {"system":
            "omnitokenizer"} with entries of its config.
        quantizer: Bottleneck to use instead of the model's own.

    Raises:
        ConfigError: There is no such model.
    """
    values = dict(values)
    system, name = values.pop("system", None), values.pop("preset", None)
    own: dict[str, Any] = {"quantizer": dict(quantizer)} if quantizer is not None else {}
    try:
        if system == "omnitokenizer":
            if quantizer is not None and quantizer.get("kind") == "kl":
                own["unit_latents"] = False  # only codes are looked up by direction
            return OmniTokenizerNet(OmniTokenizerConfig.from_dict({**values, **own}))
        if system is not None or name is None:
            raise ConfigError(
                "model needs preset: NAME (or system: omnitokenizer), as in model=tiny-kl"
            )
        base = preset(name).to_dict()
        return Autoencoder(TokenizerConfig.from_dict(_merge(base, {**values, **own})))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"model: {error.args[0]}") from error


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `changes` over those of `base`; a quantizer is replaced as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        deep = key != "quantizer" and isinstance(value, Mapping) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if deep else value
    return merged


def save_model(path: str | Path, model: Model) -> None:
    """Write weights that `omnitok.load` takes."""
    system = OMNITOKENIZER.name if isinstance(model, OmniTokenizerNet) else None
    save_checkpoint(path, model, system=system)


class Network(nn.Module):
    """A model as one module to call, as wrappers for many processes need it.

    Args:
        model: What learns.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self._encoded = torch.empty(0)
        model.to_latent.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._encoded = inputs[0]

    def forward(
        self, given: Tensor | PlaneBatch, wanted: Collection[str] = ()
    ) -> tuple[Any, Tensor]:
        """Clips in [-1, 1] to a `Reconstruction`, 3D assets to a `PlaneResult`.

        Args:
            given: The batch.
            wanted: Terms of the model that are trained for. The others have no gradient: with
                several processes every weight behind an output has to get one.

        Returns:
            The result, and [B, N, D] the tokens of the encoder.
        """
        result = self._run(given)
        for terms in (result.quantized.losses, getattr(result, "losses", {})):
            for name in set(terms) - set(wanted):
                terms[name] = terms[name].detach()
        encoded = self._encoded.flatten(1, -2)
        self._encoded = torch.empty(0)
        return result, encoded

    def _run(self, given: Tensor | PlaneBatch) -> Any:
        if isinstance(given, PlaneBatch):
            assert isinstance(self.model, Autoencoder)  # the others have no meshes in their mix
            return self.model.forward_planes(given)
        if isinstance(self.model, OmniTokenizerNet):
            result = self.model(given * OMNITOKENIZER_RANGE)
            result.recon = result.recon / OMNITOKENIZER_RANGE
            return result
        return self.model(given)


def share_noise(model: nn.Module, rank: int, size: int) -> None:
    """Let a process draw the part of the noise that belongs to its part of every batch."""
    for module in model.modules():
        if isinstance(module, KL):
            module.share = (rank, size)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All transformer blocks."""
    stacks = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    return [block for stack in stacks for block in stack.blocks]  # type: ignore[union-attr]


def _last_layer(model: Model, frames: int) -> list[Tensor]:
    """The weights that make the pixels: of still patches, and of moving ones if there are any."""
    heads = model if isinstance(model, Autoencoder) else model.decoder
    return [head.weight for head in (heads.head_first, heads.head)[: 1 + (frames > 1)]]


def stack_checkpointing(model: nn.Module, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them."""
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = on  # type: ignore[assignment]


class Objectives:
    """The losses of every stage and source, each set built once.

    Args:
        stages: Of the run.
        device: Where they compute.
    """

    def __init__(self, stages: list[StageConfig], device: torch.device) -> None:
        self.sets: dict[str, LossSet] = {}
        self._planes: dict[str, Mapping[str, float]] = {}
        for stage in stages:
            for source in stage.mix:
                losses = source.losses if source.losses is not None else stage.losses
                if source.kind == "meshes":
                    check_numbers(f"stage {stage.name!r}: losses of meshes", losses)
                    self._planes[repr(losses)] = losses
                elif repr(losses) not in self.sets:
                    try:
                        self.sets[repr(losses)] = _build(losses, device)
                    except (ValueError, ImportError) as error:
                        raise ConfigError(f"stage {stage.name!r}: {error}") from error

    def heads(self) -> list[nn.Parameter]:
        """What learns with the model."""
        return [p for losses in self.sets.values() for p in losses.head_parameters()]

    def discriminators(self) -> list[nn.Parameter]:
        """What learns against the model."""
        return [p for losses in self.sets.values() for p in losses.discriminator_parameters()]

    def of(self, stage: StageConfig, source: SourceConfig) -> LossSet | Mapping[str, float]:
        """The losses of a batch; for meshes weights of the terms that the model returns."""
        losses = source.losses if source.losses is not None else stage.losses
        return self._planes[repr(losses)] if source.kind == "meshes" else self.sets[repr(losses)]

    def state_dict(self) -> list[dict[str, Any]]:
        """What has learned, in the order of the stages."""
        return [losses.state_dict() for losses in self.sets.values()]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Put back what `state_dict` returned."""
        for losses, values in zip(self.sets.values(), state, strict=True):
            losses.load_state_dict(values)


def _build(losses: Mapping[str, Any], device: torch.device) -> LossSet:
    """Losses from {name: weight} or {name: settings}.

    Those settings may also name folders with models for transformers: "distill" its `teacher`, and
    what looks at captions `texts`, an encoder of them.
    """
    configs = {
        name: dict(value) if isinstance(value, Mapping) else {"weight": value}
        for name, value in losses.items()
    }
    captions = captions_of(losses)
    folder = configs.get("distill", {}).pop("teacher", None)
    for name in CAPTIONED:
        configs.get(name, {}).pop("texts", None)
    return build(
        configs,
        teacher=None if folder is None else ImageEncoder(folder).to(device),
        reader=None
        if captions is None or captions.encoder is None
        else TextEncoder(captions.encoder).to(device),
    ).to(device)


@contextmanager
def _told(batch: Batch) -> Iterator[None]:
    """Say which batch it was that the model or a loss refused."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.tensors.items())
        raise ConfigError(f"a batch of {batch.kind} ({shapes}) is of no use: {error}") from error


def run_batch(
    network: nn.Module,
    model: Model,
    batch: Batch,
    losses: LossSet | Mapping[str, float],
    device: torch.device,
    step: int,
    autocast: bool,
    draws: Draws | None = None,
) -> tuple[LossResult, LossInputs | None]:
    """Forward pass and losses of one batch.

    Args:
        network: The model as a `Network`, wrapped or not.
        model: The same, bare.
        batch: What it sees.
        losses: What it is asked for.
        device: Where to compute.
        step: Of the stage.
        autocast: Whether to compute in bfloat16 where that is safe.
        draws: Random numbers of the losses.

    Returns:
        The losses, and for clips what a discriminator looks at.

    Raises:
        ConfigError: The model cannot take the clips, or a loss not what the model returns.
    """
    with _told(batch):
        if isinstance(losses, Mapping):
            planes = PlaneBatch(**batch.tensors).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                result, _ = network(planes, list(losses))
            terms = {**result.losses, **result.quantized.losses}
            if missing := sorted(set(losses) - set(terms)):
                raise ConfigError(f"meshes have no loss {missing[0]!r}; choose of {sorted(terms)}")
            total = torch.stack([weight * terms[name] for name, weight in losses.items()]).sum()
            return LossResult(total, {name: term.detach() for name, term in terms.items()}), None
        pixels = batch.tensors["pixels"].to(device, non_blocking=True)
        clips = to_float(pixels, torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            result, encoded = network(clips, list(losses.losses))
        text = batch.tensors.get("text")
        inputs = LossInputs(
            recon=result.recon,
            target=clips,
            quantized=result.quantized,
            features=encoded,
            text=None if text is None else text.to(device),
            captions=batch.captions or None,
            last_layer=_last_layer(model, clips.shape[2]),
            step=step,
            draws=draws or Draws(),
        )
        return losses(inputs), inputs
