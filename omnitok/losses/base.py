"""What every loss shares: its config, what it is computed from, and its face.

Shape suffixes: B batch, C colours, T frames, H and W pixels, N pictures or tokens, D and
E channels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.losses.sharing import Draws
from omnitok.quantize.base import Quantized

if TYPE_CHECKING:
    from omnitok.losses.trunk import Trunk

Pair = tuple[Tensor, Tensor]
T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """A loss and its weight.

    Attributes:
        weight: Factor on the term in the total.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, float | int) and not math.isfinite(value):
                raise ValueError(f"loss {entry.name}={value} must be a finite number")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raise a ValueError unless field `name` is one of `choices`."""
        if getattr(self, name) not in choices:
            raise ValueError(f"loss {name}={getattr(self, name)!r} is unknown; choose of {choices}")

    def check_positive(self, *names: str) -> None:
        """Raise a ValueError unless the fields are None or above 0."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"loss {name}={value} must be above 0")


@dataclass
class LossInputs:
    """What losses are computed from; pictures and features that several of them use are shared.

    Attributes:
        recon: [B, 3, T, H, W] decoded pixels, not clamped.
        target: [B, 3, T, H, W] in [-1, 1].
        quantized: What the bottleneck returned.
        features: [B, N, D] tokens of the encoder, for semantic losses.
        text: [B, E] embedding of each clip's caption.
        captions: The caption of each clip, where there are no embeddings.
        last_layer: Weights of the last layer of the decoder (of all frames that may be judged), for
            adaptive weights.
        step: Of the stage, from 0.
        draws: Random numbers for the clips.
    """

    recon: Tensor
    target: Tensor
    quantized: Quantized | None = None
    features: Tensor | None = None
    text: Tensor | None = None
    captions: list[str] | None = None
    last_layer: Sequence[Tensor] | None = None
    step: int = 0
    draws: Draws = field(default_factory=Draws)
    _shared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def pictures(self, count: int | None, side: int | None = None) -> Pair:
        """Float32 frames [N, 3, H, W] of the reconstruction and the same ones of the target.

        Args:
            count: Frames of each clip, drawn at random; None for all.
            side: Scale them to this many pixels square; None for their own size.
        """
        return self.share(("pictures", count, side), lambda: self._pictures(count, side))

    def trunk_features(
        self, trunk: Trunk, count: int | None, side: int | None, fast: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps of `pictures` by layer: of the reconstruction, and of the target."""

        def make() -> tuple[list[Tensor], list[Tensor]]:
            recon, target = self.pictures(count, side)
            with torch.no_grad():
                wanted = trunk(target, fast)
            return trunk(recon, fast), wanted

        return self.share(("features", id(trunk), count, side, fast), make)

    def share(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returned when it was first asked for under `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # type: ignore[no-any-return]

    def _pictures(self, count: int | None, side: int | None) -> Pair:
        clips = (self.recon.float().transpose(1, 2), self.target.float().transpose(1, 2))
        batch, total = clips[0].shape[:2]
        if count is not None and count < total:
            odds_BT = self.draws.normal((batch, total), self.recon.device)
            frames = odds_BT.topk(count).indices
            rows = torch.arange(batch, device=self.recon.device)[:, None]
            clips = (clips[0][rows, frames], clips[1][rows, frames])
        recon, target = (clip.flatten(0, 1) for clip in clips)
        if side is not None and tuple(recon.shape[2:]) != (side, side):
            recon, target = (
                F.interpolate(x, (side, side), mode="bilinear", antialias=True)
                for x in (recon, target)
            )
        return recon, target


class Loss(nn.Module):
    """One idea of what is wrong with a reconstruction; a scalar, computed in float32.

    Attributes:
        config: Its config.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, by what its name adds to the name of the loss."""
        return {"": self.config.weight}

    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Unweighted terms, by what their names add to the name of the loss."""
        return {"": self(inputs)}

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """The first term."""
