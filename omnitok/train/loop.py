"""The training loop: a pure function of the config, the data and the step."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from omnitok.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from omnitok.losses.pixel import rmse_per_clip
from omnitok.model import Autoencoder
from omnitok.pixels import to_float
from omnitok.presets import preset
from omnitok.train.config import TrainConfig
from omnitok.train.optim import build_optimizer, clip_gradients, rate_factor, set_rate
from omnitok.train.pca import start_as_pca

PCA_STEPS = 48  # batches that the PCA is fitted to


class Batches(Protocol):
    """Where training clips come from."""

    def batch(self, step: int) -> Tensor:
        """[B, 3, T, H, W] uint8 of a step."""

    def draw(self, step: int) -> Tensor:
        """The same without preparing the next."""


class Trainer:
    """Trains one tokenizer; `run` again on the same folder goes on where it was.

    Args:
        config: What to do.
        out: Folder for the log, the state and the weights.
        batches: Training clips.
        validate: Called with the averaged model; returns scores for the log.
        device: Where to compute.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: str | Path,
        batches: Batches,
        validate: Callable[[Autoencoder], dict[str, float]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.out, self.batches = config, Path(out), batches
        self.validate, self.device = validate, torch.device(device)
        self.out.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds = 0, 0.0
        torch.manual_seed(config.seed)
        self.model = self._first_model().to(self.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.average = AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(config.optim.ema),  # type: ignore[no-untyped-call]
        )
        self._resume()
        if config.compile:
            for block in (*self.model.encoder.blocks, *self.model.decoder.blocks):
                block.compile(dynamic=False)

    def _first_model(self) -> Autoencoder:
        config = preset(self.config.preset)
        model = Autoencoder(config)
        if self.config.start_from is not None:
            start, _ = load_checkpoint(self.config.start_from)
            return start_from_other(model, start)
        if not self._state_file.exists():
            start_as_pca(model, self._pca_clips())
        return model

    def _pca_clips(self) -> Iterable[Tensor]:
        stride = max(1, self.config.steps // PCA_STEPS)
        for step in range(0, self.config.steps, stride):
            yield to_float(self.batches.draw(step), torch.float32)

    # one step

    def train_step(self) -> dict[str, float]:
        """One update; returns the values to log."""
        config, step = self.config, self.step
        torch.manual_seed(hash((config.seed, step)) % 2**63)  # the KL noise of this step
        clips = to_float(self.batches.batch(step).to(self.device), torch.float32)
        rate = config.optim.lr * rate_factor(step, config.steps, config.optim)
        set_rate(self.optimizer, rate)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.autocast):
            result = self.model(clips)
        terms = {"rmse": rmse_per_clip(result.recon, clips), **result.quantized.losses}
        weights = {"rmse": 1.0, **config.loss_weights}
        loss = torch.stack([terms[k] * w for k, w in weights.items() if k in terms]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(self.model, config.optim.clip)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradient of step {step} is not finite; the last good state is in {self.out}"
            )
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        return {k: float(v.detach()) for k, v in {"loss": loss, "norm": norm, **terms}.items()}

    def run(self, seconds: float | None = None) -> None:
        """Train to the end, or for about `seconds`; saves, logs and validates on the way."""
        started = time.monotonic()
        while self.step < self.config.steps:
            if seconds is not None and time.monotonic() - started > seconds:
                break
            begin = time.monotonic()
            values: dict[str, Any] = {"step": self.step, **self.train_step()}
            self.seconds += time.monotonic() - begin
            values["seconds"] = round(self.seconds, 2)
            if self.step % self.config.eval_every == 0 and self.validate is not None:
                values.update(self.validate(self.averaged()))
            self._log(values)
            if self.step % self.config.save_every == 0:
                self.save()
        self.save()

    def averaged(self) -> Autoencoder:
        """The model with averaged weights, in eval mode."""
        module: Autoencoder = self.average.module  # type: ignore[assignment]
        return module.eval()

    # state

    @property
    def _state_file(self) -> Path:
        return self.out / "state.pt"

    def save(self) -> None:
        """Write the state to resume from, and the averaged weights, each atomically."""
        state = {
            "config": json.dumps(asdict(self.config)),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self._state_file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._state_file)
        save_checkpoint(self.out / "weights.safetensors", self.averaged())

    def _resume(self) -> None:
        if not self._state_file.exists():
            return
        state = torch.load(self._state_file, map_location=self.device, weights_only=True)
        if state["config"] != json.dumps(asdict(self.config)):
            raise ValueError(
                f"{self._state_file} belongs to a run with another config; choose another folder "
                "or remove it"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._cut_log()

    def _cut_log(self) -> None:
        """Drop what was logged after the state was saved: those steps come again."""
        path = self.out / "log.csv"
        if path.exists():
            lines = [x for x in path.read_bytes().splitlines(keepends=True) if x.endswith(b"\n")]
            kept = [x for x in lines[1:] if int(x.split(b",", 1)[0]) < self.step]
            write_atomically(path, b"".join(lines[:1] + kept))

    def _log(self, values: dict[str, Any]) -> None:
        path = self.out / "log.csv"
        fields = ["step", "seconds", "loss", "norm", "rmse"]
        extra = {k: v for k, v in values.items() if k not in fields}
        new = not path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([*fields, "more"])
            row = [values.get(k, "") for k in fields]
            writer.writerow([*row, json.dumps(extra) if extra else ""])


@torch.no_grad()
def start_from_other(model: Autoencoder, start: Autoencoder) -> Autoencoder:
    """Weights of a trained tokenizer in a new one that may have another bottleneck.

    Blocks, embeddings and heads are taken over. Of the bottleneck's projections the leading
    channels are: they began as the strongest principal components.
    """
    kept = {
        name: tensor
        for name, tensor in start.state_dict().items()
        if not name.startswith(("to_latent", "from_latent", "quantizer"))
    }
    missing, unexpected = model.load_state_dict(kept, strict=False)
    wrong = [n for n in missing if not n.startswith(("to_latent", "from_latent", "quantizer"))]
    if wrong or unexpected:
        raise ValueError(f"the weights to start from do not fit: {[*wrong, *unexpected][:3]}")
    rank = min(model.quantizer.dim, start.quantizer.dim)
    for name, limit in (("to_latent", rank), ("from_latent", None)):
        new, old = getattr(model, name), getattr(start, name)
        if limit is not None:
            new.weight[:rank] = old.weight[:rank]
            new.bias[:rank] = old.bias[:rank]
        else:
            new.weight.zero_()
            new.weight[:, :rank] = old.weight[:, :rank]
            new.bias.copy_(old.bias)
    if model.quantizer.codebook_size is not None:
        model.from_latent.weight[:, :rank] *= 2.0  # codes lie in [-1, 1], latents in about +-2
    return model
