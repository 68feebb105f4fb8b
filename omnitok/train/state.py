"""Checkpoints of a run: all that is needed to go on, and weights that `omnitok.load` takes.

Each is written to a temporary name and renamed, weights first, so that a kill at any moment leaves
the one before. Tensors are whole, whatever number of processes saved them.
"""

from __future__ import annotations

import os
import pickle
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnitok.checkpoint import replacing
from omnitok.train.config import ConfigError
from omnitok.train.optim import Average, Optimizer
from omnitok.train.parallel import put, whole

_NAME = re.compile(r"step-(\d+)\.pt")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is missing, so that no second run writes into it meanwhile.

    Raises:
        ConfigError: It is a file, or another run is in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose a folder for the run")
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield  # which has no such locks
        return
    import fcntl  # noqa: PLC0415

    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go if we are killed
        except OSError:
            file.seek(0)
            raise ConfigError(
                f"{folder} is in use by another run ({file.read() or 'unknown'}); stop that one or "
                "choose another folder"
            ) from None
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
        yield


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
        """Write a checkpoint and drop those beyond `keep`.

        Raises:
            OSError: It cannot be written; those before are as they were.
        """
        try:
            with replacing(self.path(step)) as temporary, open(temporary, "wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # torch's own, on top of what failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        for old in self.steps()[self.keep :]:
            self.path(old).unlink()

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The last checkpoint: its step and its state; None if there is none.

        Raises:
            ConfigError: It is damaged.
        """
        halves = self.folder.glob(".*.tmp"), self.folder.parent.glob(".*.safetensors.*.tmp")
        for stale in chain(*halves):  # of a run that was killed
            stale.unlink(missing_ok=True)  # every process of a run tries to
        for step in self.steps()[:1]:
            path = self.path(step)
            try:
                return step, torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
                reason = (str(error).splitlines() or ["it ends too soon"])[0]
                raise ConfigError(
                    f"{path} is damaged ({reason}); remove it to go on from the one before"
                ) from error
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
