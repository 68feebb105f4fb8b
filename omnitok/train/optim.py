"""Optimizers and their schedule."""

from __future__ import annotations

import torch
from torch import nn

from omnitok.model import Autoencoder
from omnitok.train.config import OptimConfig


def build_optimizers(model: Autoencoder, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for the rest."""
    matrices = [
        p
        for stack in (model.encoder, model.decoder)
        for p in stack.parameters()
        if p.ndim == 2 and p.requires_grad
    ]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken and p.requires_grad]
    return [
        torch.optim.Muon(
            matrices,
            lr=config.matrix_lr,
            weight_decay=config.weight_decay,
            momentum=0.95,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW(
            others, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
        ),
    ]


def rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Multiplier of both learning rates: up in `warmup` steps, flat, then linearly to zero."""
    up = (step + 1) / max(1, config.warmup)
    down = (total - step) / max(1.0, total * (1 - config.decay_from))
    return min(1.0, up, down)


def set_rates(optimizers: list[torch.optim.Optimizer], config: OptimConfig, factor: float) -> None:
    """Set the rate of Muon and AdamW, in that order, to `factor` times its peak."""
    for optimizer, peak in zip(optimizers, (config.matrix_lr, config.lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor


def clip_gradients(model: nn.Module, limit: float) -> torch.Tensor:
    """Scale gradients down to a total norm of `limit`; returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
