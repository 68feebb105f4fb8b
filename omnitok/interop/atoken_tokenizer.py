"""AToken behind the face of our own tokenizer, with its semantic vectors and 3D.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, G groups, N tokens, P values of a
patch, L latent channels, D width, A axes (object, x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, overload

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from omnitok.config import TokenizerConfig
from omnitok.interop.atoken_layout import Grid, Items, Step, grid_items, grid_steps, items_of, steps
from omnitok.interop.atoken_net import ATokenModel, pad_clip
from omnitok.interop.base import PublishedTokenizer
from omnitok.nn.patch import patchify, unpatchify
from omnitok.nn.stack import StackCache
from omnitok.quantize import KL


class ATokenTokenizer(PublishedTokenizer):
    """AToken on images, clips of any length, and voxels.

    The published code drops the last frames of a clip that fill no patch, and crops the frames.
    Here they are padded instead (a clip of less than four frames with mid-grey ones, as an image
    is; otherwise the last frame and the edge pixels repeat) and cut off again after decoding.
    Windows of 16 frames are independent; `keep_frames` lets the decoder see frames before them.

    Attributes:
        stride: Frames that are decoded together.
        kept: Frames before those that the decoder sees.
    """

    model: ATokenModel
    config: TokenizerConfig
    causal = False
    broken: ClassVar[dict[str, str]] = {
        "P2": "an image is a frame and three empty ones; a clip's first tokens hold four frames",
        "P3": "the 16 frames of a window see each other, so a frame changes all of its tokens",
    }

    def __init__(self, model: ATokenModel, weights_sha256: str) -> None:
        super().__init__(model, weights_sha256)
        self.stride, self.kept = self.model.window * self.patch[0], 0

    def keep_frames(self, kept: int, stride: int | None = None) -> None:
        """Set how clips are decoded from now on; tokens do not change.

        Args:
            kept: Frames before a window that its decoding sees; 0 for none.
            stride: Frames of a window; None for what `kept` leaves of 16.

        Raises:
            ValueError: They are not whole groups.
        """
        group = self.patch[0]
        stride = self.model.window * group - kept if stride is None else stride
        if kept < 0 or stride < group or kept % group or stride % group:
            raise ValueError(
                f"kept={kept} and stride={stride} frames must be multiples of {group}, and stride "
                "above 0"
            )
        self.stride, self.kept = stride, kept

    # pixels

    def run_encoder(self, x_BCTHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `PublishedTokenizer.run_encoder`."""
        many, _, frames, *size = x_BCTHW.shape
        grid = (frames // self.patch[0], *self.grid((size[0], size[1])))
        now = grid_steps((grid,) * many, self.model.window, 0, self.device)
        encoder = self.model.encoder
        x_ND = encoder.embed(patchify(x_BCTHW, self.patch).flatten(0, 2))
        z_NL = self._latents_of(encoder.mix(x_ND, now), generator)
        return rearrange(z_NL, "(b t y x) c -> b c t y x", t=grid[0], y=grid[1], x=grid[2])

    def run_decoder(self, z_BcTHW: Tensor) -> Tensor:
        """See `PublishedTokenizer.run_decoder`."""
        return self._decode_next(z_BcTHW, StackCache())

    def _frames_at_once(self, cache: StackCache) -> int:
        return self.model.window * self.patch[0]

    def _groups_at_once(self, cache: StackCache) -> int:
        return self.stride // self.patch[0]

    def _encode_next(
        self, x_BCTHW: Tensor, cache: StackCache, generator: torch.Generator | None = None
    ) -> Tensor:
        x = pad_clip(x_BCTHW.to(self.device, self.dtype), self.patch, cache.time == 0)
        z = self.run_encoder(x, generator)
        cache.time += z.shape[2]
        return rearrange(z, "b c t h w -> b t (h w) c")

    def _decode_next(self, z_BcGHW: Tensor, cache: StackCache) -> Tensor:
        many, _, *grid = z_BcGHW.shape
        z_NL = rearrange(z_BcGHW.to(self.device, self.dtype), "b c g y x -> (b g y x) c")
        (step,) = grid_steps(((grid[0], grid[1], grid[2]),) * many, grid[0], 0, self.device)
        end = cache.time + grid[0]
        if self.kept:
            cache.keep = (min(end, self.kept // self.patch[0]) * grid[1] * grid[2],)
        x_NP = self.model.decode(z_NL, [step], cache if self.kept else None)
        cache.time = end
        x_BGNP = rearrange(x_NP, "(b g n) p -> b g n p", b=many, g=grid[0])
        return unpatchify(x_BGNP, self.patch, (grid[1], grid[2]))

    def _latents_of(self, x_ND: Tensor, generator: torch.Generator | None) -> Tensor:
        moments_NL: Tensor = self.model.proj(x_ND)
        quantizer = self.model.quantizer
        if generator is not None and isinstance(quantizer, KL):
            return quantizer.sample(moments_NL, generator, clamp=False)  # as published
        return moments_NL[:, : quantizer.dim]

    @overload
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    @overload
    def encode(
        self, x: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(
        self, x: Tensor | Sequence[Tensor], generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        """As `Tokenizer.encode`; clips of a list go through the network together."""
        discrete = self.codebook_size is not None
        if isinstance(x, Tensor) or not x or (discrete and generator is not None):
            return super().encode(x, generator)
        grids, features = self._features(x)
        return [
            rearrange(self._latents_of(z, generator), "(t y x) c -> c t y x", y=grid[1], x=grid[2])
            for grid, z in zip(grids, features, strict=True)
        ]

    @torch.no_grad()
    def embed(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """One semantic vector for each image or clip.

        Args:
            x: As `encode` takes it.

        Returns:
            [B, D] of length 1.
        """
        grids, features = self._features(list(x))
        return self._pool(torch.cat(features), grid_items(tuple(grids), self.device))

    def _pool(self, x_ND: Tensor, items: Items) -> Tensor:
        return F.normalize(self.model.head(x_ND, items), dim=-1)

    def _features(self, clips: Sequence[Tensor]) -> tuple[list[Grid], list[Tensor]]:
        """Grids and [N, D] semantic features of [3, T, H, W] clips, window by window."""
        if not clips:
            raise ValueError("got no clips; expected one or more, float [3, T, H, W] in [-1, 1]")
        for x in clips:
            if x.ndim != 4 or x.shape[0] != 3 or not x.is_floating_point() or 0 in x.shape:
                raise ValueError(
                    f"got {x.dtype} {list(x.shape)}; expected float [3, T, H, W] in [-1, 1]"
                )
        grids: list[Grid] = [
            (-(-x.shape[1] // self.patch[0]), *self.grid((x.shape[2], x.shape[3]))) for x in clips
        ]
        features: list[list[Tensor]] = [[] for _ in clips]
        span = self.model.window * self.patch[0]
        for start in range(0, max(x.shape[1] for x in clips), span):
            there = [i for i, x in enumerate(clips) if x.shape[1] > start]
            tokens, now = [], []
            for i in there:
                x = clips[i][None, :, start : start + span].to(self.device, self.dtype)
                x_BGNP = patchify(pad_clip(x, self.patch, start == 0), self.patch)
                tokens.append(x_BGNP.flatten(0, 2))
                now.append((x_BGNP.shape[1], *grids[i][1:]))
            step = grid_steps(tuple(now), self.model.window, 0, self.device)
            x_ND = self.model.encode(torch.cat(tokens), step)
            for i, part in zip(there, torch.split(x_ND, [len(t) for t in tokens]), strict=True):
                features[i].append(part)
        return grids, [torch.cat(parts) for parts in features]

    # voxels

    @torch.no_grad()
    def encode_voxels(
        self, pixels_NP: Tensor, coords_NA: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Surface voxels of one or more objects to latents before quantization (KL: the mean).

        Args:
            pixels_NP: [N, 3 * height * width of a patch] colours from 0 to 1 (see `shapes.voxels`).
            coords_NA: [N, 4] integers: object, x, y, z.
            generator: As `encode` takes it.

        Returns:
            [N, c].
        """
        return self._latents_of(self._voxel_features(pixels_NP, coords_NA), generator)

    @torch.no_grad()
    def embed_voxels(self, pixels_NP: Tensor, coords_NA: Tensor) -> Tensor:
        """[B, D] semantic vectors of length 1 of objects; see `encode_voxels`."""
        items = items_of(coords_NA[:, 0].cpu().long().numpy(), self.device)
        return self._pool(self._voxel_features(pixels_NP, coords_NA), items)

    @torch.no_grad()
    def decode_voxels(self, z_NL: Tensor, coords_NA: Tensor) -> Tensor:
        """[N, c] latents (after quantization if discrete) to [N, P] for a Gaussian decoder."""
        now = self._voxel_steps(coords_NA, len(z_NL))
        x_NP = self.model.decode(z_NL.to(self.device, self.dtype), now)
        return x_NP[:, : x_NP.shape[1] // self.patch[0]]

    def _voxel_features(self, pixels_NP: Tensor, coords_NA: Tensor) -> Tensor:
        values = self.model.encoder.embed.in_features
        if pixels_NP.ndim != 2 or pixels_NP.shape[1] != values // self.patch[0]:
            raise ValueError(
                f"got voxels {list(pixels_NP.shape)}; expected [N, {values // self.patch[0]}]"
            )
        x_NP = pixels_NP.to(self.device, self.dtype) * 2 - 1  # a voxel is the first frame of four
        x_NP = F.pad(x_NP, (0, values - x_NP.shape[1]))
        return self.model.encode(x_NP, self._voxel_steps(coords_NA, len(x_NP)))

    def _voxel_steps(self, coords_NA: Tensor, many: int) -> list[Step]:
        if coords_NA.shape != (many, 4) or many == 0 or coords_NA.is_floating_point():
            raise ValueError(
                f"got voxel coordinates {coords_NA.dtype} {list(coords_NA.shape)}; expected "
                f"integers [{many or 'N'}, 4] (object, x, y, z)"
            )
        if int(coords_NA.min()) < 0:
            raise ValueError(f"got the voxel coordinate {int(coords_NA.min())}; expected 0 or more")
        coords = F.pad(coords_NA.cpu().long(), (0, 1))[:, [0, 4, 1, 2, 3]]  # at t = 0
        return list(steps(coords.numpy(), self.model.window, 0, self.device))
