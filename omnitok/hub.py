"""From a name, a file or a folder to a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from omnitok.checkpoint import CheckpointError
from omnitok.interop.atoken import ATOKEN, GAUSSIANS
from omnitok.interop.loading import NATIVE, open_weights
from omnitok.interop.omnitokenizer import OMNITOKENIZER
from omnitok.presets import PRESETS
from omnitok.tokenizer import Tokenizer

SYSTEMS = (NATIVE, ATOKEN, GAUSSIANS, OMNITOKENIZER)
SHIPPED = Path(__file__).parent / "weights"


def shipped() -> dict[str, Path]:
    """Name and file of the weights that come with the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def find_weights(name: str | Path) -> Path:
    """The weights file that a name or path means.

    Raises:
        CheckpointError: There is none.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.exists():
        return path
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    if str(name) in PRESETS:
        raise CheckpointError(
            f"preset {str(name)!r} is a shape without weights; choose one of {sorted(known)} or "
            "give the path of weights trained with it"
        )
    raise CheckpointError(
        f"no weights called {str(name)!r}: not a file or folder, nor one of {sorted(known)}"
    )


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tokenizer:
    """Load a tokenizer in eval mode, without gradients.

    Args:
        name: "tiny" (discrete) or "tiny-kl" (continuous), which ship in the package; a weights
            file, ours or as published by others; or a folder that holds `model.safetensors`.
        device: Where to compute.
        dtype: What to compute in; None means float32.

    Raises:
        CheckpointError: There are no such weights, or the file is damaged or of no known kind.
    """
    return open_weights(find_weights(name), SYSTEMS).load(device, dtype)  # type: ignore[no-any-return]
