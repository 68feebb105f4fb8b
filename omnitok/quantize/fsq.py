"""Finite scalar quantization: every channel is rounded to a few levels.

Source: Mentzer et al. 2023, arXiv:2309.15505; with `atanh` in the shift and 1 + eps in the
bound, as in published weights. The symmetric bound follows Parker et al. 2024, arXiv:2411.19842.

Shape suffixes: N tokens, K codebooks, C channels of one codebook, V codes of it.
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

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.levels = config.levels
        self.codebook_size = math.prod(config.levels)
        self.index_order = "first_fastest"
        self._constants: tuple[Tensor, Tensor] | None = None

    def _levels_and_basis(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """[C] levels and [C] place values, made once per device.

        They are integers and no buffers, so that neither casting a model nor loading its weights
        into a shell without storage can spoil them.
        """
        if self._constants is None or self._constants[0].device != device:
            basis = itertools.accumulate(self.levels[:-1], lambda a, b: a * b, initial=1)
            levels_C = torch.tensor(self.levels, device=device)
            self._constants = levels_C, torch.tensor(list(basis), device=device)
        return self._constants

    def _search(self, z: Tensor) -> Tensor:
        levels_C, basis_C = self._levels_and_basis(z.device)
        steps_KC = self._bound(self._split(z))
        if self.config.bound == "symmetric":
            digits_KC = (steps_KC + 0.5).floor().long()
        else:
            digits_KC = steps_KC.round().long() + levels_C // 2
        digits_KC = torch.minimum(digits_KC.clamp(min=0), levels_C - 1)
        return (digits_KC * basis_C).sum(-1)

    def _look_up(self, codes_K: Tensor) -> Tensor:
        return self._merge(self._codes_to_channels(codes_K))

    def _codes_to_channels(self, codes: Tensor) -> Tensor:
        """[...] codes of one codebook -> [..., C] float32 within [-1, 1]."""
        levels_C, basis_C = self._levels_and_basis(codes.device)
        return self._scale(codes.unsqueeze(-1) // basis_C % levels_C, digits=True)

    def _pass_through(self, z: Tensor, q: Tensor) -> Tensor:
        return straight_through(self._merge(self._scale(self._bound(self._split(z)))), q)

    def _losses(self, z: Tensor, q: Tensor) -> dict[str, Tensor]:
        """The extra terms of Tang et al. 2024 (VidTok, arXiv:2412.13061), on unbounded latents."""
        temperature = self.config.entropy_temperature
        if temperature is None:
            return {}
        every_VC = self._codes_to_channels(torch.arange(self.codebook_size, device=z.device))
        z_KNC = rearrange(self._split(z), "... k c -> k (...) c")
        scores_KNV = 2 * (z_KNC @ every_VC.T)
        form = self.config.entropy_form or "clamped"
        per_sample_K, codebook_K = entropy_terms(scores_KNV, temperature, form)
        return {
            "commitment": (z - q.detach()).square().mean(),
            "per_sample_entropy": per_sample_K.mean(),
            "codebook_entropy": codebook_K.mean(),
        }

    def _bound(self, z_KC: Tensor) -> Tensor:
        """Squash latents to where rounding gives levels: digits (symmetric) or centred digits."""
        top = self._levels_and_basis(z_KC.device)[0] - 1
        if self.config.bound == "symmetric":
            return (z_KC.tanh() + 1) * top / 2
        half = top * (1 + self.config.bound_eps) / 2
        offset = top % 2 / 2
        return (z_KC + (offset / half).atanh()).tanh() * half - offset

    def _scale(self, steps_KC: Tensor, digits: bool = False) -> Tensor:
        """What `_bound` gave, or integer digits, to codes within [-1, 1]."""
        levels_C, _ = self._levels_and_basis(steps_KC.device)
        if self.config.bound == "symmetric":
            return 2 * steps_KC / (levels_C - 1) - 1
        half = levels_C // 2
        return (steps_KC - half if digits else steps_KC) / half

    def _split(self, z: Tensor) -> Tensor:
        return rearrange(z, "... (k c) -> ... k c", k=self.num_codebooks)

    def _merge(self, z_KC: Tensor) -> Tensor:
        return rearrange(z_KC, "... k c -> ... (k c)")
