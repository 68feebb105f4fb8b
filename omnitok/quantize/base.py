"""What every quantizer shares: its config, its result and its face.

Shape suffixes: N tokens, K codebooks, D channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("kl", "fsq", "vq", "lfq", "bsq")
BIT_KINDS = ("lfq", "bsq")
MAX_BITS = 62  # of one code: 2**62, the number of codes, still fits int64
MAX_GROUP = 20  # channels whose joint entropy is measured
_OPTIONS = {  # which kinds each option belongs to
    "levels": ("fsq",),
    "codebook_size": ("fsq", "vq", "lfq", "bsq"),
    "num_codebooks": ("fsq", "vq", "lfq", "bsq"),
    "index_order": ("fsq", "lfq", "bsq"),
    "bound": ("fsq",),
    "bound_eps": ("fsq",),
    "l2": ("vq",),
    "ema": ("vq",),
    "ema_decay": ("vq",),
    "ema_eps": ("vq",),
    "ema_restart": ("vq",),
    "entropy_temperature": ("fsq", "vq", "lfq", "bsq"),
    "entropy_form": ("fsq", "vq", "lfq", "bsq"),
    "entropy_group": BIT_KINDS,
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "kind": KINDS,
    "bound": ("tanh", "symmetric"),
    "entropy_form": (None, "exact", "clamped", "added"),
}


@dataclass(kw_only=True, slots=True)
class QuantizerConfig:
    """Everything needed to rebuild a quantizer.

    Attributes:
        kind: "kl", "fsq", "vq", "lfq" or "bsq".
        dim: Channels of the quantized latent (KL: of the mean).
        levels: FSQ levels of the channels of one codebook.
        codebook_size: Codes per codebook: needed by VQ, worked out for the others.
        num_codebooks: Codes per token; each one quantizes `dim / num_codebooks` channels in a row.
        index_order: None for the canonical order: "first_fastest" for FSQ, "msb" (the first channel
            is the most significant bit) for LFQ and BSQ, which also know "lsb".
        bound: FSQ: "tanh" (Mentzer et al.) or "symmetric" (codes from -1 to 1 for any level).
        bound_eps: FSQ: how far the tanh bound reaches beyond the outer levels.
        l2: VQ: divide latents and codebook rows by their norms.
        ema: VQ: learn the codebook by moving averages instead of by gradients.
        ema_decay: VQ: share of the old average that a step keeps.
        ema_eps: VQ: keeps the averages of unused codes finite.
        ema_restart: VQ: replace codes used less than once by inputs of the batch.
        entropy_temperature: Adds entropy losses at this temperature; None leaves them out.
        entropy_form: How their logarithms treat zero (`omnitok.quantize.entropy`); None for the
            form of the quantizer's source.
        entropy_group: LFQ, BSQ: channels whose joint entropy is measured; 1 measures every bit
            alone, and larger groups cost 2**entropy_group numbers per group and token.
    """

    kind: str = "fsq"
    dim: int
    levels: tuple[int, ...] = ()
    codebook_size: int | None = None
    num_codebooks: int = 1
    index_order: str | None = None
    bound: str = "tanh"
    bound_eps: float = 1e-3
    l2: bool = False
    ema: bool = False
    ema_decay: float = 0.99
    ema_eps: float = 1e-5
    ema_restart: bool = True
    entropy_temperature: float | None = None
    entropy_form: str | None = None
    entropy_group: int = 1

    def __post_init__(self) -> None:
        self.levels = tuple(self.levels)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"quantizer {name}={getattr(self, name)!r} is unknown; choose from {choices}"
                )
        for option in fields(self):
            kinds = _OPTIONS.get(option.name, KINDS)
            if self.kind not in kinds and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"quantizer {option.name}={getattr(self, option.name)!r} means nothing to kind "
                    f"{self.kind!r}; it is an option of {kinds}, so leave it out"
                )
        for name in ("dim", "num_codebooks", "entropy_group"):
            _check_count(name, getattr(self, name), 1)
        if self.dim % (self.num_codebooks * self.entropy_group):
            raise ValueError(
                f"quantizer dim={self.dim} must be a multiple of num_codebooks="
                f"{self.num_codebooks} times entropy_group={self.entropy_group}"
            )
        if self.entropy_temperature is not None and not self.entropy_temperature > 0:
            raise ValueError(
                f"quantizer entropy_temperature={self.entropy_temperature} must be above 0, "
                "or None for no entropy losses"
            )
        if self.entropy_group > MAX_GROUP:
            raise ValueError(
                f"quantizer entropy_group={self.entropy_group} needs 2**entropy_group "
                f"numbers per token; {MAX_GROUP} is the most"
            )
        self._check_kind()

    def _check_kind(self) -> None:
        """Check what is particular to one kind."""
        width = self.dim // self.num_codebooks
        orders: tuple[str | None, ...] = (None,)
        size = None
        if self.kind == "fsq":
            orders = (None, "first_fastest")
            for level in self.levels:
                _check_count("level", level, 2)
            if len(self.levels) != width:
                raise ValueError(
                    f"quantizer levels={self.levels} are {len(self.levels)} channels, but "
                    f"dim={self.dim} over num_codebooks={self.num_codebooks} gives {width}; "
                    "make them equal"
                )
            if 2 in self.levels and self.bound == "tanh":
                raise ValueError(
                    f"quantizer levels={self.levels} with bound='tanh' would put nearly every "
                    "input on one of 2 levels; use bound='symmetric'"
                )
            size = math.prod(self.levels)
        elif self.kind in BIT_KINDS:
            orders = (None, "msb", "lsb")
            size = 2 ** min(width, MAX_BITS + 1)
        elif self.kind == "vq":
            _check_count("codebook_size", self.codebook_size, 2)
            if not 0 <= self.ema_decay < 1:
                raise ValueError(f"quantizer ema_decay={self.ema_decay} must be in [0, 1)")
        if size is not None and size > 2**MAX_BITS:
            raise ValueError(
                f"quantizer with dim={self.dim} and num_codebooks={self.num_codebooks} needs codes "
                f"of more than {MAX_BITS} bits; raise num_codebooks"
            )
        if size is not None and self.codebook_size not in (None, size):
            raise ValueError(
                f"quantizer codebook_size={self.codebook_size}, but dim, levels and num_codebooks "
                f"give {size}; leave it out"
            )
        if self.index_order not in orders:
            raise ValueError(
                f"quantizer index_order={self.index_order!r} is unknown to kind {self.kind!r}; "
                f"choose from {orders}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizerConfig:
        """Rebuild a config from what `dataclasses.asdict` gave; an unknown key is a ValueError."""
        known = {field.name for field in fields(cls)}
        if not {"dim"} <= set(values) <= known:
            raise ValueError(
                f"quantizer config has the keys {sorted(values)}; it needs 'dim' and knows "
                f"{sorted(known)}, so check their spelling or the version"
            )
        return cls(**values)


def _check_count(name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"quantizer {name}={value!r} must be an integer of at least {least}")


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of latents.

    Attributes:
        z_q: [..., dim] quantized latents in the dtype of the input; gradients reach the input.
        codes: [...] int64, or [..., K] for K > 1 codebooks; None for KL.
        losses: Unweighted terms, each a float32 number, the same in training and in eval. The
            entropy of the codebook is one of them: training raises it by a negative weight.
        usage: Share of the codebook that this batch used, the mean over codebooks; None for KL.
    """

    z_q: Tensor
    codes: Tensor | None
    losses: dict[str, Tensor]
    usage: Tensor | None


