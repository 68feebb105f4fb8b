"""3D assets in the shared transformer: three crossing planes in, a field over the box out.

Only the embedding, the output head and the field's small head belong to this modality; between
them run the same encoder, bottleneck and decoder as for images and video.

Shape suffixes: B batch, P planes (xy, xz, yz), C channels, R cells on a side of a plane (row: first
axis, column: second axis), N tokens, D width, L latent channels, M points, S points of the surface,
A axes (x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.config import PlanesConfig
from omnitok.quantize import Quantized

AXES = ((0, 1), (0, 2), (1, 2))  # (row, column) of the planes, of (x, y, z)
EMPTY = -2.0  # field of a fresh model: most of the box is outside
VIEW_SHARE = 0.3  # of the views beside the bins in the principal components
CONTRAST = 8.0  # logit of a cell that is wholly inside, in the first linear reading


@dataclass
class PlaneBatch:
    """What a training step on 3D assets needs (see `shapes.datasets`).

    Attributes:
        raster: [B, P, C, R, R] what the encoder sees.
        points: [B, M, A] places in the box from -1 to 1 at which inside is known.
        inside: [B, M] 1 inside, 0 outside.
        weights: [B, M] of the errors there.
        surface: [B, S, A] places on the surface, where colours are known.
        colors: [B, S, 3] their colours from 0 to 1.
        colored: [B] 1 where an asset has colours of its own, else 0.
    """

    raster: Tensor
    points: Tensor
    inside: Tensor
    weights: Tensor
    surface: Tensor
    colors: Tensor
    colored: Tensor

    def to(self, device: torch.device | str) -> PlaneBatch:
        """The same on a device."""
        return PlaneBatch(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass
class PlaneResult:
    """What came of a batch.

    Attributes:
        field: [B, M] logits of being inside at the batch's points.
        colors: [B, S, 3] from 0 to 1 at its places on the surface.
        quantized: The bottleneck's result; its tensors are [B, 1, N, ...].
        losses: Terms to be weighted and summed: "inside", "overlap", "color" and
            "roughness".
    """

    field: Tensor
    colors: Tensor
    quantized: Quantized
    losses: dict[str, Tensor]


class PlaneParts(nn.Module):
    """Embedding and heads of 3D assets.

    Args:
        config: Sizes.
        wide: Width of the encoder.
        deep: Width of the decoder.
    """

    def __init__(self, config: PlanesConfig, wide: int, deep: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.cells**2 * config.channels, wide)
        self.sheet_in = nn.Parameter(torch.zeros(len(AXES), wide))
        self.sheet_out = nn.Parameter(torch.zeros(len(AXES), deep))
        self.head = nn.Linear(deep, config.fine**2 * (config.features + config.bins))
        self.field = nn.Sequential(
            nn.Linear(config.features, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, 4),
        )

    def reset_parameters(self) -> None:
        """What differs from the rest of a fresh model: an empty box, read off the profiles."""
        for sheet in (self.sheet_in, self.sheet_out):
            nn.init.normal_(sheet, std=0.1)
        last = self.field[-1]
        with torch.no_grad():
            last.weight[0] = 0.0  # type: ignore[operator]
            last.bias[0] = EMPTY  # type: ignore[operator]

    def tokens(self, raster_BPCRR: Tensor) -> Tensor:
        """[B, P, C, R, R] to [B, 1, N, D] for the encoder."""
        config = self.config
        wanted = (len(AXES), config.channels, config.raster, config.raster)
        if tuple(raster_BPCRR.shape[1:]) != wanted:
            raise ValueError(f"got planes {list(raster_BPCRR.shape)}; expected [B, {wanted}]")
        pattern = "b p c (i u) (j v) -> b p (i j) (u v c)"
        patches = rearrange(raster_BPCRR, pattern, u=config.cells, v=config.cells)
        x_BPND: Tensor = self.embed(patches) + self.sheet_in[:, None]
        return x_BPND.flatten(1, 2)[:, None]

    def place(self, x_BGND: Tensor) -> Tensor:
        """Tell the decoder which plane each token is of."""
        return x_BGND + self.sheet_out.repeat_interleave(self.config.side**2, dim=0)

    def planes(self, x_BGND: Tensor) -> Tensor:
        """[B, 1, N, D] from the decoder to planes [B, P, C, R, R]: features, then profiles."""
        config = self.config
        pattern = "b 1 (p i j) (u v c) -> b p c (i u) (j v)"
        sizes = {"p": len(AXES), "i": config.side, "u": config.fine, "v": config.fine}
        planes: Tensor = rearrange(self.head(x_BGND), pattern, **sizes)
        return planes

    def field_at(self, planes_BPCRR: Tensor, points_BMA: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, M] of being inside, and colours [B, M, 3] from 0 to 1.

        Every plane says what lies at a point in two ways: by features, which are summed over the
        planes and read by a small network, and by a profile along the axis that it leaves out,
        whose values are logits that add up.
        """
        features, profiles = planes_BPCRR.split([self.config.features, self.config.bins], dim=2)  # type: ignore[no-untyped-call]
        sampled_BPMC = sample_planes(features, projections(points_BMA))
        out = self.field(sampled_BPMC.sum(dim=1).to(self.head.weight.dtype)).float()
        logits = out[..., 0] + sample_profiles(profiles, points_BMA).sum(dim=1)
        return logits, out[..., 1:].sigmoid()

    def field_on_lattice(self, planes_PCRR: Tensor, places_N: Tensor) -> Tensor:
        """Logits [N, N, N] at all (x, y, z) of given places: as `field_at`, with less work.

        Each plane is read only once for every pair of places, and what the first layer makes of the
        planes' sum is the sum of what it makes of them.
        """
        config, (first, *rest) = self.config, self.field
        hat = hats(places_N, planes_PCRR.shape[-1])
        features, profiles = planes_PCRR.float().split([config.features, config.bins], dim=1)  # type: ignore[no-untyped-call]
        flat_PNNC = (hat @ features @ hat.mT).permute(0, 2, 3, 1).to(first.weight.dtype)
        xy, xz, yz = F.linear(flat_PNNC, first.weight)  # type: ignore[arg-type]
        total = torch.zeros(len(hat), len(hat), len(hat), device=hat.device)
        deep = hats(places_N, config.bins)
        for (a, b), profile in zip(AXES, profiles, strict=True):
            wide = torch.tensordot(deep, hat @ profile @ hat.mT, dims=1)  # left out axis, a, b
            total += wide.movedim(0, 3 - a - b)
        for i, row in enumerate(total):  # a slice at a time stays small
            hidden = xy[i][:, None] + xz[i][None] + yz + first.bias
            for layer in rest[:-1]:
                hidden = layer(hidden)
            row += F.linear(hidden, rest[-1].weight[:1], rest[-1].bias[:1])[..., 0]  # type: ignore[index]
        return total


