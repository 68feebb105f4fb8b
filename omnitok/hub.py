"""From a name, a file or a folder to a tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from omnitok.checkpoint import CheckpointError
from omnitok.interop.atoken import ATOKEN, GAUSSIANS
from omnitok.interop.download import Meter, Progress
from omnitok.interop.loading import NATIVE, Opened, open_weights
from omnitok.interop.omnitokenizer import OMNITOKENIZER
from omnitok.interop.registry import PUBLISHED, fetch, hold_to_first, name_of
from omnitok.presets import PRESETS
from omnitok.tokenizer import Tokenizer

SYSTEMS = (NATIVE, ATOKEN, GAUSSIANS, OMNITOKENIZER)
SHIPPED = Path(__file__).parent / "weights"


def shipped() -> dict[str, Path]:
    """Name and file of the weights that come with the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def find_weights(name: str | Path, progress: Progress | None = None) -> Path:
    """The weights file that a name or path means; published weights are downloaded.

    Args:
        name: As `load` takes it.
        progress: Told how far a download is.

    Raises:
        CheckpointError: There is none.
    """
    known = shipped()
    if isinstance(name, str) and name in known:  # whatever else is called so where we are
        return known[name]
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        return path
    if str(name) in PUBLISHED:
        return fetch(str(name), progress)
    if str(name) in PRESETS:
        raise CheckpointError(
            f"preset {str(name)!r} is a shape without weights; choose one of {sorted(known)} or "
            "give the path of weights trained with it"
        )
    raise CheckpointError(
        f"no weights called {str(name)!r}: not a file or folder that holds them, nor one of "
        f"{sorted([*known, *PUBLISHED])}"
    )


def open_named(
    name: str | Path, progress: Progress | None = None, name_as: str | None = None
) -> Opened:
    """Open what a name or path means, its tensors still in the file.

    Args:
        name: As `load` takes it.
        progress: As `load` takes it.
        name_as: Published name of a file, where its own name does not tell.

    Raises:
        CheckpointError: As `load`.
    """
    if progress is None and sys.stderr.isatty():
        progress = Meter()
    path = find_weights(name, progress)
    return open_weights(path, SYSTEMS, name_as or name_of(path))


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Tokenizer:
    """Load a tokenizer in eval mode, without gradients.

    Args:
        name: "tiny" (discrete) or "tiny-kl" (continuous), which ship in the package; weights that
            others published (`omnitok.interop.registry`), which are downloaded once; a weights
            file, ours or as published by others; or a folder that holds `model.safetensors`.
        device: Where to compute.
        dtype: What to compute in; None means float32.
        progress: Told how far a download is; None shows it on a terminal.

    Raises:
        CheckpointError: There are no such weights, or the file is damaged or of no known kind.
    """
    return open_named(name, progress).load(device, dtype, accept=hold_to_first)  # type: ignore[no-any-return]
