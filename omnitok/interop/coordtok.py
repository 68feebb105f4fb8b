"""CoordTok: a clip as three factorised planes (xy, yt, xt), decoded patch by patch anywhere.

The encoder turns a clip into a few plane tokens; the decoder reads the planes at any (t, x, y) and
turns each reading into a patch of one frame, so that long clips train on a few random patches.

Shape suffixes: B batch, T frames, H and W pixels, C channels, N tokens, D width, M queried patches,
P values of a patch. x is the row of a frame and y its column.

Source: Jang et al. 2024 (CoordTok), arXiv:2411.14762, and its published code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.planes import sample_planes

AXES = {"xy": (1, 2), "yt": (0, 2), "xt": (0, 1)}  # (row, column) of (t, x, y)
PADDED = 1.0  # what the published code adds to the scores of padded frames, where it means to mask


@dataclass(kw_only=True, slots=True)
class CoordTokConfig:
    """The shape of a network.

    Attributes:
        size: Frames, rows and columns of a clip.
        patch: Of the encoder, in frames and pixels.
        planes: Rows of xy, columns of xy and rows of xt and yt.
        plane_patch: Cells of a plane token, in space and in time.
        channels: Of a plane.
        width: Of all transformers.
        heads: Of all attentions.
        depths: Layers of the encoder, of the plane tokens and of the decoder.
        out_patch: Side of a decoded patch in pixels.
    """

    size: tuple[int, int, int] = (128, 128, 128)
    patch: tuple[int, int] = (8, 8)
    planes: tuple[int, int, int] = (16, 16, 32)
    plane_patch: tuple[int, int] = (8, 16)
    channels: int = 8
    width: int = 1024
    heads: int = 16
    depths: tuple[int, int, int] = (8, 24, 24)
    out_patch: int = 8

    def to_dict(self) -> dict[str, Any]:
        """A JSON-friendly dict."""
        return asdict(self)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of the decoder in time, rows and columns."""
        frames, rows, columns = self.size
        return frames, rows // self.out_patch, columns // self.out_patch

    def plane_size(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a plane."""
        rows, columns, times = self.planes
        sizes = (times, rows, columns)  # of t, x, y
        return sizes[AXES[name][0]], sizes[AXES[name][1]]

    def plane_patches(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a token of a plane, in cells."""
        space, time = self.plane_patch
        return (time if AXES[name][0] == 0 else space), space


class Attention(nn.Module):
    """Attention of tokens over themselves, as timm names it."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        q, k, v = rearrange(self.qkv(x_BND), "b n (i h k) -> i b h n k", i=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(mixed, "b h n k -> b n (h k)"))  # type: ignore[no-any-return]


class Hidden(nn.Module):
    """Two linear layers, as timm names them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A pre-norm layer, as timm names it."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, bias), Hidden(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))  # type: ignore[no-any-return]


class Mixing(nn.Module):
    """Attention of some tokens over others, as torch names it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.out_proj = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x_BND: Tensor, y_BSD: Tensor, bias_BS: Tensor | None = None) -> Tensor:
        """[B, N, D] over [B, S, D]; `bias_BS` is added to all scores of a token of the latter."""
        wq, wk, wv = self.in_proj_weight.chunk(3)
        q, k, v = (
            rearrange(F.linear(z, w), "b n (h k) -> b h n k", h=self.heads)
            for z, w in ((x_BND, wq), (y_BSD, wk), (y_BSD, wv))
        )
        mask = None if bias_BS is None else bias_BS[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(rearrange(mixed, "b h n k -> b n (h k)"))  # type: ignore[no-any-return]


class PlaneLayer(nn.Module):
    """Plane tokens look at the clip, then at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_attn, self.self_attn = Mixing(width, heads), Mixing(width, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, 1e-6) for _ in range(3))
        # numbers as in the published state: a GELU and a dropout lie between
        self.mlp = nn.ModuleDict(
            {"0": nn.Linear(width, 4 * width), "3": nn.Linear(4 * width, width)}
        )

    def forward(self, x_BND: Tensor, clip_BSD: Tensor, bias_BS: Tensor | None) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        x_BND = x_BND + self.cross_attn(self.norm1(x_BND), clip_BSD, bias_BS)
        normed = self.norm2(x_BND)
        x_BND = x_BND + self.self_attn(normed, normed)
        return x_BND + self.mlp["3"](F.gelu(self.mlp["0"](self.norm3(x_BND))))  # type: ignore[no-any-return]


