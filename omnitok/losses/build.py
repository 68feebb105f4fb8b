"""All losses of a stage: from their configs to named terms and a weighted total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn

from omnitok.losses import bottleneck, pixel
from omnitok.losses.adversarial import Adversarial, AdversarialConfig, adaptive_factor
from omnitok.losses.base import Loss, LossConfig, LossInputs
from omnitok.losses.perceptual import LPIPS, Gram, PerceptualConfig
from omnitok.losses.semantic import (
    Contrastive,
    ContrastiveConfig,
    Distill,
    DistillConfig,
    Reader,
    Teacher,
)
from omnitok.losses.trunk import Trunk, load_trunk
from omnitok.token_facts import TokensError, conform

_PERCEPTUAL: dict[str, Callable[[PerceptualConfig, Trunk], Loss]] = {"lpips": LPIPS, "gram": Gram}
_LOSSES: dict[str, tuple[type[LossConfig], Callable[[Any], Loss]]] = {
    "l1": (pixel.PixelConfig, pixel.l1),
    "l2": (pixel.PixelConfig, pixel.l2),
    "rmse": (pixel.PixelConfig, pixel.rmse),
    "logit_laplace": (pixel.PixelConfig, pixel.logit_laplace_loss),
    "huber": (pixel.HuberConfig, pixel.huber),
    "charbonnier": (pixel.CharbonnierConfig, pixel.charbonnier_loss),
    "gan2d": (AdversarialConfig, partial(Adversarial, axes=2)),
    "gan3d": (AdversarialConfig, partial(Adversarial, axes=3)),
    "kl": (bottleneck.KLConfig, bottleneck.KL),
    **{
        name: (bottleneck.BottleneckConfig, partial(bottleneck.Bottleneck, name=name))
        for name in bottleneck.TERMS
        if name != "kl"
    },
}
CONFIGS: dict[str, type[LossConfig]] = {
    **{name: config for name, (config, _) in _LOSSES.items()},
    **dict.fromkeys(_PERCEPTUAL, PerceptualConfig),
    "contrastive": ContrastiveConfig,
    "distill": DistillConfig,
}


class LossResult(NamedTuple):
    """What training needs.

    Attributes:
        total: Weighted sum.
        terms: Each term, unweighted and detached.
    """

    total: Tensor
    terms: dict[str, Tensor]


class LossSet(nn.Module):
    """The losses of a stage.

    Its state holds discriminators and heads, but no frozen network.

    Args:
        losses: By name, in the order of the sum.
    """

    def __init__(self, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        order = sorted(losses, key=lambda name: isinstance(losses[name], Adversarial))
        self.losses = nn.ModuleDict({name: losses[name] for name in order})

    def forward(self, inputs: LossInputs) -> LossResult:
        """The terms that the tokenizer (and the heads of semantic losses) minimise."""
        total = torch.zeros((), device=inputs.recon.device)
        logged: dict[str, Tensor] = {}
        for name, loss in self._items():
            for suffix, term in loss.terms(inputs).items():
                weighted = loss.weights[suffix] * term
                if isinstance(loss, Adversarial) and loss.config.adaptive and not suffix:
                    factor = self._factor(total, term, loss, inputs)
                    weighted, logged[f"{name}_factor"] = weighted * factor, factor
                total = total + weighted
                logged[name + suffix] = term.detach()
        return LossResult(total, logged)

    def discriminate(self, inputs: LossInputs) -> LossResult | None:
        """The terms that discriminators minimise; None if none of them plays at this step."""
        total, logged = torch.zeros((), device=inputs.recon.device), dict[str, Tensor]()
        playing = [(n, x) for n, x in self._items() if isinstance(x, Adversarial)]
        playing = [(name, loss) for name, loss in playing if loss.plays(inputs)]
        for name, loss in playing:
            terms = loss.discriminate(inputs)
            total = total + loss.discriminator_total(terms)
            logged |= {f"{name}_discriminator{k}": term.detach() for k, term in terms.items()}
        return LossResult(total, logged) if playing else None

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """What the optimizer of the adversaries trains."""
        games = [loss for _, loss in self._items() if isinstance(loss, Adversarial)]
        return [weight for loss in games for weight in loss.parameters()]

    def head_parameters(self) -> list[nn.Parameter]:
        """What the optimizer of the tokenizer trains besides the tokenizer."""
        others = [loss for _, loss in self._items() if not isinstance(loss, Adversarial)]
        return [weight for loss in others for weight in loss.parameters()]

    def _items(self) -> list[tuple[str, Loss]]:
        return list(self.losses.items())  # type: ignore[arg-type]

    def _factor(self, total: Tensor, term: Tensor, loss: Adversarial, inputs: LossInputs) -> Tensor:
        if inputs.last_layer is None:
            raise ValueError("an adaptive weight needs last_layer, the decoder's last weight")
        if not (loss.plays(inputs) and torch.is_grad_enabled()):
            return total.new_ones(())
        return adaptive_factor(total, term, inputs.last_layer)


def config_of(name: str, values: Mapping[str, Any]) -> LossConfig:
    """The config of a loss from its fields.

    Raises:
        ValueError: There is no such loss or field, a needed one is missing, or a value is wrong.
    """
    kind = CONFIGS[known_name(name)]
    known = [entry.name for entry in fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(f"loss {name!r} has no setting {key!r}; {_nearest(key, known)}")
    hints = get_type_hints(kind)
    try:
        return kind(**{key: conform(key, value, hints[key]) for key, value in values.items()})
    except TokensError as error:
        raise ValueError(f"loss {name!r}: {error}") from None
    except TypeError as error:
        raise ValueError(f"loss {name!r} cannot be built from {dict(values)}: {error}") from error


def known_name(name: str) -> str:
    """The name, if there is a loss of that name.

    Raises:
        ValueError: There is not; the message names the nearest.
    """
    if name not in CONFIGS:
        raise ValueError(f"there is no loss {name!r}; {_nearest(name, list(CONFIGS))}")
    return name


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1, 0.4)
    return f"did you mean {close[0]!r}?" if close else f"choose of {sorted(known)}"


def build(
    losses: Mapping[str, LossConfig | Mapping[str, Any] | float],
    *,
    teacher: Teacher | None = None,
    reader: Reader | None = None,
) -> LossSet:
    """Losses from their configs.

    Args:
        losses: Config of each loss, or its fields, or its weight alone, by name (see `CONFIGS`).
        teacher: Frozen image encoder for "distill": [N, 3, H, W] in [-1, 1] to [N, E].
        reader: Frozen text encoder for captions that are no embeddings: N of them to [N, E].

    Raises:
        ValueError: A name or a setting is unknown, or there is no teacher to distill from.
        CheckpointError: The file of a network cannot be used.
    """
    trunks: dict[str, Trunk] = {}
    built: dict[str, Loss] = {}
    for name, given in losses.items():
        if isinstance(given, float | int):
            given = {"weight": float(given)}
        config = config_of(name, given) if isinstance(given, Mapping) else given
        if not isinstance(config, CONFIGS[known_name(name)]):
            raise ValueError(
                f"loss {name!r} got a {type(config).__name__}; it takes a {CONFIGS[name].__name__}"
            )
        if isinstance(config, PerceptualConfig):
            if config.network not in trunks:
                trunks[config.network] = load_trunk(config.network)
            built[name] = _PERCEPTUAL[name](config, trunks[config.network])
        elif isinstance(config, DistillConfig):
            if teacher is None:
                raise ValueError(
                    "loss 'distill' needs a teacher, a frozen image encoder; name its folder as "
                    "`teacher`"
                )
            built[name] = Distill(config, teacher, reader)
        elif isinstance(config, ContrastiveConfig):
            built[name] = Contrastive(config, reader)
        else:
            built[name] = _LOSSES[name][1](config)
    return LossSet(built)
