"""Small classifiers of inverted residual blocks, as MobileNetV2 and EfficientNet-Lite are.

Source: Sandler et al. 2018, arXiv:1801.04381, section 3.3. Weights come from files that
`python -m tools.feature_nets` makes.

Shape suffixes: N pictures, C colours, H and W pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.checkpoint import CheckpointError, hash_weights, read_tensors
from omnitok.losses.trunk import NETWORK_KEY

WIDTH = 1280
CLASSES = 1000  # of ImageNet


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


@dataclass(frozen=True, kw_only=True)
class MobileNetConfig:
    """A network of this family.

    Attributes:
        name: Of the network in its file.
        convolutions: All of them, in order.
        classes: Name of the last layer.
        epsilon: Of the batch norms.
        mean: Of each colour of pixels in [0, 1].
        std: Of each colour.
        centred: Whether zeros around pictures are as many on all sides; else there are just enough
            for ceil(side / stride) outputs, and an odd one goes to the right or bottom.
    """

    name: str
    convolutions: tuple[Convolution, ...]
    classes: str
    epsilon: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    centred: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of the tensors in the file of the network."""
        wanted: dict[str, tuple[int, ...]] = {
            f"{self.classes}.weight": (CLASSES, WIDTH),
            f"{self.classes}.bias": (CLASSES,),
        }
        for conv in self.convolutions:
            wanted[f"{conv.name}.weight"] = conv.shape
            for part in ("weight", "bias", "running_mean", "running_var"):
                wanted[f"{conv.norm}.{part}"] = conv.shape[:1]
        return wanted


class MobileNet(nn.Module):
    """The network with its batch norms folded into the convolutions; frozen.

    Attributes:
        config: What it is.
        sha256: Hash of the weights (see `omnitok.checkpoint.hash_weights`).
    """

    def __init__(self, config: MobileNetConfig, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.config, self.sha256 = config, hash_weights(tensors)
        for number, conv in enumerate(config.convolutions):
            mean, var = (tensors[f"{conv.norm}.running_{part}"] for part in ("mean", "var"))
            scale = tensors[f"{conv.norm}.weight"] / (var + config.epsilon).sqrt()
            weight = tensors[f"{conv.name}.weight"] * scale[:, None, None, None]
            self._keep(f"weight_{number}", weight.contiguous(memory_format=torch.channels_last))
            self._keep(f"bias_{number}", tensors[f"{conv.norm}.bias"] - mean * scale)
        for part in ("weight", "bias"):
            self._keep(f"classes_{part}", tensors[f"{config.classes}.{part}"])
        for key in ("mean", "std"):
            self._keep(key, torch.tensor(getattr(config, key))[:, None, None])

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] to [N, 1280] float32 features."""
        with torch.autocast(x_NCHW.device.type, enabled=False):
            x = ((x_NCHW.float() + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
            x = start = x.contiguous(memory_format=torch.channels_last)
            for number, conv in enumerate(self.config.convolutions):
                start = x if conv.starts else start
                weight, bias = (self.get_buffer(f"{part}_{number}") for part in ("weight", "bias"))
                groups, edge = x.shape[1] // conv.shape[1], conv.shape[-1] // 2
                if not self.config.centred:
                    x, edge = pad(x, conv.shape[-1], conv.stride), 0
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


def pad(x_NCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around, for ceil(side / stride) outputs; an odd one goes to the right or bottom."""
    edges: list[int] = []
    for side in (x_NCHW.shape[3], x_NCHW.shape[2]):
        zeros = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        edges += (zeros // 2, zeros - zeros // 2)
    return F.pad(x_NCHW, edges) if any(edges) else x_NCHW


def load_network(path: str | Path, config: MobileNetConfig) -> MobileNet:
    """The network in a file that `python -m tools.feature_nets` made.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    metadata, tensors = read_tensors(path)
    if metadata.get(NETWORK_KEY) != config.name:
        raise CheckpointError(
            f"{path} holds network {metadata.get(NETWORK_KEY)!r}, expected {config.name!r}; delete "
            "it and make it with `python -m tools.feature_nets`"
        )
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != config.shapes():
        raise CheckpointError(f"{path} does not hold the tensors of {config.name}; make it again")
    return MobileNet(config, tensors)
