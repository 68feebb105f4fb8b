"""An adversary that learns to tell reconstructions from real frames or clips; off by default.

The generator's terms come from `LossSet.forward`, the discriminator's from `LossSet.discriminate`.

Shape suffixes: N pictures or clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.losses.base import Loss, LossConfig, LossInputs, Pair
from omnitok.losses.discriminator import PatchDiscriminator
from omnitok.losses.sharing import mean_of_all


@dataclass(kw_only=True, slots=True)
class AdversarialConfig(LossConfig):
    """A patch discriminator of frames (gan2d) or of clips (gan3d), by its name.

    Attributes:
        feature_matching: Weight of the distance of the discriminator's features.
        kind: "hinge" or "vanilla".
        start: Step from which it plays.
        adaptive: Whether to scale the weight so that the adversary's gradient at the last layer
            is as long as that of the other losses (Esser et al. 2020, arXiv:2012.09841, eq. 7).
        lecam: Weight of the LeCAM regulariser of the discriminator (Tseng et al. 2021,
            arXiv:2104.03310); 0 for none.
        lecam_decay: Of its moving averages.
        skip_below: The discriminator's gradient is 0 while its loss is below this.
        width: Channels of the first convolution.
        depth: Convolutions of stride 2.
    """

    weight: float = 0.01
    feature_matching: float = 4.0
    kind: str = "hinge"
    start: int = 0
    adaptive: bool = False
    lecam: float = 0.0
    lecam_decay: float = 0.999
    skip_below: float = 0.0
    width: int = 64
    depth: int = 3

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.check_choice("kind", ("hinge", "vanilla"))
        self.check_positive("width", "depth")


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Half the mean error of the scores of real and of decoded patches."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def adaptive_factor(others: Tensor, adversary: Tensor, last_layer: Sequence[Tensor]) -> Tensor:
    """Length of the gradient of the other losses over that of the adversary, 0 to 1e4."""

    def length(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, last_layer, retain_graph=True)
        lengths = [torch.linalg.vector_norm(mean_of_all(gradient)) for gradient in gradients]
        return torch.linalg.vector_norm(torch.stack(lengths))  # type: ignore[no-any-return]

    factor: Tensor = (length(others) / (length(adversary) + 1e-4)).clamp(0, 1e4)
    return factor.detach()


class Adversarial(Loss):
    """A discriminator and both players' losses.

    Args:
        config: Its config.
        axes: 2 to judge frames, 3 to judge clips (of more than one frame).
    """

    config: AdversarialConfig
    means: Tensor

    def __init__(self, config: AdversarialConfig, axes: int) -> None:
        super().__init__(config)
        self.axes = axes
        self.discriminator = PatchDiscriminator(axes, config.width, config.depth)
        self.register_buffer("means", torch.zeros(2))  # LeCAM: scores of real and of decoded

    @property
    def weights(self) -> dict[str, float]:
        """Of the adversary and of the distance of features."""
        return {"": self.config.weight, "_features": self.config.feature_matching}

    def plays(self, inputs: LossInputs) -> bool:
        """Whether there is something to judge at this step."""
        return inputs.step >= self.config.start and (self.axes == 2 or inputs.recon.shape[2] > 1)

    def judged(self, inputs: LossInputs) -> Pair:
        """What the discriminator sees: one random frame of each clip, or whole clips."""
        if self.axes == 2:
            return inputs.pictures(1)
        return inputs.recon.float(), inputs.target.float()

    def forward(self, inputs: LossInputs) -> Tensor:
        """The generator's loss: minus the mean score of what it made."""
        return self.terms(inputs)[""]

    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The generator's loss, and the mean distance of features, summed over stages."""
        if not self.plays(inputs):
            return dict.fromkeys(self.weights, inputs.recon.new_zeros((), dtype=torch.float32))
        recon, target = self.judged(inputs)
        with _autocast_off(recon), _frozen(self.discriminator):
            fake = self.discriminator(recon, inputs.draws)
            score = fake[-1]
            loss = -score.mean() if self.config.kind == "hinge" else F.softplus(-score).mean()
            if not self.config.feature_matching:
                return {"": loss, "_features": loss.new_zeros(())}
            with torch.no_grad():
                real = self.discriminator(target, inputs.draws)
            pairs = zip(fake[:-1], real[:-1], strict=True)
            return {"": loss, "_features": torch.stack([F.l1_loss(a, b) for a, b in pairs]).sum()}

    def discriminate(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The discriminator's loss and its regulariser; the reconstruction gets no gradient."""
        recon, target = (x.detach() for x in self.judged(inputs))
        with _autocast_off(recon):
            real, fake = (self.discriminator(x, inputs.draws)[-1] for x in (target, recon))
            loss = discriminator_loss(real, fake, self.config.kind)
            terms = {"": loss}
            if self.config.lecam:
                means = mean_of_all(torch.stack([real.mean(), fake.mean()]))
                self.means.lerp_(means, 1 - self.config.lecam_decay)
                terms["_lecam"] = (
                    F.relu(real - self.means[1]).square().mean()
                    + F.relu(self.means[0] - fake).square().mean()
                )
        return terms

    def discriminator_total(self, terms: dict[str, Tensor]) -> Tensor:
        """What the discriminator minimises."""
        loss = self.config.weight * terms[""]
        if self.config.skip_below:
            loss = loss * (mean_of_all(loss) >= self.config.skip_below)
        return loss + self.config.lecam * terms["_lecam"] if "_lecam" in terms else loss


def _autocast_off(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let no gradient reach the weights of what is computed meanwhile."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
