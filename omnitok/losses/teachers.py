"""Frozen encoders of images (to distill from) and of captions: folders that transformers saved.

Shape suffixes: N pictures, C colours, H and W pixels, E width of the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        model = _load(folder, "AutoModel", use_safetensors=True)
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


class TextEncoder(nn.Module):
    """The text tower of a SigLIP or CLIP model, or the mean over the words of another; frozen.

    Args:
        folder: Holds a model and its tokenizer; nothing in it is run.

    Attributes:
        width: Channels of the embedding.

    Raises:
        CheckpointError: The folder holds no such model.
        ImportError: `transformers` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._words = _load(folder, "AutoTokenizer")
        model = _load(folder, "AutoModel", use_safetensors=True)
        self._paired = hasattr(model, "text_model")  # with images: trained on texts of one length
        self.tower = getattr(model, "text_model", model).eval().requires_grad_(False)
        self.width = self(["a"]).shape[1]

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """N captions to float32 [N, E]."""
        words = self._words(
            list(captions),
            padding="max_length" if self._paired else True,
            truncation=True,
            max_length=self.tower.config.max_position_embeddings,
            return_tensors="pt",
        ).to(next(self.tower.parameters()).device)
        if self._paired:  # padding is seen: SigLIP learned with it, and CLIP looks back alone
            pooled: Tensor = self.tower(input_ids=words["input_ids"]).pooler_output
            return pooled.float()
        result = self.tower(**words)
        mask = words["attention_mask"][..., None]
        mean: Tensor = (result.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        return mean


def _load(folder: str | Path, kind: str, **settings: bool) -> Any:
    """What a folder holds of a kind that `transformers` knows."""
    try:
        import transformers  # noqa: PLC0415  (optional dependency, slow)
    except ImportError as error:
        raise ImportError(
            f"reading {folder} needs transformers: pip install 'omnitok[llm]'"
        ) from error
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder; expected a model saved for transformers")
    try:
        return getattr(transformers, kind).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **settings
        )
    except (OSError, ValueError, KeyError) as error:
        what = "model" if kind == "AutoModel" else "tokenizer"
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{folder} holds no {what} for transformers: {reason}") from error


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels in [0, 1] that the model was trained with."""
    path = folder / "preprocessor_config.json"
    try:
        facts = json.loads(path.read_text()) if path.exists() else {}
        half = [0.5, 0.5, 0.5]
        return facts.get("image_mean", half), facts.get("image_std", half)
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); copy it again") from error
