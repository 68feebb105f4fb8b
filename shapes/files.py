"""3D assets to tokens and back: in memory, and from file to file.

Shape suffixes: B batch, G groups (1), N tokens, L latent channels.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from omnitok import Tokenizer, Tokens, TokensError
from omnitok.interop.atoken_gaussians import GaussianDecoder
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.planes import AXES, PlaneParts
from omnitok.quantize.base import DiscreteQuantizer
from omnitok.tokens import Placement, Source, refuse_others
from shapes import splats, voxel_tokens
from shapes.extract import best_level, marching_cubes
from shapes.extras import ShapesError
from shapes.inside import Inside
from shapes.mesh import Mesh, read, write
from shapes.raster import FINER, Raster, rasterize
from shapes.sample import into_box, out_of_box, placement_of, sample_surface
from shapes.solid import repair
from shapes.views import voxelise
from shapes.voxel_tokens import VoxelTokens

RESOLUTION = 128  # lattice points on a side of the box
SURFACE = 200_000  # points that a shape is looked at by
CHUNK = 65_536  # points whose colours are decoded at a time
NOTES = {
    "open": "it is not closed; inside is where it is surrounded for the most part",
    "sheet": "it encloses nothing; it was made a sheet of 1/30 of its longest side",
}


@dataclass(frozen=True, kw_only=True)
class ShapeResult:
    """What `tokenize_file` or `detokenize_file` did.

    Attributes:
        src: What was read.
        dst: What was written.
        kept: Whether `dst` was there before and was left as it is.
        num_vertices: Of the mesh or cloud.
        num_faces: Of the mesh; 0 for a cloud.
        num_gaussians: Of splats.
        num_tokens: Tokens in all.
        bits_per_token: Bits of one token.
        num_bytes: Size of `dst`.
        seconds: Time it took.
        warnings: One sentence for everything that was not as it should be.
    """

    src: str
    dst: str
    kept: bool
    num_vertices: int = 0
    num_faces: int = 0
    num_gaussians: int = 0
    num_tokens: int
    bits_per_token: float
    num_bytes: int
    seconds: float
    warnings: tuple[str, ...] = ()


def parts_of(tok: Tokenizer) -> PlaneParts:
    """The 3D stage of a tokenizer.

    Raises:
        ShapesError: It has none.
    """
    parts = getattr(tok.model, "planes", None)
    if parts is None:
        raise ShapesError(
            f"the weights of {tok.config.name!r} carry no 3D stage of planes; name weights that "
            "do with --model (`omnitok models` lists them)"
        )
    assert isinstance(parts, PlaneParts)
    return parts


def look_at(mesh: Mesh, parts: PlaneParts) -> tuple[Raster, Placement, tuple[str, ...]]:
    """What the encoder sees of a mesh, where it lies, and what was not as it should be.

    Raises:
        ShapesError: There is no surface in it.
    """
    placement = placement_of(mesh)
    mesh = into_box(mesh, placement)
    solid = None if mesh.is_cloud else repair(mesh)
    surface = sample_surface(mesh, solid, SURFACE)
    inside = Inside(solid, surface)
    notes = solid.notes if solid is not None else ()
    if inside.kind == "sheet" or (solid is not None and inside.kind == "open"):
        notes = (*notes, NOTES[inside.kind])
    return rasterize(inside, surface, parts.config), placement, notes


@torch.no_grad()
def tokenize(tok: Tokenizer, mesh: Mesh) -> Tokens:
    """A mesh or cloud of points to tokens on a grid of three planes below each other.

    Raises:
        ShapesError: The tokenizer has no 3D stage, or there is no surface in the mesh.
    """
    raster, placement, _ = look_at(mesh, parts_of(tok))
    return encode(tok, raster, placement)


@torch.no_grad()
def encode(tok: Tokenizer, raster: Raster, placement: Placement) -> Tokens:
    """What the encoder sees of a shape (`look_at`) to tokens."""
    side, quantizer = parts_of(tok).config.side, tok.model.quantizer
    planes = raster.planes()[None].to(tok.device, tok.dtype)
    z_BGNL = tok.model.encode_planes(planes)[..., : quantizer.dim]
    grid = (1, len(AXES) * side, side)
    size = (1, grid[1] * tok.patch[1], grid[2] * tok.patch[2])
    codes = latents = None
    if isinstance(quantizer, DiscreteQuantizer):
        codes = quantizer.latents_to_codes(z_BGNL)[0].unflatten(1, grid[1:]).cpu()  # type: ignore[no-untyped-call]
    else:
        latents = rearrange(z_BGNL[0], "g (h w) c -> g h w c", h=grid[1]).cpu()
    tokens = Tokens(
        codes=codes,
        latents=latents,
        size=size,
        info=tok.info,
        source=Source(kind="shape"),
        compute=tok.compute,
        placement=placement,
    )
    cells = FINER * len(raster.shares)
    centres = (torch.arange(cells, device=tok.device) + 0.5) / cells * 2 - 1
    field = parts_of(tok).field_on_lattice(_planes_of(tok, tokens)[0], centres)
    level = best_level(field, raster.share.to(tok.device))
    tokens.placement = replace(placement, level=level)
    return tokens


def _planes_of(tok: Tokenizer, tokens: Tokens) -> Tensor:
    """[1, P, C, R, R] what the decoder makes of tokens."""
    if tokens.codes is not None:
        z = tok.model.quantizer.codes_to_latents(tokens.codes.to(tok.device))
    else:
        assert tokens.latents is not None
        z = tokens.latents.to(tok.device)
    return tok.model.decode_planes(rearrange(z.to(tok.dtype), "g h w c -> 1 g (h w) c"))


@torch.no_grad()
def detokenize(tok: Tokenizer, tokens: Tokens, resolution: int = RESOLUTION) -> Mesh:
    """Tokens to a closed mesh in the position and scale of the source.

    Args:
        tok: The tokenizer that made them.
        tokens: Of a 3D asset.
        resolution: Lattice points on a side of the box that the surface is found on.

    Raises:
        ShapesError: The tokenizer has no 3D stage, the tokens are of something else, or there is
            nothing in them.
    """
    placement = tokens.placement
    if placement is None:
        raise ShapesError("the tokens are of a picture or a clip; use tok.detokenize for them")
    if tokens.source is not None and tokens.source.kind == voxel_tokens.KIND:
        raise ShapesError("the tokens are of voxels, which decode to Gaussian splats, not a mesh")
    parts = parts_of(tok)
    if tokens.grid != (1, len(AXES) * parts.config.side, parts.config.side):
        raise ShapesError(
            f"the tokens have the grid {tokens.grid}, which {tok.config.name!r} lacks"
        )
    if not 8 <= resolution <= 1024:
        raise ShapesError(f"resolution={resolution} must be between 8 and 1024")
    refuse_others(tokens, tok)
    planes = _planes_of(tok, tokens)
    places = torch.linspace(-1, 1, resolution, device=tok.device)
    field = parts.field_on_lattice(planes[0], places)
    mesh = marching_cubes(field.cpu().numpy(), placement.level)
    if mesh is None:
        raise ShapesError("the tokens decode to nothing: no place is inside of them")
    colors = None
    if placement.colors:
        points = torch.from_numpy(mesh.vertices).float().to(tok.device)[None]
        pieces = torch.split(points, CHUNK, dim=1)
        shown = torch.cat([parts.field_at(planes, piece)[1][0] for piece in pieces])
        colors = shown.mul(255).round().to(torch.uint8).cpu().numpy()
    return out_of_box(Mesh(mesh.vertices, mesh.faces, colors), placement)


def tokenize_file(
    tok: Tokenizer, src: str | Path, dst: str | Path, *, overwrite: bool = False
) -> ShapeResult:
    """Turn a mesh or cloud into a token file; one that exists is kept if it is of the same source.

    AToken takes the surface of a mesh as voxels, every other tokenizer its three planes.

    Raises:
        ShapesError: `src` cannot be read or holds no surface, or the tokenizer has no 3D stage.
        TokensError: `dst` cannot be written, or exists and is not a token file of `src`.
    """
    started = time.monotonic()
    src, dst = os.fspath(src), os.fspath(dst)
    kind = voxel_tokens.KIND if isinstance(tok, ATokenTokenizer) else "shape"
    mesh = read(src)
    with open(src, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = Source(kind=kind, uri=os.path.basename(src), sha256=digest, codec=Path(src).suffix[1:])
    notes: tuple[str, ...] = ()
    kept = os.path.lexists(dst) and not overwrite
    if kept:
        tokens = _load(tok, dst)
        if tokens.source is None or tokens.source.sha256 != digest:
            raise TokensError(
                f"{dst} exists and was made from another file than {src}; pass --overwrite"
            )
    else:
        try:
            tokens, notes = _encode_mesh(tok, mesh, source)
        except ShapesError as error:
            raise ShapesError(f"{src}: {error}") from error
        tokens.save(dst)
    return _result(src, dst, kept, started, mesh, tokens, notes)


def detokenize_file(
    tok: Tokenizer,
    src: str | Path,
    dst: str | Path,
    *,
    resolution: int = RESOLUTION,
    gaussians: GaussianDecoder | None = None,
    overwrite: bool = False,
) -> ShapeResult:
    """Turn a token file into a mesh file, or tokens of voxels into splats; one that exists is kept.

    Args:
        tok: The tokenizer that made the tokens.
        src: The token file.
        dst: What to write.
        resolution: As in `detokenize`; means nothing to voxels.
        gaussians: The decoder of voxels.
        overwrite: Replace `dst`.

    Raises:
        TokensError: `src` is damaged, or was made by other weights.
        ShapesError: `src` is not of a 3D asset, or `dst` is no file for what it decodes to.
    """
    started = time.monotonic()
    src, dst = os.fspath(src), os.fspath(dst)
    tokens = _load(tok, src)
    kept = os.path.lexists(dst) and not overwrite
    shape: Mesh | splats.Splats
    try:
        if isinstance(tokens, Tokens):
            shape = read(dst) if kept else detokenize(tok, tokens, resolution)
        elif kept:
            shape = splats.read(dst)
        else:
            assert isinstance(tok, ATokenTokenizer)  # the tokens are of these weights
            if gaussians is None:
                raise ShapesError("the tokens are of voxels; give the Gaussian decoder for them")
            shape = voxel_tokens.decode(tok, gaussians, tokens)
    except ShapesError as error:
        raise ShapesError(f"{src}: {error}") from error
    if not kept:
        if isinstance(shape, Mesh):
            write(dst, shape)
        else:
            splats.write(dst, shape)
    return _result(src, dst, kept, started, shape, tokens)


def _encode_mesh(
    tok: Tokenizer, mesh: Mesh, source: Source
) -> tuple[Tokens | VoxelTokens, tuple[str, ...]]:
    """The tokens of a mesh or cloud, and what was not as it should be."""
    if isinstance(tok, ATokenTokenizer):
        return voxel_tokens.encode(tok, voxelise(mesh, patch=tok.patch[1]), source), ()
    raster, placement, notes = look_at(mesh, parts_of(tok))
    tokens = encode(tok, raster, placement)
    tokens.source = source
    return tokens, notes


def _load(tok: Tokenizer, path: str) -> Tokens | VoxelTokens:
    if isinstance(tok, ATokenTokenizer):
        return VoxelTokens.load(path, tok)
    return Tokens.load(path, tokenizer=tok)


def _result(
    src: str,
    dst: str,
    kept: bool,
    started: float,
    shape: Mesh | splats.Splats,
    tokens: Tokens | VoxelTokens,
    notes: tuple[str, ...] = (),
) -> ShapeResult:
    if isinstance(shape, Mesh):
        counts = {"num_vertices": len(shape.vertices), "num_faces": len(shape.faces)}
    else:
        counts = {"num_gaussians": len(shape.xyz)}
    return ShapeResult(
        src=src,
        dst=dst,
        kept=kept,
        num_tokens=tokens.num_tokens,
        bits_per_token=tokens.bits_per_token,
        num_bytes=os.path.getsize(dst),
        seconds=time.monotonic() - started,
        warnings=tuple(f"{src}: {note}" for note in notes),
        **counts,
    )
