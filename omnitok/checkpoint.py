"""Weights on disk: one safetensors file whose metadata holds the config as JSON.

Nothing in a checkpoint is ever executed: tensors come from safetensors, the config from JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from omnitok.config import TokenizerConfig
from omnitok.model import Autoencoder

CONFIG_KEY = "omnitok_config"
CARD_KEY = "omnitok_card"


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


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, then rename; a failure leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(
    path: str | Path,
    model: Autoencoder,
    *,
    dtype: torch.dtype | None = None,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Write a model's weights and config.

    Args:
        path: A .safetensors file; replaced atomically.
        model: What to save.
        dtype: Storage type of floating-point tensors; None keeps each tensor's own.
        card: Facts about the training to keep with the weights (JSON).

    Returns:
        The hash of the stored tensors (see `hash_weights`).
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else None)
        for name, tensor in model.state_dict().items()
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {CONFIG_KEY: json.dumps(model.config.to_dict(), sort_keys=True)}
    if card is not None:
        metadata[CARD_KEY] = json.dumps(card, sort_keys=True)
    write_atomically(Path(path), save(tensors, metadata))
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
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if CONFIG_KEY not in metadata:
                raise CheckpointError(
                    f"{path} has no {CONFIG_KEY!r} in its metadata; expected weights saved by "
                    "omnitok"
                )
            config = TokenizerConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a weights file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds a config that cannot be used: {error}") from error
    try:
        with torch.device("meta"):
            model = Autoencoder(config)
    except (ValueError, TypeError, RuntimeError) as error:  # a choice or a size that no part knows
        raise CheckpointError(f"{path} holds a config that cannot be built: {error}") from error
    _check_match(str(path), model.state_dict(), tensors)
    digest = hash_weights(tensors)
    wanted = dtype or torch.float32
    for name in list(tensors):
        tensor = tensors[name]
        tensors[name] = tensor.to(device, wanted if tensor.is_floating_point() else None)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval(), digest


def _check_match(path: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
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
