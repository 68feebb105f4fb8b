"""Recorded tensors of AToken's published code, and the inputs that they were made from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from omnitok.checkpoint import build
from omnitok.interop.atoken import ATOKEN, config_of, published_name, to_ours
from omnitok.interop.atoken_net import ATokenModel
from omnitok.interop.atoken_pixels import to_tokens, whole_patches
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.interop.loading import Opened
from tests.parity.conftest import golden_folder

FOLDER = golden_folder() / "atoken"


@dataclass(frozen=True, eq=False)
class Golden:
    """One file: its metadata, and what was recorded of its cases."""

    path: Path
    meta: dict[str, str]
    names: tuple[str, ...]

    def tensor(self, name: str) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def cases(self, mark: str) -> list[str]:
        """Cases that recorded `mark`."""
        found = {name.split(".")[0] for name in self.names if name.split(".", 1)[1:] == [mark]}
        return sorted(found - {"sd"})

    def recorded(self, case: str) -> set[str]:
        return {n.removeprefix(f"{case}.") for n in self.names if n.startswith(f"{case}.")}

    def weights(self) -> dict[str, Tensor]:
        return {n[3:]: self.tensor(n).float() for n in self.names if n.startswith("sd.")}


def read(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        return Golden(path, dict(file.metadata()), tuple(file.keys()))


GOLDENS = [read(path) for path in sorted(FOLDER.glob("*.safetensors"))]


def of_kind(word: str) -> list[Golden]:
    return [golden for golden in GOLDENS if word in golden.meta["kind"]]


def every(kind: str, mark: str | None) -> pytest.MarkDecorator:
    """Parametrise by (golden, case), or by golden alone."""
    pairs = [
        pytest.param(golden, case, id=f"{golden.path.stem}-{case}")
        for golden in of_kind(kind)
        for case in (golden.cases(mark) if mark else ["-"])
    ]
    reason = f"no recorded data at {FOLDER}; set OMNITOK_GOLDEN to the folder that holds it"
    absent = pytest.param(None, None, marks=pytest.mark.skip(reason=reason))
    return pytest.mark.parametrize(("golden", "case"), pairs or [absent])


def same(got: Tensor, want: Tensor) -> None:
    if want.is_floating_point():
        torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5, check_dtype=False)
    else:
        assert torch.equal(got.long(), want.long())


def fresh_tokenizer(golden: Golden) -> ATokenTokenizer:
    config = config_of(golden.path.stem, json.loads(golden.meta["arch"]))
    network = build(golden.path, config, ATokenModel)
    tensors = to_ours(golden.weights(), network, published_name, golden.path)
    return Opened(path=golden.path, system=ATOKEN, config=config, tensors=tensors).load()


tokenizer = lru_cache(maxsize=8)(fresh_tokenizer)


def clips(golden: Golden, case: str) -> list[Tensor]:
    """[3, T, H, W] float pixels of the items of a case."""
    count = sum(re.fullmatch(r"pixels\d+", name) is not None for name in golden.recorded(case))
    items = [golden.tensor(f"{case}.pixels{i}") for i in range(count)]
    return [clip(item) / 255 * 2 - 1 for item in items]


def clip(pixels: Tensor) -> Tensor:
    """Uint8 [T, H, W, 3] or [H, W, 3] to [3, T, H, W] float, still from 0 to 255."""
    return (pixels if pixels.ndim == 4 else pixels[None]).permute(3, 0, 1, 2).float()


def inputs(golden: Golden, case: str) -> tuple[Tensor, Tensor]:
    """Patches and [N, 5] coordinates of a case, made from its pixels or voxels."""
    model, recorded = tokenizer(golden).model, golden.recorded(case)
    if "feats01" in recorded:
        feats = golden.tensor(f"{case}.feats01").float() * 2 - 1
        coords = F.pad(golden.tensor(f"{case}.voxel_coords").long(), (1, 0), value=1)
        missing = model.encoder.embed.in_features - feats.shape[1]
        return F.pad(feats, (0, missing)), F.pad(coords, (1, 0))
    parts = []
    for item, x in enumerate(clips(golden, case)):
        patches, coords = to_tokens(whole_patches(x, model.config.patch), model.config.patch)
        parts.append((patches, F.pad(coords, (1, 0), value=item)))
    patches, coords = (torch.cat(p) for p in zip(*parts, strict=True))
    if "keep_mask" in recorded:
        keep = golden.tensor(f"{case}.keep_mask")
        patches, coords = patches[keep], coords[keep]
    return patches, coords


def bottleneck(model: ATokenModel, proj: Tensor) -> tuple[Tensor, Tensor | None]:
    quantized = model.quantizer(proj[:, : model.quantizer.input_dim])
    return quantized.z_q, quantized.codes
