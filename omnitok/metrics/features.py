"""MobileNetV2, trained on ImageNet: the features that Fréchet and kernel distances compare.

Sources: Sandler et al. 2018, arXiv:1801.04381, table 2. Weights come from a file that
`python -m tools.feature_nets` makes. Distances of these features are neither FID nor FVD.

Shape suffixes: N pictures, T frames, C colours, H and W pixels, P crops, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.checkpoint import CheckpointError, hash_weights, read_tensors
from omnitok.losses.trunk import NETWORK_KEY

NAME = "mobilenet-v2"
WIDTH = 1280
_BLOCKS = (  # expansion, channels, repeats, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in [0, 1]
CROP_SIDE, WHOLE_SIDE = 128, 224  # pixels that crops and whole pictures are scaled to


class Convolution(NamedTuple):
    """One convolution and the batch norm after it.

    Attributes:
        name: Of the convolution in the file.
        norm: Of the batch norm.
        shape: Of the weight.
        stride: In pixels.
        starts: Whether a block starts with it.
        ends: Whether a block ends with it, without an activation.
    """

    name: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int = 1
    starts: bool = False
    ends: bool = False


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


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors in the file of the network."""
    wanted: dict[str, tuple[int, ...]] = {
        "classifier.1.weight": (1000, WIDTH),
        "classifier.1.bias": (1000,),
    }
    for conv in _convolutions():
        wanted[f"{conv.name}.weight"] = conv.shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{conv.norm}.{part}"] = conv.shape[:1]
    return wanted


class MobileNetV2(nn.Module):
    """The network with its batch norms folded into the convolutions; frozen.

    Attributes:
        sha256: Hash of the weights (see `omnitok.checkpoint.hash_weights`).
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.sha256 = hash_weights(tensors)
        self._plan = list(_convolutions())
        for number, conv in enumerate(self._plan):
            norm = {part: tensors[f"{conv.norm}.{part}"] for part in ("weight", "bias")}
            mean, var = (tensors[f"{conv.norm}.running_{part}"] for part in ("mean", "var"))
            scale = norm["weight"] / (var + 1e-5).sqrt()
            weight = tensors[f"{conv.name}.weight"] * scale[:, None, None, None]
            self._keep(f"weight_{number}", weight.contiguous(memory_format=torch.channels_last))
            self._keep(f"bias_{number}", norm["bias"] - mean * scale)
        for part in ("weight", "bias"):
            self._keep(f"classes_{part}", tensors[f"classifier.1.{part}"])
        for key, values in (("mean", _MEAN), ("std", _STD)):
            self._keep(key, torch.tensor(values)[:, None, None])

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] to [N, 1280] float32 features."""
        with torch.autocast(x_NCHW.device.type, enabled=False):
            x = ((x_NCHW.float() + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
            x = start = x.contiguous(memory_format=torch.channels_last)
            for number, conv in enumerate(self._plan):
                start = x if conv.starts else start
                weight, bias = (self.get_buffer(f"{part}_{number}") for part in ("weight", "bias"))
                groups, edge = x.shape[1] // conv.shape[1], conv.shape[-1] // 2
                x = F.conv2d(x, weight, bias, conv.stride, edge, groups=groups)
                if not conv.ends:
                    x = F.relu6(x)
                elif x.shape == start.shape:
                    x = x + start
            return x.mean((2, 3))

    def classify(self, features_ND: Tensor) -> Tensor:
        """[N, 1000] logits of the ImageNet classes."""
        weight = self.get_buffer("classes_weight")
        return F.linear(features_ND, weight, self.get_buffer("classes_bias"))


def load_mobilenet(path: str | Path) -> MobileNetV2:
    """The network in a file that `python -m tools.feature_nets` made.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    metadata, tensors = read_tensors(path)
    if metadata.get(NETWORK_KEY) != NAME:
        raise CheckpointError(
            f"{path} holds network {metadata.get(NETWORK_KEY)!r}, expected {NAME!r}; make it with "
            "`python -m tools.feature_nets`"
        )
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != shapes():
        raise CheckpointError(f"{path} does not hold the tensors of {NAME}; make it again")
    return MobileNetV2(tensors)


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


def clip_features(network: MobileNetV2, frames_TCHW: Tensor, crops: int) -> tuple[Tensor, Tensor]:
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
