"""The autoencoder: patches, encoder, bottleneck, decoder, patches.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, G groups, N tokens of a group,
D width, L latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnitok.config import TokenizerConfig
from omnitok.nn.layout import Layout, grid_layout, planes_layout
from omnitok.nn.linear import linear
from omnitok.nn.patch import embed, grid_of, pad_frames, paint
from omnitok.nn.stack import Stack, StackCache
from omnitok.planes import PlaneBatch, PlaneParts, PlaneResult, field_losses
from omnitok.quantize import Quantized, build_quantizer


@dataclass
class Reconstruction:
    """What a training step needs.

    Attributes:
        recon: [B, 3, T, H, W] decoded pixels, not clamped.
        quantized: The bottleneck's result; its tensors are [B, G, N, ...].
    """

    recon: Tensor
    quantized: Quantized


class Autoencoder(nn.Module):
    """Encoder and decoder of one tokenizer.

    Frame 0 is a group of its own with its own patch embedding and output head, since a still patch
    and a moving one have different statistics (docs/decisions.md).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        t, h, w = config.patch
        still, moving = 3 * h * w, 3 * t * h * w
        wide, deep = config.encoder.width, config.decoder.width
        self.embed_first = nn.Linear(still, wide)
        self.embed = nn.Linear(moving, wide)
        self.encoder = Stack(config.encoder)
        self.quantizer = build_quantizer(config.quantizer)
        self.to_latent = nn.Linear(wide, self.quantizer.input_dim)
        self.from_latent = nn.Linear(self.quantizer.dim, deep)
        self.decoder = Stack(config.decoder)
        self.head_first = nn.Linear(deep, still)
        self.head = nn.Linear(deep, moving)
        self.planes = PlaneParts(config.planes, wide, deep) if config.planes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every block starts as the identity, so that depth never blocks the linear path."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for stack in (self.encoder, self.decoder):
            for block in stack.blocks:
                nn.init.zeros_(block.attention.out.weight)  # type: ignore[union-attr, arg-type]
                nn.init.zeros_(block.mlp.down.weight)  # type: ignore[union-attr, arg-type]
        if self.planes is not None:
            self.planes.reset_parameters()

    def layout(self, side: str, grid: tuple[int, int]) -> Layout:
        """The layout that the "encoder" or the "decoder" uses for frames of `grid` patches."""
        window = getattr(self.config, side).window
        return grid_layout(*grid, window, self.embed.weight.device)

    def encode_groups(self, x_BCTHW: Tensor, cache: StackCache | None = None) -> Tensor:
        """Frames of whole groups to what the bottleneck takes.

        Args:
            x_BCTHW: Pixels in [-1, 1] of whole patches. The first frame is a group of its own
                unless `cache` says that groups came before.
            cache: State of the stream, brought up to date in place.

        Returns:
            [B, G, N, L] before quantization (KL: mean and log variance).
        """
        t, h, w = self.config.patch
        grid = grid_of((x_BCTHW.shape[-2], x_BCTHW.shape[-1]), self.config.patch)
        parts = []
        if cache is None or cache.time == 0:
            parts.append(embed(self.embed_first, x_BCTHW[:, :, :1], (1, h, w)))
            x_BCTHW = x_BCTHW[:, :, 1:]
        if x_BCTHW.shape[2]:
            parts.append(embed(self.embed, x_BCTHW, (t, h, w)))
        x_BGND = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return linear(self.to_latent, self.encoder(x_BGND, self.layout("encoder", grid), cache))

    def decode_groups(
        self, z_BGNL: Tensor, grid: tuple[int, int], cache: StackCache | None = None
    ) -> Tensor:
        """The inverse of `encode_groups`.

        Args:
            z_BGNL: Quantized latents.
            grid: (h, w) in patches.
            cache: State of the stream, brought up to date in place.

        Returns:
            [B, 3, T, H, W] of whole patches, not clamped.
        """
        t, h, w = self.config.patch
        starts = cache is None or cache.time == 0
        x_BGND = linear(self.from_latent, z_BGNL)
        x_BGND = self.decoder(x_BGND, self.layout("decoder", grid), cache)
        parts = []
        if starts:
            parts.append(paint(self.head_first, x_BGND[:, :1], (1, h, w), grid))
            x_BGND = x_BGND[:, 1:]
        if x_BGND.shape[1]:
            parts.append(paint(self.head, x_BGND, (t, h, w), grid))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def forward(self, x_BCTHW: Tensor) -> Reconstruction:
        """Encode, quantize and decode whole clips at once, as training does.

        Args:
            x_BCTHW: [B, 3, T, H, W] in [-1, 1], any T, H, W.
        """
        frames, height, width = x_BCTHW.shape[2:]
        t = self.config.patch[0]
        whole = 1 + -(-(frames - 1) // t) * t
        padded = pad_frames(x_BCTHW, self.config.patch, whole)
        quantized = self.quantizer(self.encode_groups(padded))
        grid = grid_of((height, width), self.config.patch)
        recon = self.decode_groups(quantized.z_q, grid)
        return Reconstruction(recon[:, :, :frames, :height, :width], quantized)

    # 3D assets

    def _plane_parts(self) -> PlaneParts:
        if self.planes is None:
            raise ValueError(
                f"the weights of {self.config.name!r} carry no 3D stage; use weights that do"
            )
        return self.planes

    def encode_planes(self, raster_BPCRR: Tensor) -> Tensor:
        """Rasters of 3D assets to [B, 1, N, L] before quantization (KL: mean and log variance)."""
        parts = self._plane_parts()
        layout = planes_layout(parts.config.side, raster_BPCRR.device)
        return self.to_latent(self.encoder(parts.tokens(raster_BPCRR), layout))  # type: ignore[no-any-return]

    def decode_planes(self, z_BGNL: Tensor) -> Tensor:
        """Quantized latents [B, 1, N, L] to planes [B, P, C, R, R] (see `PlaneParts.field_at`)."""
        return self._plane_parts().planes(self.decode_features(z_BGNL))

    def decode_features(self, z_BGNL: Tensor) -> Tensor:
        """What the head of the 3D stage reads: [B, 1, N, D]."""
        parts = self._plane_parts()
        layout = planes_layout(parts.config.side, z_BGNL.device)
        return self.decoder(parts.place(self.from_latent(z_BGNL)), layout)  # type: ignore[no-any-return]

    def forward_planes(self, batch: PlaneBatch) -> PlaneResult:
        """Encode, quantize and decode 3D assets, and compare their fields with the truth.

        To be minimised: the sum of `losses` (weights 1, 0.3, 0.3, 1e-5) and `quantized.losses`.
        """
        parts = self._plane_parts()
        quantized = self.quantizer(self.encode_planes(batch.raster))
        planes = self.decode_planes(quantized.z_q)
        field, _ = parts.field_at(planes, batch.points)
        _, colors = parts.field_at(planes, batch.surface)
        losses = field_losses(field, colors, planes, batch)
        return PlaneResult(field, colors, quantized, losses)
