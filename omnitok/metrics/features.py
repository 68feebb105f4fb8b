"""MobileNetV2, trained on ImageNet: the features that Fréchet and kernel distances compare.

Sources: Sandler et al. 2018, arXiv:1801.04381, table 2. Weights come from a file that
`python -m tools.feature_nets` makes. Distances of these features are neither FID nor FVD.

Shape suffixes: N pictures, T frames, C colours, H and W pixels, P crops, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from omnitok.metrics.mobile_net import (
    WIDTH,
    Convolution,
    MobileNet,
    MobileNetConfig,
    load_network,
)

CROP_SIDE, WHOLE_SIDE = 128, 224  # pixels that crops and whole pictures are scaled to
_BLOCKS = (  # expansion, channels, repeats, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _convolutions() -> Iterator[Convolution]:
    """All of them, in order."""
    yield Convolution("features.0.0", "features.0.1", (32, 3, 3, 3), 2)
    before, number = 32, 1
    for expansion, width, repeats, first in _BLOCKS:
        for repeat in range(repeats):
            at, inner = f"features.{number}.conv", before * expansion
            stride, part = 1 if repeat else first, 0
            if expansion > 1:
                shape = (inner, before, 1, 1)
                yield Convolution(f"{at}.0.0", f"{at}.0.1", shape, starts=True)
                part = 1
            shape = (inner, 1, 3, 3)
            yield Convolution(f"{at}.{part}.0", f"{at}.{part}.1", shape, stride, starts=not part)
            shape = (width, inner, 1, 1)
            yield Convolution(f"{at}.{part + 1}", f"{at}.{part + 2}", shape, ends=True)
            before, number = width, number + 1
    yield Convolution(f"features.{number}.0", f"features.{number}.1", (WIDTH, before, 1, 1))


MOBILENET = MobileNetConfig(
    name="mobilenet-v2",
    convolutions=tuple(_convolutions()),
    classes="classifier.1",
    epsilon=1e-5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    centred=True,
)


def load_mobilenet(path: str | Path) -> MobileNet:
    """See `omnitok.metrics.mobile_net.load_network`."""
    return load_network(path, MOBILENET)


def cut(frames_TCHW: Tensor, crops: int) -> Tensor:
    """Overlapping crops on a regular grid, in [-1, 1].

    Args:
        frames_TCHW: uint8.
        crops: 1 for whole frames, scaled to 224 pixels square; 4 or 9 for as many squares of half
            the shorter side, scaled to 128 pixels.

    Returns:
        [P, T, 3, side, side] float32.
    """
    if crops == 1:
        boxes, side = [frames_TCHW], WHOLE_SIDE
    else:
        height, width = frames_TCHW.shape[2:]
        size, steps = max(1, min(height, width) // 2), round(crops**0.5) - 1
        places = [
            ((height - size) * row // steps, (width - size) * column // steps)
            for row in range(steps + 1)
            for column in range(steps + 1)
        ]
        boxes = [frames_TCHW[:, :, y : y + size, x : x + size] for y, x in places]
        side = CROP_SIDE
    scaled = []
    for box in boxes:
        x = box.float() / 127.5 - 1
        if x.shape[2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        scaled.append(x)
    return torch.stack(scaled)


def clip_features(network: MobileNet, frames_TCHW: Tensor, crops: int) -> tuple[Tensor, Tensor]:
    """Features of a clip's pictures, and of the clip as a whole.

    Args:
        network: Where they come from; its device is used.
        frames_TCHW: uint8.
        crops: See `cut`.

    Returns:
        [P * T, D] features of every crop of every frame; [P, 2 * D] mean over frames and mean
        absolute change from frame to frame of every crop. Both on the CPU.
    """
    device = network.get_buffer("mean").device
    parts = []
    for crop_TCHW in cut(frames_TCHW, crops):
        parts += [network(x.to(device)).cpu() for x in crop_TCHW.split(32)]
    pictures_PTD = torch.cat(parts).unflatten(0, (crops, -1))  # type: ignore[no-untyped-call]
    changes_PTD = pictures_PTD.diff(dim=1).abs() if len(frames_TCHW) > 1 else 0 * pictures_PTD
    whole_PD = torch.cat([pictures_PTD.mean(1), changes_PTD.mean(1)], dim=-1)
    return pictures_PTD.flatten(0, 1), whole_PD
