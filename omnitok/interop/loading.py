"""From a file of any known kind to a network: which system it is of is told by what it holds.

A file is either our own (safetensors with the config as JSON in its metadata) or as published: a
PyTorch file, read without running anything in it, or safetensors with the published names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omnitok.checkpoint import (
    CONFIG_KEY,
    SYSTEM_KEY,
    CheckpointError,
    build,
    check_match,
    fill,
    read_config,
    read_tensors,
    save_checkpoint,
)
from omnitok.config import TokenizerConfig
from omnitok.interop.safe_pickle import is_torch_file, load_torch_file
from omnitok.model import Autoencoder
from omnitok.tokenizer import Tokenizer

PREFIXES = ("", "module.", "model.", "_orig_mod.")  # that programs put before all names
HOLDERS = ("state_dict", "model")  # what programs call the tensors among other things


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file as it was published.

    Attributes:
        path: The file, for messages.
        name: What `omnitok.interop.registry` calls it, else None.
        tensors: By their published names.
        contents: All of the file, such as settings kept beside the tensors.
    """

    path: Path
    name: str | None
    tensors: Mapping[str, Tensor]
    contents: Mapping[str, Any]


def _untranslated(published: Published) -> tuple[Any, dict[str, Tensor]]:
    raise AssertionError("native weights are always our own files")


@dataclass(frozen=True, kw_only=True)
class System:
    """A family of networks.

    Attributes:
        name: What our own files call it; None for networks of our own design.
        marks: Names of some tensors that only its published files hold.
        translate: A published file to the config and the tensors by our names, which the caller
            holds against the network. Raises CheckpointError.
        read_config: What a config's `to_dict` gave, back to the config. Raises ValueError.
        build: The network of a config.
        wrap: The network in eval mode and the hash of its weights to what a user gets.
    """

    name: str | None
    marks: tuple[str, ...] = ()
    translate: Callable[[Published], tuple[Any, dict[str, Tensor]]] = _untranslated
    read_config: Callable[[Mapping[str, Any]], Any]
    build: Callable[[Any], nn.Module]
    wrap: Callable[[Any, str], Any]


NATIVE = System(name=None, read_config=TokenizerConfig.from_dict, build=Autoencoder, wrap=Tokenizer)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file whose tensors are still in it.

    Attributes:
        path: The file.
        system: What it is of.
        config: Of the network.
        tensors: By our names, not yet held against the config.
    """

    path: Path
    system: System
    config: Any
    tensors: dict[str, Tensor]

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        accept: Callable[[Path, str], None] | None = None,
    ) -> Any:
        """Build the network, give it the tensors, and wrap it for a user.

        Args:
            device: Where to compute.
            dtype: What to compute in; None means float32.
            accept: Given the file and the hash of its tensors; may raise CheckpointError.

        Raises:
            CheckpointError: The tensors do not fit the config.
        """
        network = build(self.path, self.config, self.system.build)
        digest = fill(self.path, network, self.tensors, device=device, dtype=dtype)
        if accept is not None:
            accept(self.path, digest)
        return self.system.wrap(network, digest)

    def outline(self) -> Any:
        """What a user gets, around a network without its weights: for its shapes alone."""
        return self.system.wrap(build(self.path, self.config, self.system.build), "")

    def save(self, path: Path) -> str:
        """Write the tensors and the config as a file of our own, which loads to equal bits.

        Returns:
            The hash of the tensors.

        Raises:
            CheckpointError: The tensors do not fit the config.
        """
        network = build(self.path, self.config, self.system.build)
        check_match(self.path, network.state_dict(), self.tensors)
        stored = set()
        for name, tensor in self.tensors.items():
            storage = tensor.untyped_storage().data_ptr()
            self.tensors[name] = tensor.clone() if storage in stored else tensor
            stored.add(storage)
        network.load_state_dict(self.tensors, assign=True)
        return save_checkpoint(path, network, system=self.system.name)


def open_weights(path: Path, systems: Sequence[System], name: str | None = None) -> Opened:
    """Open a file of one of `systems`.

    Args:
        path: The file.
        systems: What it may be of.
        name: What `omnitok.interop.registry` calls it, if known.

    Raises:
        CheckpointError: It is of none of them, or damaged.
    """
    metadata: dict[str, str] = {}
    try:
        is_torch = is_torch_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if is_torch:
        contents = load_torch_file(path)
    else:
        metadata, contents = read_tensors(path)
    if CONFIG_KEY in metadata:
        system, config = read_config(path, metadata, lambda values: _own(values, systems))
        return Opened(path=path, system=system, config=config, tensors=contents)
    published = _published(path, name, contents)
    system, prefix = _recognise(published, systems)
    config, tensors = system.translate(_without(prefix, published))
    return Opened(path=path, system=system, config=config, tensors=tensors)


def _own(values: Any, systems: Sequence[System]) -> tuple[System, Any]:
    """The system and the config that the JSON of our own file describes."""
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is not an object with named entries")
    name = values.get(SYSTEM_KEY)
    for system in systems:
        if system.name == name:
            return system, system.read_config({k: v for k, v in values.items() if k != SYSTEM_KEY})
    raise ValueError(f"system {name!r} is unknown; choose one of {[s.name for s in systems]}")


def _published(path: Path, name: str | None, contents: Any) -> Published:
    """Find the tensors of a published file."""
    if not isinstance(contents, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(contents).__name__}; expected published weights, tensors by name"
        )
    held = contents
    for _ in HOLDERS:  # one may hold the other
        inner = (held[key] for key in HOLDERS if key in held)
        held = next((value for value in inner if isinstance(value, Mapping)), held)
    tensors = {}
    for key, value in held.items():
        if isinstance(value, Tensor):
            if not isinstance(key, str):
                raise CheckpointError(
                    f"{path} calls a tensor by a {type(key).__name__}; expected published weights, "
                    "tensors by name"
                )
            _check_stored(path, key, value)
            tensors[key] = value.detach()
    return Published(path=path, name=name, tensors=tensors, contents=contents)


def _check_stored(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse tensors that are more than what is stored of them, or not stored as numbers."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: {name!r} is no plain tensor; save it as one")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: {name!r} is {list(tensor.shape)}, but only "
            f"{tensor.untyped_storage().nbytes():,} bytes of it are in the file"
        )


def _recognise(published: Published, systems: Sequence[System]) -> tuple[System, str]:
    """The system most of whose marks a file holds, and what is put before its names."""
    found = {
        (system, prefix): sum(prefix + mark in published.tensors for mark in system.marks)
        for prefix in PREFIXES
        for system in systems
    }
    best = max(found, key=lambda kind: found[kind])
    if not found[best]:
        names = sorted(published.tensors)[:3]
        known = sorted(system.name for system in systems if system.name)
        raise CheckpointError(
            f"{published.path} holds tensors of no known tokenizer (the first are {names}); "
            f"expected weights saved by omnitok, or those of one of {known}"
        )
    return best


def _without(prefix: str, published: Published) -> Published:
    """A file's tensors without what is put before their names."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in published.tensors.items():
        plain = name.removeprefix(prefix)
        if plain in tensors:
            raise CheckpointError(
                f"{published.path} holds {plain!r} twice, with and without {prefix!r}; save one of "
                "the two"
            )
        tensors[plain] = tensor
    return replace(published, tensors=tensors)
