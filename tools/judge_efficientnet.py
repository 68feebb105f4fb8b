"""EfficientNet-Lite0, trained on ImageNet: the second classifier of `omnitok eval-compress`.

Sources: Tan and Le 2019, arXiv:1905.11946, table 1; the lite form has no squeeze-and-excitation
and clips activations at 6. Weights come from a file that `python -m tools.feature_nets` makes.

Shape suffixes: N pictures, C colours, H and W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.checkpoint import CheckpointError, read_tensors
from omnitok.losses.trunk import NETWORK_KEY
from omnitok.metrics.features import Convolution

NAME = "efficientnet-lite0"
WIDTH = 1280
_STAGES = (  # kernel, expansion, channels, repeats, stride of the first
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
_MEAN, _STD = 0.498, 0.502  # of pixels in [0, 1]


def _convolutions() -> Iterator[Convolution]:
    """All of them, in order."""
    yield Convolution("_conv_stem", "_bn0", (32, 3, 3, 3), 2)
    before, number = 32, 0
    for kernel, expansion, width, repeats, first in _STAGES:
        for repeat in range(repeats):
            at, inner, wider = f"_blocks.{number}", before * expansion, expansion > 1
            if wider:
                shape = (inner, before, 1, 1)
                yield Convolution(f"{at}._expand_conv", f"{at}._bn0", shape, starts=True)
            shape, stride = (inner, 1, kernel, kernel), 1 if repeat else first
            names = f"{at}._depthwise_conv", f"{at}._bn1"
            yield Convolution(*names, shape, stride, starts=not wider)
            shape = (width, inner, 1, 1)
            yield Convolution(f"{at}._project_conv", f"{at}._bn2", shape, ends=True)
            before, number = width, number + 1
    yield Convolution("_conv_head", "_bn1", (WIDTH, before, 1, 1))


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors in the file of the network."""
    wanted: dict[str, tuple[int, ...]] = {"_fc.weight": (1000, WIDTH), "_fc.bias": (1000,)}
    for conv in _convolutions():
        wanted[f"{conv.name}.weight"] = conv.shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{conv.norm}.{part}"] = conv.shape[:1]
    return wanted


class EfficientNetLite0(nn.Module):
    """The network with its batch norms folded into the convolutions; frozen."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._plan = list(_convolutions())
        for number, conv in enumerate(self._plan):
            mean, var = (tensors[f"{conv.norm}.running_{part}"] for part in ("mean", "var"))
            scale = tensors[f"{conv.norm}.weight"] / (var + 1e-3).sqrt()
            weight = tensors[f"{conv.name}.weight"] * scale[:, None, None, None]
            self._keep(f"weight_{number}", weight.contiguous(memory_format=torch.channels_last))
            self._keep(f"bias_{number}", tensors[f"{conv.norm}.bias"] - mean * scale)
        for part in ("weight", "bias"):
            self._keep(f"classes_{part}", tensors[f"_fc.{part}"])

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] to [N, 1280] float32 features."""
        with torch.autocast(x_NCHW.device.type, enabled=False):
            x = ((x_NCHW.float() + 1) / 2 - _MEAN) / _STD
            x = start = x.contiguous(memory_format=torch.channels_last)
            for number, conv in enumerate(self._plan):
                start = x if conv.starts else start
                weight, bias = (self.get_buffer(f"{part}_{number}") for part in ("weight", "bias"))
                groups, x = x.shape[1] // conv.shape[1], pad(x, conv.shape[-1], conv.stride)
                x = F.conv2d(x, weight, bias, conv.stride, groups=groups)
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


def load_efficientnet(path: str | Path) -> EfficientNetLite0:
    """The network in a file that `python -m tools.feature_nets` made.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    metadata, tensors = read_tensors(path)
    if metadata.get(NETWORK_KEY) != NAME:
        raise CheckpointError(
            f"{path} holds network {metadata.get(NETWORK_KEY)!r}, expected {NAME!r}; delete it"
        )
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != shapes():
        raise CheckpointError(f"{path} does not hold the tensors of {NAME}; delete it")
    return EfficientNetLite0(tensors)