class Quantizer(nn.Module, ABC):
    """A bottleneck on channel-last latents, computed in float32 whatever the model's dtype.

    Attributes:
        config: What it was built from.
        dim: Channels of a quantized latent.
        input_dim: Channels that `forward` takes.
        num_codebooks: Codes per token.
        codebook_size: Codes per codebook; None for KL.
        levels: FSQ levels of one codebook; None for the others.
        index_order: How channels make up an index; None where they do not.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.input_dim = config.dim
        self.num_codebooks = config.num_codebooks
        self.codebook_size = config.codebook_size
        self.levels: tuple[int, ...] | None = None
        self.index_order = config.index_order

    def forward(self, z: Tensor) -> Quantized:
        """Quantize latents.

        Args:
            z: [..., input_dim] latents of any float dtype.

        Raises:
            ValueError: The last axis of `z` is not `input_dim` long.
        """
        self._check_channels(z)
        with torch.autocast(z.device.type, enabled=False):
            quantized = self._forward(z.float())
        return replace(quantized, z_q=quantized.z_q.to(z.dtype))

    @abstractmethod
    def codes_to_latents(self, codes: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Look up codes: exactly the `z_q` that `forward` gave along with them.

        Args:
            codes: [...] int64, or [..., K] for K > 1 codebooks.
            dtype: Of the result; a forward in the same dtype gave the same bits.

        Raises:
            ValueError: Codes of a wrong dtype or shape, or (on the CPU) out of range.
        """

    @abstractmethod
    def _forward(self, z: Tensor) -> Quantized:
        """`forward` on float32, outside autocast."""

    def _check_channels(self, z: Tensor) -> None:
        if z.shape[-1:] != (self.input_dim,):
            raise ValueError(
                f"latents of shape {tuple(z.shape)} were given to quantizer "
                f"{self.config.kind!r}, which takes [..., {self.input_dim}] (channels last)"
            )


