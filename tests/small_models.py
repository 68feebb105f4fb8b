"""Every preset as a model that is quick to run and far from the identity."""

from __future__ import annotations

from dataclasses import replace

import torch

from omnitok.config import PlanesConfig, StackConfig
from omnitok.model import Autoencoder
from omnitok.planes import PlaneBatch
from omnitok.presets import preset
from omnitok.tokenizer import Tokenizer

FULL = ("tiny", "tiny-kl")


def _shrink(stack: StackConfig) -> StackConfig:
    """The same kind of stack, one period of its layers deep and two narrow heads wide."""
    kinds = tuple(dict.fromkeys(stack.layers))
    return replace(stack, width=48, heads=2, layers=kinds * (2 // len(kinds) or 1), mlp_hidden=64)


def small_model(name: str, seed: int = 0) -> Autoencoder:
    """The preset with random weights; all but `tiny` and `tiny-kl` are made smaller."""
    config = preset(name)
    if name not in FULL:
        config = replace(config, encoder=_shrink(config.encoder), decoder=_shrink(config.decoder))
    torch.manual_seed(seed)
    model = Autoencoder(config)
    with torch.no_grad():
        for parameter in model.parameters():  # blocks start as the identity and would hide faults
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(std=0.2)
    return model


def small_tokenizer(name: str, seed: int = 0) -> Tokenizer:
    """A tokenizer around `small_model`."""
    return Tokenizer(small_model(name, seed).requires_grad_(False), f"{seed:064x}")


def noise(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 [T, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


def plane_batch(
    config: PlanesConfig, batch: int = 1, points: int = 16, seed: int = 0
) -> PlaneBatch:
    """Random 3D assets as a training step takes them."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return PlaneBatch(
        raster=rand(batch, 3, config.channels, config.raster, config.raster),
        points=rand(batch, points, 3) * 2 - 1,
        inside=rand(batch, points).round(),
        weights=torch.ones(batch, points),
        surface=rand(batch, points, 3) * 2 - 1,
        colors=rand(batch, points, 3),
        colored=torch.ones(batch),
    )
