"""AToken's decoder from voxels to 3D Gaussians: the shared transformer over windows of voxels.

Shape suffixes: N voxels, A axes, D width, L latent channels, G Gaussians of a voxel, M Gaussians of
an object.

Source: Lu et al. 2025 (AToken), arXiv:2509.14476, after Xiang et al. 2024 (TRELLIS),
arXiv:2412.01506; low-pass filter of Yu et al. 2024 (Mip-Splatting), arXiv:2311.16493.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.config import MAX_WIDTH, StackConfig, hold_to_types, reject_unknown
from omnitok.interop.atoken_layout import windows_of
from omnitok.nn.layout import LOCAL, SHIFTED, Layout, Partition
from omnitok.nn.stack import Stack
from omnitok.token_facts import conform

SOFT_CAP = 30.0
_FIXED = {"attn_mode": "swin", "perturb_offset": True, "scaling_activation": "softplus"}
PARTS = {"xyz": 3, "features_dc": 3, "scaling": 3, "rotation": 4, "opacity": 1}  # output channels


@dataclass(kw_only=True, slots=True)
class GaussianConfig:
    """The shape of a Gaussian decoder.

    Attributes:
        stack: Blocks over windows of voxels, the side of a window included.
        latent_channels: Channels of a voxel.
        resolution: Voxels on a side of the object's box.
        num_gaussians: Gaussians of a voxel.
        voxel_size: Voxels that a Gaussian may be moved across.
        rates: Factor on each part of the output.
        filter_size: Smallest standard deviation, as a share of the box.
        scaling_bias: Standard deviation where the output is zero.
        opacity_bias: Opacity where the output is zero.
    """

    stack: StackConfig
    latent_channels: int = 768
    resolution: int = 64
    num_gaussians: int = 32
    voxel_size: float = 1.5
    rates: dict[str, float] = field(default_factory=lambda: {"rotation": 0.1})
    filter_size: float = 9e-4
    scaling_bias: float = 4e-3
    opacity_bias: float = 0.1

    def __post_init__(self) -> None:
        hold_to_types(self)
        unknown = sorted(set(self.rates) - set(PARTS))
        if unknown:
            raise ValueError(f"unknown parts {unknown}; choose from {list(PARTS)}")
        self.rates = {name: conform(name, rate, float) for name, rate in self.rates.items()}
        if set(self.stack.layers) - {LOCAL, SHIFTED}:
            raise ValueError(f"layers={self.stack.layers} must be {LOCAL!r} or {SHIFTED!r}")
        for name in ("latent_channels", "resolution", "num_gaussians"):
            if not 1 <= getattr(self, name) <= MAX_WIDTH:
                raise ValueError(f"{name}={getattr(self, name)} must be between 1 and {MAX_WIDTH}")
        for name, most in (("voxel_size", 64.0), ("scaling_bias", 1.0), ("opacity_bias", 1.0)):
            if not 0 < getattr(self, name) < most:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and {most}")
        if self.filter_size < 0:
            raise ValueError(f"filter_size={self.filter_size} must be at least 0")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-friendly dict that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GaussianConfig:
        """Rebuild a config; an unknown, missing or misshapen entry is a ValueError."""
        reject_unknown("Gaussian decoder config", values, cls)
        try:
            reject_unknown("Gaussian decoder config 'stack'", values["stack"], StackConfig)
            return cls(**{**values, "stack": StackConfig(**values["stack"])})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"Gaussian decoder config is not complete or well formed: {error}"
            ) from error

    @classmethod
    def published(cls, values: Mapping[str, Any]) -> GaussianConfig:
        """The config that entries of the published yaml describe.

        Raises:
            ValueError: They ask for something that was never published.
        """
        shown = values["representation_config"]
        for key, known in _FIXED.items():
            if {**shown, **values}.get(key, known) != known:
                raise ValueError(f"{key} is not supported, only {known!r}")
        sizes = ("model_channels", "num_heads", "num_blocks", "mlp_channels", "window_size")
        return cls(
            stack=gaussian_stack(*(values[name] for name in sizes)),
            latent_channels=values["latent_channels"],
            resolution=values["resolution"],
            num_gaussians=shown["num_gaussians"],
            voxel_size=shown["voxel_size"],
            rates={name.removeprefix("_"): rate for name, rate in shown["lr"].items()},
            filter_size=shown["3d_filter_kernel_size"],
            scaling_bias=shown["scaling_bias"],
            opacity_bias=shown["opacity_bias"],
        )


def gaussian_stack(width: int, heads: int, depth: int, hidden: int, window: int) -> StackConfig:
    """The blocks of a Gaussian decoder: windows that are moved in every second one."""
    return StackConfig(
        width=width,
        heads=heads,
        layers=tuple((LOCAL, SHIFTED)[i % 2] for i in range(depth)),
        mlp_hidden=hidden,
        window=window,
        lookback=0,
        qk_norm=False,
        norm_affine=True,
        mlp="gelu_tanh",
    )


@dataclass(frozen=True)
class Gaussians:
    """The Gaussians of one object in the box from -0.5 to 0.5.

    Attributes:
        xyz: [M, 3] centres.
        features_dc: [M, 1, 3] colours: red, green, blue are 0.28209479 times these, plus 0.5.
        scaling: [M, 3] standard deviations.
        rotation: [M, 4] unit quaternions, w first.
        opacity: [M, 1] between 0 and 1.
        opacity_logit: [M, 1] the same before the sigmoid.
        quaternion: [M, 4] rotations before they are normalised.
    """

    xyz: Tensor
    features_dc: Tensor
    scaling: Tensor
    rotation: Tensor
    opacity: Tensor
    opacity_logit: Tensor
    quaternion: Tensor

    def splats(self) -> dict[str, NDArray[np.float32]]:
        """The numbers of a splat file, as `shapes.splats.Splats` takes them."""
        tensors = {
            "xyz": self.xyz,
            "dc": self.features_dc.flatten(1),
            "opacity": self.opacity_logit.flatten(),
            "log_scale": self.scaling.log(),
            "rotation": self.quaternion,
        }
        return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


class GaussianDecoder(nn.Module):
    """Voxels with latents to the Gaussians of objects."""

    offset_perturbation: Tensor

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.config = config
        width, many = config.stack.width, config.num_gaussians
        self.embed = nn.Linear(config.latent_channels, width, bias=False)
        self.stack = Stack(config.stack)
        self.out = nn.Linear(width, sum(PARTS.values()) * many)
        self.register_buffer("offset_perturbation", spread(many, config.voxel_size))

    def forward(self, x_NL: Tensor, coords_NA: Tensor) -> Tensor:
        """Raw output of the network.

        Args:
            x_NL: Latents of voxels.
            coords_NA: [N, 4] integers: object, x, y, z.

        Returns:
            [N, 14 * G] in the dtype of the weights.
        """
        coords_NA = coords_NA.cpu()
        positions_ND = sines(coords_NA[:, 1:], self.config.stack.width).to(self.embed.weight)
        x_ND = self.embed(x_NL.to(self.embed.weight.dtype)) + positions_ND
        layout = self.layout(coords_NA.long().numpy(), x_ND.device)
        x_ND = self.stack(x_ND[None, None], layout)[0, 0]
        return self.out(F.layer_norm(x_ND, x_ND.shape[-1:]))  # type: ignore[no-any-return]

    def layout(self, coords_NA: NDArray[np.int64], device: torch.device) -> Layout:
        """Windows of voxels. No layer rotates: every voxel is at the origin."""
        side = self.config.stack.window
        partitions = {}
        for kind, shift in ((LOCAL, 0), (SHIFTED, side // 2)):
            place = np.hstack([coords_NA[:, :1], (coords_NA[:, 1:] + shift) // side])
            _, window_N = np.unique(place, axis=0, return_inverse=True)
            order, runs, _ = windows_of(window_N.reshape(-1))
            # the published code forgets its cap where all windows hold `window` voxels
            cap = None if {size for _, size in runs} == {side} else SOFT_CAP
            partitions[kind] = Partition(torch.from_numpy(order).to(device), runs, cap)
        return Layout(torch.zeros(len(coords_NA), 4, device=device).double(), partitions)

    def gaussians(self, out: Tensor, coords_NA: Tensor) -> list[Gaussians]:
        """The objects that raw output describes, in the order of their numbers."""
        many = self.config.num_gaussians
        parts_NGA = {}
        start = 0
        for name, axes in PARTS.items():
            part = out[:, start : start + axes * many].float() * self.config.rates.get(name, 1.0)
            parts_NGA[name] = rearrange(part, "n (g a) -> n g a", g=many)
            start += axes * many
        centre = (coords_NA[:, None, 1:].to(out.device) + 0.5) / self.config.resolution
        reach = 0.5 * self.config.voxel_size / self.config.resolution
        moved = torch.tanh(parts_NGA["xyz"] + self.offset_perturbation.float())
        parts_NGA["xyz"] = centre + reach * moved - 0.5
        sizes = torch.bincount(coords_NA[:, 0].cpu().long()).tolist()
        order = coords_NA[:, 0].to(out.device).argsort(stable=True)
        cut = {name: torch.split(part[order], sizes) for name, part in parts_NGA.items()}
        return [
            self._activate({name: part[i].flatten(0, 1) for name, part in cut.items()})
            for i in range(len(sizes))
        ]

    def _activate(self, raw: Mapping[str, Tensor]) -> Gaussians:
        config = self.config
        bias = config.scaling_bias + math.log(-math.expm1(-config.scaling_bias))
        wide = F.softplus(raw["scaling"] + bias)
        logit = raw["opacity"] + math.log(config.opacity_bias / (1 - config.opacity_bias))
        quaternion = raw["rotation"] + raw["rotation"].new_tensor([1.0, 0, 0, 0])
        return Gaussians(
            xyz=raw["xyz"],
            features_dc=raw["features_dc"].unsqueeze(1),
            scaling=(wide.square() + config.filter_size**2).sqrt(),
            rotation=F.normalize(quaternion, dim=-1),
            opacity=logit.sigmoid(),
            opacity_logit=logit,
            quaternion=quaternion,
        )


def spread(many: int, reach: float) -> Tensor:
    """[G, 3] offsets before the tanh that spread Gaussians evenly over a voxel (Hammersley)."""
    points = [[n / many, _radical_inverse(n, 2), _radical_inverse(n, 3)] for n in range(many)]
    return ((2 * torch.tensor(points) - 1) / reach).atanh()


def _radical_inverse(n: int, base: int) -> float:
    """The digits of n mirrored at the point."""
    value, place = 0.0, 1.0 / base
    while n:
        n, digit = divmod(n, base)
        value += digit * place
        place /= base
    return value


def sines(coords_NA: Tensor, width: int) -> Tensor:
    """[N, width] sines and cosines of three coordinates, filled up with zeros."""
    count = width // 3 // 2
    frequencies = 10000 ** -(torch.arange(count, dtype=torch.float64) / count)
    angles = coords_NA.double().unsqueeze(-1) * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(waves, (0, width - waves.shape[1])).float()
