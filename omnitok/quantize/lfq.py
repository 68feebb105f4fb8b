"""Lookup-free quantization: the sign of every channel is a bit.

Source: Yu et al. 2023 (MAGVIT-v2), arXiv:2310.05737, section 3.1.

Shape suffixes: N tokens, K codebooks, G entropy groups, C channels of a codebook or of a group,
V codes of a group.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from omnitok.quantize.base import DiscreteQuantizer, QuantizerConfig
from omnitok.quantize.bits import bits_to_codes, codes_to_bits
from omnitok.quantize.entropy import entropy_terms


class LFQ(DiscreteQuantizer):
    """Lookup-free quantization; zero is bit 0, that is -1.

    Attributes:
        scale: A bit is plus or minus this number.
        entropy_form: That of the source.
    """

    scale: float = 1.0
    entropy_form: str = "exact"

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.bits = config.dim // config.num_codebooks
        self.codebook_size = 2**self.bits
        self.index_order: str = config.index_order or "msb"

    def _search(self, z: Tensor) -> Tensor:
        bits_KC = rearrange(z > 0, "... (k c) -> ... k c", c=self.bits)
        return bits_to_codes(bits_KC, self.index_order)

    def _look_up(self, codes_K: Tensor) -> Tensor:
        bits_KC = codes_to_bits(codes_K, self.bits, self.index_order)
        return rearrange(2 * bits_KC - 1, "... k c -> ... (k c)") * self.scale

    def _losses(self, z: Tensor, q: Tensor) -> dict[str, Tensor]:
        return {"commitment": (z - q.detach()).square().mean(), **self._entropies(z)}

    def _entropies(self, z: Tensor) -> dict[str, Tensor]:
        """Entropies over the joint codes of each group, summed over groups.

        A token's bits are independent, so its entropy does not depend on the grouping; that of the
        batch is an upper bound unless one group holds all channels.
        """
        temperature = self.config.entropy_temperature
        if temperature is None:
            return {}
        group = self.config.entropy_group
        every = torch.arange(2**group, device=z.device)
        codes_VC = (2 * codes_to_bits(every, group, "msb") - 1) * self.scale
        z_GNC = rearrange(z, "... (g c) -> g (...) c", c=group)
        scores_GNV = 2 * (z_GNC @ codes_VC.to(z).T)
        form = self.config.entropy_form or self.entropy_form
        per_sample_G, codebook_G = entropy_terms(scores_GNV, temperature, form)
        return {"per_sample_entropy": per_sample_G.sum(), "codebook_entropy": codebook_G.sum()}