class ClipEncoder(nn.Module):
    """Patches of a clip with learned positions and one token more, which is dropped at the end."""

    def __init__(self, config: CoordTokConfig) -> None:
        super().__init__()
        frames, rows, columns = config.size
        time, space = config.patch
        count = (frames // time) * (rows // space) * (columns // space)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(
            3, config.width, (time, space, space), (time, space, space)
        )
        self.pos_emb = nn.Parameter(torch.zeros(1, count, config.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        layers = (Layer(config.width, config.heads, False) for _ in range(config.depths[0]))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width, 1e-6)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """[B, T, H, W, 3] in [-1, 1] to [B, N, D]."""
        embedded = self.patch_embed.proj(rearrange(x_BTHWC, "b t h w c -> b c t h w"))  # type: ignore[operator]
        x_BND = rearrange(embedded, "b d t h w -> b (t h w) d") + self.pos_emb
        x_BND = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        for layer in self.layers:
            x_BND = layer(x_BND)
        return self.norm(x_BND)[:, 1:]  # type: ignore[no-any-return]


class PlaneEncoder(nn.Module):
    """A clip to three planes."""

    def __init__(self, config: CoordTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ClipEncoder(config)
        self.cross_pos_emb = nn.Parameter(torch.zeros_like(self.encoder.pos_emb))
        for name in AXES:
            rows, columns = config.plane_patches(name)
            embed = nn.Module()
            embed.proj = nn.Conv2d(config.channels, config.width, (rows, columns), (rows, columns))
            self.add_module(f"patch_embeds_{name}", embed)
            values = rows * columns * config.channels
            self.add_module(f"projectors_{name}", nn.Linear(config.width, values))
        self.transformer = nn.Module()
        layers = (PlaneLayer(config.width, config.heads) for _ in range(config.depths[1]))
        self.transformer.layers = nn.ModuleList(layers)
        self.transformer.norm = nn.LayerNorm(config.width, 1e-6)

    def forward(
        self, x_BTHWC: Tensor, planes: dict[str, Tensor], frames_B: Tensor | None
    ) -> dict[str, Tensor]:
        """[B, T, H, W, 3] and the learned planes to planes [B, rows, columns, C]."""
        clip_BSD = self.encoder(x_BTHWC) + self.cross_pos_emb
        bias_BS = None if frames_B is None else self._padded(frames_B, clip_BSD.shape[1])
        tokens, sizes = [], []
        for name in AXES:
            embed = getattr(self, f"patch_embeds_{name}").proj
            part = embed(rearrange(planes[name], "1 a b c -> 1 c a b"))
            tokens.append(rearrange(part, "1 d a b -> 1 (a b) d"))
            sizes.append(tokens[-1].shape[1])
        x_BND = torch.cat(tokens, dim=1).expand(len(x_BTHWC), -1, -1)
        for layer in self.transformer.layers:  # type: ignore[union-attr]
            x_BND = layer(x_BND, clip_BSD, bias_BS)
        parts = torch.split(self.transformer.norm(x_BND), sizes, dim=1)  # type: ignore[operator]
        result = {}
        for name, part in zip(AXES, parts, strict=True):
            rows, columns = self.config.plane_patches(name)
            result[name] = rearrange(
                getattr(self, f"projectors_{name}")(part),
                "b (i j) (u v c) -> b (i u) (j v) c",
                i=self.config.plane_size(name)[0] // rows,
                u=rows,
                v=columns,
            )
        return result

    def _padded(self, frames_B: Tensor, count: int) -> Tensor:
        """[B, S] what is added to the scores of patches: the published code masks nothing."""
        time = self.config.patch[0]
        each = count // (self.config.size[0] // time)
        first = torch.arange(count, device=frames_B.device) // each * time
        return (first >= frames_B[:, None]).float() * PADDED


class PatchDecoder(nn.Module):
    """Readings of the planes to patches of one frame each; all queried ones see each other."""

    def __init__(self, config: CoordTokConfig) -> None:
        super().__init__()
        width = config.width
        self.transformer = nn.Module()
        self.transformer.patch_embed = nn.Linear(len(AXES) * config.channels, width)
        self.transformer.pos_embed = nn.Parameter(torch.zeros(1, *config.grid, width))
        layers = (Layer(width, config.heads, True) for _ in range(config.depths[2]))
        self.transformer.layers = nn.ModuleList(layers)
        self.transformer.norm = nn.LayerNorm(width, 1e-6)
        self.projector = nn.Linear(width, 3 * config.out_patch**2)

    def forward(self, read_BMC: Tensor, coords_BM3: Tensor) -> Tensor:
        """[B, M, 3 C] readings at (t, x, y) from 0 to 1 to patches [B, M, P]."""
        net: Any = self.transformer
        last = torch.tensor(net.pos_embed.shape[1:4], device=coords_BM3.device) - 1
        t, x, y = (coords_BM3 * last).long().unbind(-1)
        x_BMD = net.patch_embed(read_BMC) + net.pos_embed[0, t, x, y]
        for layer in net.layers:
            x_BMD = layer(x_BMD)
        return self.projector(net.norm(x_BMD))  # type: ignore[no-any-return]


class CoordTok(nn.Module):
    """The whole network."""

    def __init__(self, config: CoordTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = PlaneEncoder(config), PatchDecoder(config)
        for name in AXES:
            size = (1, *config.plane_size(name), config.channels)
            self.register_parameter(f"weight_tokens_{name}", nn.Parameter(torch.randn(size) * 0.02))

    def encode(self, x_BTHWC: Tensor, frames_B: Tensor | None = None) -> dict[str, Tensor]:
        """A clip to its planes {"xy", "yt", "xt"}, each [B, rows, columns, C].

        Args:
            x_BTHWC: In [-1, 1], of the size of the config; short clips are padded at the end.
            frames_B: How many frames of each clip are no padding; None if all are.
        """
        planes = {name: getattr(self, f"weight_tokens_{name}") for name in AXES}
        return self.encoder(x_BTHWC, planes, frames_B)  # type: ignore[no-any-return]

    def read(self, planes: dict[str, Tensor], coords_BM3: Tensor) -> Tensor:
        """[B, M, 3 C] what the planes hold at (t, x, y) from 0 to 1: centres of border cells."""
        parts = []
        for name, axes in AXES.items():
            plane = rearrange(planes[name], "b i j c -> b 1 c i j")
            places = 2 * coords_BM3[:, None][..., list(axes)] - 1
            parts.append(sample_planes(plane, places, align_corners=True)[:, 0])
        return torch.cat(parts, dim=-1)

    def decode(self, planes: dict[str, Tensor], coords_BM3: Tensor) -> Tensor:
        """[B, M, P] patches (row, column, colour) at (t, x, y), each index / (count - 1)."""
        return self.decoder(self.read(planes, coords_BM3), coords_BM3)  # type: ignore[no-any-return]

    def grid(self) -> Tensor:
        """[T * rows * columns, 3] places of all patches of a clip, time first."""
        lines = [torch.arange(n) / max(1, n - 1) for n in self.config.grid]
        return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, 2)

    def decode_clip(self, planes: dict[str, Tensor]) -> Tensor:
        """[B, T, H, W, 3] the whole clip."""
        many = len(planes["xy"])
        patches = self.decode(planes, self.grid().to(planes["xy"]).expand(many, -1, -1))
        t, h, w = self.config.grid
        pattern = "b (t h w) (u v c) -> b t (h u) (w v) c"
        return rearrange(patches, pattern, t=t, h=h, w=w, u=self.config.out_patch, c=3)

    def patches_of(self, x_BTHWC: Tensor) -> Tensor:
        """[B, T * rows * columns, P] the patches that `decode` is to give on the `grid`."""
        side = self.config.out_patch
        pattern = "b t (h u) (w v) c -> b (t h w) (u v c)"
        return rearrange(x_BTHWC, pattern, u=side, v=side)

    def loss(self, x_BTHWC: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Squared error of `count` random patches of each clip, summed over clips.

        The cost of the decoder does not grow with the length of the clip.
        """
        truth = self.patches_of(x_BTHWC)
        chosen = torch.rand(truth.shape[:2], generator=generator, device=truth.device)
        index = chosen.topk(count, dim=1).indices
        coords = self.grid().to(truth)[index]
        found = self.decode(self.encode(x_BTHWC), coords)
        return patch_loss(found, truth.take_along_dim(index[..., None], dim=1))


def patch_loss(found_BMP: Tensor, truth_BMP: Tensor) -> Tensor:
    """Mean squared error over patches and values, summed over clips."""
    return F.mse_loss(found_BMP, truth_BMP, reduction="none").mean(dim=(1, 2)).sum()
