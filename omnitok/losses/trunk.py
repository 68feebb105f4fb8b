"""Feature maps of AlexNet and VGG16, trained on ImageNet: what perceptual losses look at.

Sources: Krizhevsky 2014, arXiv:1404.5997 (one column); Simonyan and Zisserman 2014,
arXiv:1409.1556, configuration D. Weights come from a file that `python -m tools.feature_nets`
makes.

Shape suffixes: N pictures, C channels, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.checkpoint import CheckpointError, hash_weights, read_tensors

NETWORK_KEY = "omnitok_network"  # in the metadata: which network it is
Layer = tuple[int, int, int, int, int]  # channels, kernel, stride, pooling before it, tapped
_ALEX: tuple[Layer, ...] = (
    (64, 11, 4, 0, 1),
    (192, 5, 1, 3, 1),
    (384, 3, 1, 3, 1),
    (256, 3, 1, 0, 1),
    (256, 3, 1, 0, 1),
)
_VGG: tuple[Layer, ...] = tuple(
    (width, 3, 1, 2 if block and not layer else 0, int(layer == depth - 1))
    for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    for layer in range(depth)
)
TRUNKS = {"lpips-alex": (_ALEX, 63), "lpips-vgg": (_VGG, 16)}  # layers, smallest side
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]


class Trunk(nn.Module):
    """The convolutions of one network; frozen, and no part of a checkpoint.

    Attributes:
        name: "lpips-alex" or "lpips-vgg".
        sha256: Hash of the weights (see `omnitok.checkpoint.hash_weights`).
        least: Smallest side of a picture in pixels.
    """

    def __init__(self, name: str, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.name, self.sha256 = name, hash_weights(tensors)
        self._layers, self.least = TRUNKS[name]
        self.num_taps = sum(layer[4] for layer in self._layers)
        for key, tensor in tensors.items():
            layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
            self._keep(key.replace(".", "_"), tensor.float().contiguous(memory_format=layout))
        for key, values in (("mean", _MEAN), ("std", _STD)):
            self._keep(key, torch.tensor(values)[:, None, None])

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def heads(self) -> list[Tensor]:
        """[C] weight of each channel of each tapped layer, for LPIPS."""
        return [self.get_buffer(f"head_{tap}") for tap in range(self.num_taps)]

    def forward(self, x_NCHW: Tensor, fast: bool = False) -> list[Tensor]:
        """Feature maps after the tapped layers, as float32.

        Args:
            x_NCHW: Pictures in [-1, 1].
            fast: Convolve in bfloat16.

        Raises:
            ValueError: They are too small for the network.
        """
        if min(x_NCHW.shape[2:]) < self.least:
            raise ValueError(
                f"pictures of {x_NCHW.shape[3]}x{x_NCHW.shape[2]} pixels are too small for "
                f"{self.name}; it takes {self.least} at least, so scale them up with side"
            )
        maps = []
        x = (x_NCHW.float() - self.get_buffer("mean")) / self.get_buffer("std")
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=fast):
            for number, (_, kernel, stride, pool, tapped) in enumerate(self._layers):
                if pool:
                    x = F.max_pool2d(x, pool, 2)
                weight = self.get_buffer(f"conv_{number}_weight")
                bias = self.get_buffer(f"conv_{number}_bias")
                x = F.conv2d(x, weight, bias, stride, 2 if kernel == 11 else kernel // 2).relu()
                if tapped:
                    maps.append(x.float())
        return maps


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors in the file of a network."""
    wanted: dict[str, tuple[int, ...]] = {}
    before, tap = 3, 0
    for number, (width, kernel, _, _, tapped) in enumerate(TRUNKS[name][0]):
        wanted[f"conv.{number}.weight"] = (width, before, kernel, kernel)
        wanted[f"conv.{number}.bias"] = (width,)
        if tapped:
            wanted[f"head.{tap}"] = (width,)
        before, tap = width, tap + tapped
    return wanted


def load_trunk(path: str | Path) -> Trunk:
    """The network in a file that `python -m tools.feature_nets` made.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    if not Path(path).exists():
        raise CheckpointError(f"{path} does not exist; `python -m tools.feature_nets` makes it")
    metadata, tensors = read_tensors(path)
    name = metadata.get(NETWORK_KEY, "")
    if name not in TRUNKS:
        raise CheckpointError(
            f"{path} holds network {name!r}, expected one of {sorted(TRUNKS)}; `python -m "
            "tools.feature_nets` makes such files"
        )
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != shapes(name):
        raise CheckpointError(f"{path} does not hold the tensors of {name}; make it again")
    return Trunk(name, tensors)
