"""The network of OmniTokenizer: space then time in the encoder, time then space in the decoder.

Shape suffixes: B batch, C colours (3), T time steps or frames, Y and X rows and columns of tokens,
D width, L latent channels; S sequences, N tokens of one, P values of a patch.
"""

from __future__ import annotations

from itertools import groupby

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from omnitok.interop.omnitokenizer_config import COLOURS, OmniTokenizerConfig
from omnitok.interop.omnitokenizer_parts import (
    EPS,
    Block,
    FixedShiftNorm,
    Place,
    causal_slopes,
    grid_phasors,
)
from omnitok.model import Reconstruction
from omnitok.nn.linear import linear
from omnitok.nn.norm import Norm
from omnitok.quantize import KL, VQ, Quantized, QuantizerConfig


class PatchEmbedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, values: int, width: int) -> None:
        super().__init__()
        self.norm_in = Norm("layer", values, affine=True, eps=EPS)
        self.linear = nn.Linear(values, width)
        self.norm_out = Norm("layer", width, affine=True, eps=EPS)

    def forward(self, x_BTYXP: Tensor) -> Tensor:
        """[..., P] to [..., D]."""
        return self.norm_out(linear(self.linear, x_BTYXP, self.norm_in))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks over the tokens of each frame ("space") or of each place ("time"), and a norm.

    Attributes:
        gradient_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations.
    """

    def __init__(self, config: OmniTokenizerConfig, axis: str, blocks: str) -> None:
        super().__init__()
        self.config, self.axis = config, axis
        learned = axis == "space" and config.position == "rel"
        self.blocks = nn.ModuleList(Block(config, kind, learned) for kind in blocks)
        self.norm = FixedShiftNorm(config.width)
        self.gradient_checkpointing = False

    def forward(self, x_BTYXD: Tensor) -> Tensor:
        """The same shape; without a graph, `x_BTYXD` may be changed."""
        _, t, y, x, _ = x_BTYXD.shape
        place = self._place((t, y, x), x_BTYXD.device)
        sizes = {"b": len(x_BTYXD), "y": y, "x": x}
        tokens = "(b y x) t d" if self.axis == "time" else "(b t) (y x) d"
        x_SND = rearrange(x_BTYXD, f"b t y x d -> {tokens}").contiguous()
        for kind, run in groupby(self.blocks, key=lambda block: block.kind):
            if kind == "w":
                x_SND = self._to_windows(x_SND, y, x)
            for block in run:
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    x_SND = checkpoint(block, x_SND, place, use_reentrant=False)
                else:
                    x_SND = block(x_SND, place)
            if kind == "w":
                x_SND = self._from_windows(x_SND, y, x)
        done: Tensor = rearrange(self.norm(x_SND), f"{tokens} -> b t y x d", **sizes)
        return done

    def _to_windows(self, x_SND: Tensor, y: int, x: int) -> Tensor:
        side = self.config.window
        if y % side or x % side:
            raise ValueError(
                f"a grid of {y}x{x} tokens is not made of windows of {side}x{side}; pad the frames"
            )
        pattern = "s (wy y wx x) d -> (s wy wx) (y x) d"
        return rearrange(x_SND, pattern, y=side, x=side, wy=y // side)

    def _from_windows(self, x_SND: Tensor, y: int, x: int) -> Tensor:
        side = self.config.window
        pattern = "(s wy wx) (y x) d -> s (wy y wx x) d"
        return rearrange(x_SND, pattern, y=side, x=side, wy=y // side, wx=x // side)

    def _place(self, volume: tuple[int, int, int], device: torch.device) -> Place:
        config, (t, y, x) = self.config, volume
        explicit = config.attention == "explicit"
        if self.axis == "time":
            causal = config.causal_attention
            bias = causal_slopes(config.heads, t, device) if explicit and causal else None
            return Place(volume, causal=causal, bias=bias)
        if config.position == "rope":
            return Place(volume, phasors=grid_phasors(y, x, config.head_width, device))
        return Place(volume, grid=(y, x) if explicit else None)


class Encoder(nn.Module):
    """Pixels to tokens of width D."""

    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        t, h, w = config.inner_patch
        self.embed_first = PatchEmbedding(COLOURS * h * w, config.width)
        self.embed = PatchEmbedding(COLOURS * t * h * w, config.width)
        self.spatial = Stage(config, "space", config.encoder)
        self.temporal = Stage(config, "time", "t" * config.temporal_depth)

    def patches(self, x_BCTHW: Tensor) -> Tensor:
        """[B, T, Y, X, D]: the first frame by itself, then groups of frames."""
        t, h, w = self.config.inner_patch
        pattern = "b c (t f) (y h) (x w) -> b t y x (c f h w)"
        parts = [self.embed_first(rearrange(x_BCTHW[:, :, :1], pattern, f=1, h=h, w=w))]
        if x_BCTHW.shape[2] > 1:
            parts.append(self.embed(rearrange(x_BCTHW[:, :, 1:], pattern, f=t, h=h, w=w)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """[B, 3, 1 + k frames, H, W] to [B, T, Y, X, D], pooled where the config says so."""
        x_BTYXD: Tensor = self.temporal(self.spatial(self.patches(x_BCTHW)))
        if self.config.pool_space:
            x_BTYXD = reduce(x_BTYXD, "b t (y i) (x j) d -> b t y x d", "mean", i=2, j=2)
        if self.config.pool_time:
            pairs: Tensor = reduce(x_BTYXD[:, 1:], "b (t i) y x d -> b t y x d", "mean", i=2)
            return torch.cat([x_BTYXD[:, :1], pairs], dim=1)
        return x_BTYXD


class Decoder(nn.Module):
    """The way back."""

    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        t, h, w = config.inner_patch
        self.temporal = Stage(config, "time", "t" * config.temporal_depth)
        self.spatial = Stage(config, "space", config.decoder)
        self.head_first = nn.Linear(config.width, COLOURS * h * w)
        self.head = nn.Linear(config.width, COLOURS * t * h * w)

    def forward(self, x_BTYXD: Tensor) -> Tensor:
        """[B, T, Y, X, D] to [B, 3, frames, H, W], not clamped."""
        if self.config.pool_time:
            pairs = repeat(x_BTYXD[:, 1:], "b t y x d -> b (t i) y x d", i=2)
            x_BTYXD = torch.cat([x_BTYXD[:, :1], pairs], dim=1)
        if self.config.pool_space:
            x_BTYXD = repeat(x_BTYXD, "b t y x d -> b t (y i) (x j) d", i=2, j=2)
        x_BTYXD = self.spatial(self.temporal(x_BTYXD))
        t, h, w = self.config.inner_patch
        pattern = "b t y x (c f h w) -> b c (t f) (y h) (x w)"
        sizes = {"c": COLOURS, "h": h, "w": w}
        parts = [rearrange(self.head_first(x_BTYXD[:, :1]), pattern, f=1, **sizes)]
        if x_BTYXD.shape[1] > 1:
            parts.append(rearrange(self.head(x_BTYXD[:, 1:]), pattern, f=t, **sizes))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class CountedVQ(VQ):
    """A codebook that also keeps how often each code was used lately.

    Attributes:
        frequencies: [V] shares of the codes: of the first training batch that this object saw,
            afterwards a moving average.
    """

    frequencies: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.register_buffer("frequencies", torch.zeros(self.codebook_size))
        self._counted = False

    def _forward(self, z: Tensor) -> Quantized:
        quantized = super()._forward(z)
        if self.training:
            assert quantized.codes is not None  # we are discrete
            shares = torch.bincount(quantized.codes.flatten(), minlength=self.codebook_size)
            share = shares / quantized.codes.numel()
            self.frequencies.lerp_(share, 1 - self.config.ema_decay if self._counted else 1.0)
            self._counted = True
        return quantized


class OmniTokenizerNet(nn.Module):
    """Encoder, bottleneck and decoder; pixels are in [-0.5, 0.5]."""

    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        vq = config.quantizer.kind == "vq"
        self.quantizer = CountedVQ(config.quantizer) if vq else KL(config.quantizer)
        self.encoder = Encoder(config)
        self.to_latent = nn.Linear(config.width, self.quantizer.input_dim)
        self.from_latent = nn.Linear(self.quantizer.dim, config.width)
        self.decoder = Decoder(config)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The four transformers, in order."""
        encoder, decoder = self.encoder, self.decoder
        return encoder.spatial, encoder.temporal, decoder.temporal, decoder.spatial

    def encode(self, x_BCTHW: Tensor) -> Tensor:
        """[B, T, Y, X, L] before quantization (KL: mean and log variance)."""
        z = self.to_latent(self.encoder(x_BCTHW))
        return F.normalize(z, dim=-1) if self.config.unit_latents else z

    def decode(self, z_BTYXL: Tensor) -> Tensor:
        """[B, 3, frames, H, W], not clamped."""
        return self.decoder(self.from_latent(z_BTYXL))  # type: ignore[no-any-return]

    def forward(self, x_BCTHW: Tensor) -> Reconstruction:
        """Encode, quantize and decode, as training does; KL draws samples while training."""
        quantized = self.quantizer(self.encode(x_BCTHW))
        return Reconstruction(self.decode(quantized.z_q), quantized)
