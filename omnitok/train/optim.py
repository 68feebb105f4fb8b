"""The optimizer and its schedule."""

from __future__ import annotations

import torch
from torch import nn

from omnitok.train.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over everything that trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )


def rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Multiplier of the learning rate: up in `warmup` steps, flat, then linearly to zero."""
    up = (step + 1) / max(1, config.warmup)
    down = (total - step) / max(1.0, total * (1 - config.decay_from))
    return min(1.0, up, down)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(model: nn.Module, limit: float) -> torch.Tensor:
    """Scale gradients down to a total norm of `limit`; returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
