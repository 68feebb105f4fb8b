"""The optimizer, its schedule, and the average of the weights it has been through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from omnitok.train.config import OptimConfig, StageConfig, TrainConfig
from omnitok.train.parallel import put

Moments = dict[Tensor, dict[str, Tensor]]


class Optimizer:
    """AdamW over everything that can learn; matrices decay, vectors do not.

    Every moment exists from the start, so that parameters which a stage leaves alone are saved and
    restored like all others.

    Args:
        model: What learns.
        heads: What learns with it, and is left out of checkpoints of the model.
        config: Rates and decay.
    """

    def __init__(
        self, model: nn.Module, heads: Sequence[nn.Parameter], config: OptimConfig
    ) -> None:
        self._heads = list(heads)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            scale = next((f for p, f in config.lr_scale.items() if name.startswith(p)), 1.0)
            groups.setdefault((decay, scale), []).append(parameter)
        if heads:
            groups.setdefault((0.0, 1.0), []).extend(heads)
        self._adam = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": decay, "scale": scale}
                for (decay, scale), parameters in groups.items()
            ],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )
        self.state: Moments = self._adam.state
        for parameters in groups.values():
            for parameter in parameters:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
                }

    def step(self) -> None:
        """Update all that has a gradient."""
        self._adam.step()

    def zero_grad(self) -> None:
        """Forget gradients."""
        self._adam.zero_grad(set_to_none=True)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all groups, each times its own factor."""
        for group in self._adam.param_groups:
            group["lr"] = rate * group["scale"]

    def restore(self, parameter: Tensor, moments: Mapping[str, Tensor]) -> None:
        """Put back the moments of a parameter, given as full tensors."""
        for key, value in moments.items():
            put(self.state[parameter][key], value)

    def head_state(self) -> list[dict[str, Tensor]]:
        """Moments of the heads."""
        return [{k: v.cpu().clone() for k, v in self.state[p].items()} for p in self._heads]

    def load_head_state(self, state: list[dict[str, Tensor]]) -> None:
        """Put back what `head_state` returned."""
        for parameter, moments in zip(self._heads, state, strict=True):
            self.restore(parameter, moments)


def schedule_of(config: TrainConfig, stage: StageConfig, step: int, inside: int) -> float:
    """Learning rate of a step: `inside` its stage if that has a schedule, else of the run."""
    if stage.optim is not None:
        return learning_rate(stage.optim, inside, stage.steps)
    return learning_rate(config.optim, step, config.steps)


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Up in `warmup` steps, then by the schedule to `min_lr`."""
    up = (step + 1) / max(1, config.warmup)
    if config.schedule == "trapezoid":
        down = (total - step) / max(1.0, total * (1 - config.decay_from))
    elif config.schedule == "cosine":
        down = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total))
    else:
        down = 1.0
    if up < min(1.0, down):
        return config.lr * up
    return config.min_lr + (config.lr - config.min_lr) * min(1.0, down)


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale gradients down to a total norm of `limit`; returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Average:
    """Exponential moving average of a model's parameters.

    Args:
        model: What to follow, from where it stands.
        decay: Share of the old average that a step keeps.

    Attributes:
        values: Name -> averaged parameter; sharded as the parameter is.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model."""
        now = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(self.values.values()), now, 1 - self.decay)
