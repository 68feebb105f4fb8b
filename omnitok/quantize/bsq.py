"""Binary spherical quantization: signs of a latent on the unit sphere.

Source: Zhao et al. 2024, arXiv:2406.07548.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from omnitok.quantize.base import QuantizerConfig, straight_through
from omnitok.quantize.lfq import LFQ


class BSQ(LFQ):
    """LFQ on the unit sphere: the code is the nearest corner of the cube inside it."""

    entropy_form = "added"

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.scale = config.dim**-0.5

    def _prepare(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)

    def _pass_through(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight through the sign and only then scaled, as in BSQ-ViT."""
        return straight_through(z * self.scale, q)

    def _losses(self, z: Tensor, q: Tensor) -> dict[str, Tensor]:
        """The commitment is a squared distance on the sphere: summed over channels."""
        commitment = (z - q.detach()).square().sum(-1).mean()
        return {"commitment": commitment, **self._entropies(z)}