class DiscreteQuantizer(Quantizer):
    """A quantizer with codes: search, look up, pass the gradient straight through."""

    codebook_size: int

    def latents_to_codes(self, z: Tensor) -> Tensor:
        """The codes of `forward`, without losses.

        Args:
            z: [..., dim] latents of any float dtype.
        """
        self._check_channels(z)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return self._pack(self._search(self._prepare(z.float())))

    def codes_to_latents(self, codes: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Look up codes; see `Quantizer.codes_to_latents`."""
        one = self.num_codebooks == 1
        if codes.dtype != torch.int64 or not (one or codes.shape[-1:] == (self.num_codebooks,)):
            raise ValueError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}; quantizer "
                f"{self.config.kind!r} takes int64 [...{'' if one else f', {self.num_codebooks}'}]"
            )
        # A look at values on an accelerator would wait for it; token files are checked when read.
        if codes.device.type == "cpu" and codes.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in codes.aminmax())
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"codes reach from {low} to {high}; the codebook has 0 to "
                    f"{self.codebook_size - 1}, so these codes are of another tokenizer"
                )
        with torch.autocast(codes.device.type, enabled=False):
            return self._look_up(codes.unsqueeze(-1) if one else codes).to(dtype)

    def _forward(self, z: Tensor) -> Quantized:
        z = self._prepare(z)
        with torch.no_grad():
            codes_K = self._search(z)
        q = self._look_up(codes_K)
        losses = self._losses(z, q)
        z_q, codes = self._pass_through(z, q), self._pack(codes_K)
        return Quantized(z_q, codes, losses, self._usage(codes_K))

    def _prepare(self, z: Tensor) -> Tensor:
        """Bring latents to where the codebook is."""
        return z

    @abstractmethod
    def _search(self, z: Tensor) -> Tensor:
        """[..., dim] -> [..., K] codes."""

    @abstractmethod
    def _look_up(self, codes_K: Tensor) -> Tensor:
        """[..., K] codes -> [..., dim] float32."""

    @abstractmethod
    def _losses(self, z: Tensor, q: Tensor) -> dict[str, Tensor]:
        """Unweighted loss terms of prepared latents and their looked-up codes."""

    def _pass_through(self, z: Tensor, q: Tensor) -> Tensor:
        """The value of `q` with a gradient for `z`."""
        return straight_through(z, q)

    def _pack(self, codes_K: Tensor) -> Tensor:
        return codes_K.squeeze(-1) if self.num_codebooks == 1 else codes_K

    def _usage(self, codes_K: Tensor) -> Tensor:
        """Share of codes that occur: by sorting, so that size and device do not matter."""
        codes_NK = codes_K.reshape(-1, self.num_codebooks).sort(dim=0).values
        distinct = (codes_NK.diff(dim=0) != 0).sum() + codes_NK[:1].numel()
        return distinct / float(self.codebook_size * self.num_codebooks)  # may not fit int64


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """`q` to the bit (z + (q - z) is not), with the gradient of `z`."""
    return q.detach() + (z - z.detach()) if z.requires_grad else q.detach()