def hats(places_N: Tensor, cells: int) -> Tensor:
    """[N, cells] linear weights of cells at places from -1 to 1, with the border repeated."""
    place = ((places_N + 1) / 2 * cells - 0.5).clamp(0, cells - 1)
    numbers = torch.arange(cells, device=places_N.device)
    return (1 - (place[:, None] - numbers).abs()).clamp_min(0)


def projections(points_BMA: Tensor) -> Tensor:
    """[B, P, M, 2] (row, column) coordinates of points on the three planes."""
    return torch.stack([points_BMA[..., list(axes)] for axes in AXES], dim=1)


def sample_planes(
    planes_BPCRR: Tensor,
    places_BPM2: Tensor,
    *,
    align_corners: bool = False,
    padding: str = "border",
) -> Tensor:
    """Bilinear samples of planes.

    Args:
        planes_BPCRR: [B, P, C, rows, columns].
        places_BPM2: (row, column) from -1 to 1; the ends are the outer edges of the outermost cells
            or, with `align_corners`, their centres.
        align_corners: See there.
        padding: What lies beyond the ends: "border" values or "zeros".

    Returns:
        [B, P, M, C].
    """
    many = planes_BPCRR.shape[0]
    sampled = F.grid_sample(
        planes_BPCRR.flatten(0, 1).float(),
        places_BPM2.flatten(0, 1).flip(-1)[:, :, None].float(),  # grid_sample: column, row
        mode="bilinear",
        padding_mode=padding,
        align_corners=align_corners,
    )
    return rearrange(sampled, "(b p) c m 1 -> b p m c", b=many)


def sample_profiles(profiles_BPCRR: Tensor, points_BMA: Tensor) -> Tensor:
    """[B, P, M] values of profiles [B, P, bins, rows, columns], linear along all three axes."""
    many = profiles_BPCRR.shape[0]
    places = torch.stack(  # grid_sample: column, row, bin
        [points_BMA[..., [b, a, 3 - a - b]] for a, b in AXES], dim=1
    )
    sampled = F.grid_sample(
        profiles_BPCRR.flatten(0, 1)[:, None].float(),
        places.flatten(0, 1)[:, :, None, None].float(),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return rearrange(sampled, "(b p) 1 m 1 1 -> b p m", b=many)


def roughness(planes_BPCRR: Tensor) -> Tensor:
    """Mean square of the steps between neighbouring cells of planes."""
    steps = planes_BPCRR.diff(dim=-1), planes_BPCRR.diff(dim=-2)
    return steps[0].float().square().mean() + steps[1].float().square().mean()


def field_losses(
    field_BM: Tensor, colors_BMC: Tensor, planes_BPCRR: Tensor, batch: PlaneBatch
) -> dict[str, Tensor]:
    """Unweighted terms; the usual weights are 1, 0.3, 0.3 and 1e-5.

    The overlap, one less a soft IoU, counts a thin shape as much as a thick one.
    """
    error = F.binary_cross_entropy_with_logits(field_BM, batch.inside, batch.weights)
    found_BM = field_BM.sigmoid()
    both = (found_BM * batch.inside).sum(dim=1)
    either = (found_BM + batch.inside).sum(dim=1) - both
    off = (colors_BMC - batch.colors).abs().mean(dim=(1, 2)) * batch.colored
    return {
        "inside": error,
        "overlap": (1 - both / either.clamp_min(1e-6)).mean(),
        "color": off.sum() / batch.colored.sum().clamp_min(1),
        "roughness": roughness(planes_BPCRR),
    }
