"""Small files in the layout of published weights, with random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitok.interop.atoken import config_of, published_gaussian_name, published_name
from omnitok.interop.atoken_gaussians import GaussianConfig, GaussianDecoder, gaussian_stack
from omnitok.interop.atoken_net import ATokenModel

PATCH = (4, 8, 8)


def arch(**changes: Any) -> dict[str, Any]:
    """Published settings of a small AToken."""
    sides = {
        f"{side}_{name}": value
        for side, plain in (("encoder", True), ("decoder", False))
        for name, value in (
            ("model_channels", 144),
            ("num_heads", 2),
            ("num_blocks", 2),
            ("mlp_channels", 96),
            ("qk_rms_norm", not plain),
            ("use_bias", plain),
            ("use_rms_norm", not plain),
        )
    }
    return {**sides, "patch_size": PATCH, "latent_channels": 48, **changes}


def atoken_state(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Tensors of a small AToken by their published names."""
    torch.manual_seed(seed)
    model = ATokenModel(config_of("small", arch(**changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
    return {published_name(name): tensor for name, tensor in model.state_dict().items()}


def gaussian_state(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a small Gaussian decoder by their published names."""
    torch.manual_seed(seed)
    config = GaussianConfig(
        stack=gaussian_stack(64, 1, 2, 96, 8), latent_channels=192, num_gaussians=4
    )
    state = GaussianDecoder(config).state_dict()
    return {published_gaussian_name(name): tensor for name, tensor in state.items()}


def save(path: Path, state: dict[str, Any]) -> Path:
    """Write a file as published."""
    torch.save(state, path)
    return path
