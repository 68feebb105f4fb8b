"""Patch discriminators for frames and for clips.

Source: Isola et al. 2016, arXiv:1611.07004, section 3.2.2, as OmniTokenizer (arXiv:2406.09399)
publishes it: kernels of 4 padded by 2, batch norms, learned input noise, and in 3D another batch
norm behind the last convolution.

Shape suffixes: N pictures or clips, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnitok.losses.sharing import Draws, SharedNorm


class InputNoise(nn.Module):
    """Adds noise of a learned strength, 0 at first, to every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """[N, C, ...] to the same shape; all channels get the same noise."""
        noise = draws.normal((len(x), 1, *x.shape[2:]), x.device)
        return x + self.strength.reshape(-1, *[1] * (x.ndim - 2)) * noise


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of [N, 3, H, W] frames (2D) or [N, 3, T, H, W] clips (3D).

    Args:
        axes: 2 or 3.
        width: Channels of the first convolution.
        depth: Convolutions of stride 2.
    """

    def __init__(self, axes: int, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        conv: type[nn.Module] = nn.Conv2d if axes == 2 else nn.Conv3d
        self.noise = InputNoise(3)
        widths = [3, *(width * min(2**level, 8) for level in range(depth + 1)), 1]
        self.stages = nn.ModuleList()
        for level in range(depth + 2):
            before, after = widths[level : level + 2]
            stride = 2 if level < depth else 1
            parts: list[nn.Module] = [conv(before, after, 4, stride, 2)]
            last = level == depth + 1
            if (0 < level and not last) or (last and axes == 3):
                parts.append(SharedNorm(after))
            if not last or axes == 3:
                parts.append(nn.LeakyReLU(0.2))
            self.stages.append(nn.Sequential(*parts))

    def forward(self, x: Tensor, draws: Draws | None = None) -> list[Tensor]:
        """Features of every stage; the last one holds the score of each patch, high for real."""
        x, features = self.noise(x, draws or Draws()), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
