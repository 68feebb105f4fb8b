"""Losses that the bottleneck computes itself (`omnitok.quantize`), given a weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from omnitok.losses.base import Loss, LossConfig, LossInputs

TERMS = ("kl", "commitment", "codebook", "per_sample_entropy", "codebook_entropy")


@dataclass(kw_only=True, slots=True)
class BottleneckConfig(LossConfig):
    """A term that the quantizer returns under the name of the loss.

    The entropy of the codebook is to be raised: give it a negative weight.
    """


@dataclass(kw_only=True, slots=True)
class KLConfig(LossConfig):
    """Divergence from N(0, 1).

    Attributes:
        reduction: "mean" over everything; "token": summed over channels (AToken); "sample": summed
            over everything but the batch (OmniTokenizer, VidTok).
    """

    weight: float = 1e-6
    reduction: str = "mean"

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.check_choice("reduction", ("mean", "token", "sample"))


class Bottleneck(Loss):
    """A term of the quantizer."""

    def __init__(self, config: LossConfig, name: str) -> None:
        super().__init__(config)
        self.name = name

    def forward(self, inputs: LossInputs) -> Tensor:
        """The term.

        Raises:
            ValueError: The quantizer returns no such term.
        """
        given = inputs.quantized.losses if inputs.quantized is not None else {}
        if self.name not in given:
            raise ValueError(
                f"loss {self.name!r} is not among the terms {sorted(given)} that the quantizer "
                "returns; leave it out or choose another quantizer (entropy terms need an "
                "entropy_temperature)"
            )
        return given[self.name]


class KL(Bottleneck):
    """The divergence, in the reduction asked for."""

    config: KLConfig

    def __init__(self, config: KLConfig) -> None:
        super().__init__(config, "kl")

    def forward(self, inputs: LossInputs) -> Tensor:
        """The divergence in nats."""
        mean = super().forward(inputs)
        assert inputs.quantized is not None
        z = inputs.quantized.z_q
        count = {"mean": 1, "token": z.shape[-1], "sample": z[0].numel()}
        return mean * count[self.config.reduction]
