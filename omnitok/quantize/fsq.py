"""Finite scalar quantization: every channel is rounded to a few levels.

Source: Mentzer et al. 2023, arXiv:2309.15505; with `atanh` in the shift and 1 + eps in the
bound, as in published weights. The symmetric bound follows Parker et al. 2024, arXiv:2411.19842.

Shape suffixes: K codebooks, C channels of one codebook.
"""

from __future__ import annotations

import itertools
import math

import torch
from einops import rearrange
from torch import Tensor

from omnitok.quantize.base import DiscreteQuantizer, QuantizerConfig, straight_through
from omnitok.quantize.entropy import entropy_terms


class FSQ(DiscreteQuantizer):
    """Finite scalar quantization; the code index counts the first channel fastest."""

    levels: tuple[int, ...]
    _levels: Tensor
    _basis: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.levels = config.levels
        self.codebook_size = math.prod(config.levels)
        self.index_order = "first_fastest"
        # Integers, so that casting the model leaves them alone.
        basis = itertools.accumulate(config.levels[:-1], lambda a, b: a * b, initial=1)
        self.register_buffer("_levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(list(basis)), persistent=False)

    def _search(self, z: Tensor) -> Tensor:
        steps_KC = self._bound(self._split(z))
        if self.config.bound == "symmetric":
            digits_KC = (steps_KC + 0.5).floor().long()
        else:
            digits_KC = steps_KC.round().long() + self._levels // 2
        digits_KC = torch.minimum(digits_KC.clamp(min=0), self._levels - 1)
        return (digits_KC * self._basis).sum(-1)

    def _look_up(self, codes_K: Tensor) -> Tensor:
        digits_KC = codes_K.unsqueeze(-1) // self._basis % self._levels
        return self._merge(self._scale(digits_KC, digits=True))

    def _pass_through(self, z: Tensor, q: Tensor) -> Tensor:
        return straight_through(self._merge(self._scale(self._bound(self._split(z)))), q)

    def _losses(self, z: Tensor, q: Tensor) -> dict[str, Tensor]:
        """The extra terms of Tang et al. 2024 (VidTok, arXiv:2412.13061), on unbounded latents."""
        temperature = self.config.entropy_temperature
        if temperature is None:
            return {}
        every = torch.arange(self.codebook_size, device=z.device).unsqueeze(-1)
        digits = every // self._basis % self._levels
        z_KNC = rearrange(self._split(z), "... k c -> k (...) c")
        scores_KNV = 2 * (z_KNC @ self._scale(digits, digits=True).T)
        form = self.config.entropy_form or "clamped"
        per_sample_K, codebook_K = entropy_terms(scores_KNV, temperature, form)
        return {
            "commitment": (z - q.detach()).square().mean(),
            "per_sample_entropy": per_sample_K.mean(),
            "codebook_entropy": codebook_K.mean(),
        }

    def _bound(self, z_KC: Tensor) -> Tensor:
        """Squash latents to where rounding gives levels: digits (symmetric) or centred digits."""
        top = self._levels - 1
        if self.config.bound == "symmetric":
            return (z_KC.tanh() + 1) * top / 2
        half = top * (1 + self.config.bound_eps) / 2
        offset = top % 2 / 2
        return (z_KC + (offset / half).atanh()).tanh() * half - offset

    def _scale(self, steps_KC: Tensor, digits: bool = False) -> Tensor:
        """What `_bound` gave, or integer digits, to codes within [-1, 1]."""
        if self.config.bound == "symmetric":
            return 2 * steps_KC / (self._levels - 1) - 1
        half = self._levels // 2
        return (steps_KC - half if digits else steps_KC) / half

    def _split(self, z: Tensor) -> Tensor:
        return rearrange(z, "... (k c) -> ... k c", k=self.num_codebooks)

    def _merge(self, z_KC: Tensor) -> Tensor:
        return rearrange(z_KC, "... k c -> ... (k c)")
