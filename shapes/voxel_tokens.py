"""AToken's tokens of 3D assets: one for each voxel that holds a part of the surface.

A file holds them as a grid of tokens (x, y, z) whose empty places have none (`omnitok.token_plan`).

Shape suffixes: N voxels, L latent channels, A axes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from omnitok import TokensError
from omnitok.interop.atoken_gaussians import GaussianDecoder
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.quantize.base import DiscreteQuantizer
from omnitok.token_layout import Layout, TokenFile, check_values, storage_dtype, to_rows
from omnitok.token_plan import TokenPlan
from omnitok.tokens import HasWeights, Source
from shapes.extras import ShapesError
from shapes.splats import Splats
from shapes.views import Voxels, decode_splats

KIND = "voxels"  # of the source, in token files
METHOD = "surface"  # of the plan


@dataclass(frozen=True, eq=False)
class VoxelTokens:
    """Tokens of the voxels of a shape.

    Attributes:
        data: [N, L] latents, or [N] or [N, K] int64 codes, in the order of (x, y, z).
        layout: What a file says of them.
    """

    data: Tensor
    layout: Layout

    @property
    def coords(self) -> Tensor:
        """[N, 4] int64: object (0), x, y, z."""
        assert self.layout.plan is not None  # `encode` and `load` see to it
        xyz = torch.unravel_index(self.layout.plan.place, self.layout.grid)
        return F.pad(torch.stack(xyz, dim=1), (1, 0))

    @property
    def source(self) -> Source | None:
        """The file they were made from."""
        return self.layout.source

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return len(self.data)

    @property
    def bits_per_token(self) -> float:
        """Bits of one token."""
        return self.layout.info.bits_per_token(self.layout.dtype.itemsize)

    def save(self, path: str | Path) -> None:
        """Write a token file, whole or not at all.

        Raises:
            TokensError: It cannot be written, or a value is not one that the tokenizer makes.
        """
        rows = to_rows(self.data, self.layout.info)
        self.layout.write(Path(path), hashlib.sha256(rows).hexdigest(), [rows])

    @classmethod
    def load(cls, path: str | Path, tokenizer: HasWeights) -> VoxelTokens:
        """Read a token file.

        Raises:
            TokensError: It is damaged, made by other weights, or of something else.
        """
        with TokenFile(path, weights_sha256=tokenizer.weights_sha256) as file:
            layout = file.layout
            if (layout.source and layout.source.kind) != KIND or None in (
                layout.plan,
                layout.placement,
            ):
                raise TokensError(f"{path} holds no tokens of voxels; decode it with its own model")
            data = file.read_rows(0, layout.num_rows)
        check_values(data, layout.info)
        return cls(data, layout)


@torch.no_grad()
def encode(tok: ATokenTokenizer, voxels: Voxels, source: Source | None = None) -> VoxelTokens:
    """The surface of a shape to a token for each voxel (KL: the mean)."""
    data = tok.encode_voxels(voxels.pixels, voxels.coords)
    if isinstance(tok.model.quantizer, DiscreteQuantizer):
        data = tok.model.quantizer.latents_to_codes(data)
    data, side, many = data.cpu(), voxels.resolution, len(voxels.coords)
    x, y, z = voxels.coords[:, 1:].T
    place = (x * side + y) * side + z
    token = torch.full((side**3,), -1)
    token[place] = torch.arange(many)
    grid = (side, side, side)
    plan = TokenPlan(
        method=METHOD,
        budget=None,
        options={},
        grid=grid,
        place=place,
        source=token,
        size=torch.ones(many),
    )
    t, h, w = tok.patch
    return VoxelTokens(
        data,
        Layout(
            info=tok.info,
            dtype=storage_dtype(data, tok.info),
            size=(side * t, side * h, side * w),
            grid=grid,
            pts=None,
            source=source or Source(kind=KIND),
            preprocess=None,
            compute=tok.compute,
            placement=voxels.placement,
            plan=plan,
        ),
    )


@torch.no_grad()
def decode(tok: ATokenTokenizer, decoder: GaussianDecoder, tokens: VoxelTokens) -> Splats:
    """Tokens of voxels to Gaussians in the position and scale of the source.

    Raises:
        ShapesError: The decoder is not one for these tokens.
    """
    layout, side = tokens.layout, decoder.config.resolution
    assert layout.placement is not None  # `encode` and `load` see to it
    if layout.grid != (side, side, side):
        raise ShapesError(
            f"the tokens are of {layout.grid[0]} voxels on a side, but the Gaussian decoder is for "
            f"{side}; use the decoder that belongs to them"
        )
    z_NL = tokens.data.to(tok.device)
    if isinstance(tok.model.quantizer, DiscreteQuantizer):
        z_NL = tok.model.quantizer.codes_to_latents(z_NL)
    return decode_splats(tok, decoder, z_NL, tokens.coords, layout.placement)
