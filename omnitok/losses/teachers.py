"""Frozen image encoders to distill from: folders as `transformers` saves them.

Shape suffixes: N pictures, C colours, H and W pixels, E width of the embedding.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.checkpoint import CheckpointError


class ImageEncoder(nn.Module):
    """The image tower of a SigLIP, CLIP, DINOv2 or similar model; frozen.

    Args:
        folder: Holds config.json and model.safetensors; nothing in it is run.

    Attributes:
        width: Channels of the embedding.

    Raises:
        CheckpointError: The folder holds no such model.
        ImportError: `transformers` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        try:
            from transformers import AutoModel  # noqa: PLC0415  (optional dependency, slow)
        except ImportError as error:
            raise ImportError(
                f"reading {folder} needs transformers: pip install 'omnitok[llm]'"
            ) from error
        try:
            model = AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"{folder} holds no model for transformers: {reason}") from error
        self.tower = getattr(model, "vision_model", model).eval().requires_grad_(False)
        config = self.tower.config
        self.width: int = config.hidden_size
        self._side: int = config.image_size
        mean, std = _normalisation(Path(folder))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1], scaled to the model's own size, to [N, E]."""
        size = (self._side, self._side)
        x = F.interpolate(x_NCHW.float(), size, mode="bilinear", antialias=True)
        x = ((x + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        result = self.tower(pixel_values=x.to(next(self.tower.parameters()).dtype))
        pooled: Tensor | None = getattr(result, "pooler_output", None)
        return result.last_hidden_state.mean(1) if pooled is None else pooled


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels in [0, 1] that the model was trained with."""
    path = folder / "preprocessor_config.json"
    try:
        facts = json.loads(path.read_text()) if path.exists() else {}
        half = [0.5, 0.5, 0.5]
        return facts.get("image_mean", half), facts.get("image_std", half)
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); copy it again") from error
