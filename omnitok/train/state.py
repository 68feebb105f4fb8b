"""Checkpoints of a run: all that is needed to go on, and weights that `omnitok.load` takes.

Each is written to a temporary name and renamed, weights first, so that a kill at any moment leaves
the one before. Tensors are whole, whatever number of processes saved them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnitok.checkpoint import replacing
from omnitok.train.optim import Average, Optimizer
from omnitok.train.parallel import put, whole

_NAME = re.compile(r"step-(\d+)\.pt")


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: Where; made if it is missing.
        keep: How many of the last ones stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, the last one first."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(m[1]) for m in found if m), reverse=True)

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step:07d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint and drop those beyond `keep`."""
        with replacing(self.path(step)) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
        for old in self.steps()[self.keep :]:
            self.path(old).unlink()

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The last checkpoint: its step and its state; None if there is none."""
        for stale in self.folder.glob(".*.tmp"):  # of a run that was killed
            stale.unlink()
        for step in self.steps()[:1]:
            return step, torch.load(
                self.path(step), map_location="cpu", weights_only=True, mmap=True
            )
        return None


def pack(model: nn.Module, optimizer: Optimizer, average: Average) -> dict[str, Any]:
    """Everything that a step changes, as full tensors by name; every process must ask."""
    parameters = dict(model.named_parameters())
    return {
        "model": {name: whole(tensor) for name, tensor in model.state_dict().items()},
        "average": {name: whole(tensor) for name, tensor in average.values.items()},
        "optimizer": {
            name: {key: whole(value) for key, value in optimizer.state[parameter].items()}
            for name, parameter in parameters.items()
        },
    }


def unpack(state: dict[str, Any], model: nn.Module, optimizer: Optimizer, average: Average) -> None:
    """Put back what `pack` returned."""
    _fill(dict(model.state_dict(keep_vars=True)), state["model"])
    _fill(average.values, state["average"])
    for name, parameter in model.named_parameters():
        optimizer.restore(parameter, state["optimizer"][name])


def _fill(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        put(targets[name], value)
