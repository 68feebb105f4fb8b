"""The continuous bottleneck: a diagonal Gaussian per token.

Source: Kingma and Welling 2013, arXiv:1312.6114, appendix B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnitok.quantize.base import Quantized, Quantizer, QuantizerConfig

LOGVAR_RANGE = (-30.0, 20.0)


class KL(Quantizer):
    """Means and log variances in; a sample in training, the mean in eval out.

    Attributes:
        share: (part, parts) of a batch that is spread over processes: the noise is drawn for the
            whole batch, so that it does not depend on how many they are.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.input_dim = 2 * config.dim
        self.share = (0, 1)

    def posterior(self, z: Tensor, clamp: bool = True) -> tuple[Tensor, Tensor]:
        """Split latents into float32 mean and log variance.

        Args:
            z: [..., 2 * dim]: all means, then all log variances.
            clamp: Keep log variances within LOGVAR_RANGE.

        Returns:
            [..., dim] each.
        """
        self._check_channels(z)
        mean, logvar = z.float().chunk(2, dim=-1)
        return mean, logvar.clamp(*LOGVAR_RANGE) if clamp else logvar

    def sample(
        self, z: Tensor, generator: torch.Generator | None = None, clamp: bool = True
    ) -> Tensor:
        """Draw from the posterior.

        Args:
            z: [..., 2 * dim].
            generator: Source of the noise, on the device of `z`.
            clamp: As in `posterior`.

        Returns:
            [..., dim] in the dtype of `z`.
        """
        mean, logvar = self.posterior(z, clamp)
        part, parts = self.share
        noise = mean.new_empty(parts * len(mean), *mean.shape[1:]).normal_(generator=generator)
        noise = noise[part * len(mean) : (part + 1) * len(mean)]
        return reparameterise(mean, logvar, noise).to(z.dtype)

    def _forward(self, z: Tensor) -> Quantized:
        mean, logvar = self.posterior(z)
        z_q = self.sample(z) if self.training else mean
        return Quantized(z_q, None, {"kl": kl_divergence(mean, logvar).mean()}, None)

    def codes_to_latents(self, codes: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Refuse: there are no codes."""
        raise ValueError("quantizer 'kl' is continuous and has no codes; use its latents")


def reparameterise(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Move and stretch noise from N(0, 1) to the Gaussian of every element."""
    return mean + (0.5 * logvar).exp() * noise


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of every element's Gaussian from N(0, 1), in nats, before any reduction."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def kl_per_sample(mean: Tensor, logvar: Tensor) -> Tensor:
    """[B] divergences, summed over everything but the first axis; their mean is VidTok's loss."""
    return kl_divergence(mean, logvar).flatten(1).sum(1)
