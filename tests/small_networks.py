"""Files of perceptual networks with random weights, for tests that cannot download real ones."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from omnitok.losses import trunk
from omnitok.metrics.features import MOBILENET


def save_network(folder: Path, name: str) -> Path:
    """Write `name` ("lpips-alex", "lpips-vgg" or "mobilenet-v2") as the fetching tool would."""
    random = torch.Generator().manual_seed(0)
    wanted = MOBILENET.shapes() if name == MOBILENET.name else trunk.shapes(name)
    tensors = {}
    for key, shape in wanted.items():
        fan = torch.Size(shape[1:]).numel() if len(shape) > 1 else 1
        tensors[key] = torch.randn(shape, generator=random) * (2 / fan) ** 0.5
        if key.startswith("head") or key.endswith("running_var"):
            tensors[key] = tensors[key].abs() + 0.1
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, {trunk.NETWORK_KEY: name})
    return path
