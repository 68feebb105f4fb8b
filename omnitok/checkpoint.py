"""Weights on disk: one safetensors file whose metadata holds the config as JSON.

Nothing in a checkpoint is ever executed: tensors come from safetensors, the config from JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnitok.config import TokenizerConfig
from omnitok.model import Autoencoder

CONFIG_KEY = "omnitok_config"
CARD_KEY = "omnitok_card"
SYSTEM_KEY = "system"  # in the config of published systems
MESSAGE = 300  # characters of an error that may quote what a stranger wrote


T = TypeVar("T")
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """A file is not a checkpoint that can be loaded; the message says why and what to do."""


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors sorted by name (name, dtype, shape, bytes); re-saving keeps it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{str(tensor.dtype)[6:]}:{list(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it after the block; a failure leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors leaves a file to its owner alone
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    card: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> str:
    """Write a model's weights and config.

    Args:
        path: A .safetensors file; replaced atomically.
        model: What to save; its `config` has `to_dict()`.
        dtype: Storage type of floating-point tensors; None keeps each tensor's own.
        card: Facts about the training to keep with the weights (JSON).
        system: Which published system it is of (see `omnitok.interop.loading`); None for ours.

    Returns:
        The hash of the stored tensors (see `hash_weights`).
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else None)
        for name, tensor in model.state_dict().items()
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    config = model.config.to_dict() | ({SYSTEM_KEY: system} if system else {})  # type: ignore[operator, union-attr]
    metadata = {CONFIG_KEY: json.dumps(config, sort_keys=True)}
    if card is not None:
        metadata[CARD_KEY] = json.dumps(card, sort_keys=True)
    try:
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}); free some space or choose another folder"
        ) from error
    return hash_weights(tensors)


def read_card(path: str | Path) -> dict[str, Any]:
    """The training facts stored by `save_checkpoint`; empty if there are none."""
    with safe_open(str(path), "pt") as file:
        return json.loads((file.metadata() or {}).get(CARD_KEY, "{}"))  # type: ignore[no-any-return]


def load_checkpoint(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[Autoencoder, str]:
    """Rebuild a model from a file written by `save_checkpoint`.

    Args:
        path: The .safetensors file.
        device: Where the weights go.
        dtype: Floating-point type to compute in; None means float32.

    Returns:
        The model in eval mode without gradients, and the hash of the stored tensors.

    Raises:
        CheckpointError: Not a checkpoint of ours, cut short, or its tensors do not match its
            config.
    """
    metadata, tensors = read_tensors(path)
    if CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{path} has no {CONFIG_KEY!r} in its metadata; expected weights saved by omnitok"
        )
    config = read_config(path, metadata, TokenizerConfig.from_dict)
    model = build(path, config, Autoencoder)
    return model, fill(path, model, tensors, device=device, dtype=dtype)


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; the tensors stay in the file until used."""
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a weights file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from error


def read_config(
    path: str | Path, metadata: Mapping[str, str], from_dict: Callable[[dict[str, Any]], T]
) -> T:
    """The config in the metadata of a file of ours."""
    try:
        return from_dict(json.loads(metadata[CONFIG_KEY]))
    except (ValueError, RecursionError) as error:
        reason = str(error)[:MESSAGE]
        raise CheckpointError(f"{path} holds a config that cannot be used: {reason}") from error


def build(path: str | Path, config: C, network: Callable[[C], M]) -> M:
    """The network of a config, without memory for its weights."""
    try:
        with torch.device("meta"):
            return network(config)
    except (ValueError, TypeError, RuntimeError) as error:  # a choice or a size that no part knows
        reason = str(error)[:MESSAGE]
        raise CheckpointError(f"{path} holds a config that cannot be built: {reason}") from error


def fill(
    path: str | Path,
    model: nn.Module,
    tensors: dict[str, Tensor],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> str:
    """Give a network from `build` its weights, all of them; `tensors` is emptied.

    Returns:
        The hash of the tensors.

    Raises:
        CheckpointError: Tensors are missing, left over, misshapen or not finite.
    """
    check_match(path, model.state_dict(), tensors)
    digest = hash_weights(tensors)
    wanted = dtype or torch.float32
    for name in list(tensors):
        tensor = tensors[name]
        tensors[name] = tensor.to(device, wanted if tensor.is_floating_point() else None)
        if not _is_finite(tensors[name]):
            raise CheckpointError(
                f"{path}: {name!r} holds numbers that are not finite in {str(wanted)[6:]}; use an "
                "earlier checkpoint or a wider type"
            )
    model.load_state_dict(tensors, assign=True)
    tensors.clear()
    model.requires_grad_(False).eval()
    return digest


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are, without a table of which; its ends tell."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def check_match(
    path: str | Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are missing, left over or misshapen: a CheckpointError names the first.

    Args:
        path: The file, for messages.
        wanted: The state of a network.
        found: What a file holds.
    """
    for name in sorted(set(wanted) | set(found)):
        if name not in found:
            raise CheckpointError(f"{path} lacks the tensor {name!r} that its config asks for")
        if name not in wanted:
            raise CheckpointError(f"{path} holds {name!r}, which its config has no place for")
        if wanted[name].shape != found[name].shape:
            raise CheckpointError(
                f"{path}: {name!r} is {list(found[name].shape)}, but its config makes it "
                f"{list(wanted[name].shape)}"
            )
        if wanted[name].is_floating_point() != found[name].is_floating_point():
            raise CheckpointError(
                f"{path}: {name!r} is {str(found[name].dtype)[6:]}, but its config makes it "
                f"{str(wanted[name].dtype)[6:]}"
            )
