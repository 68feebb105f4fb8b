"""Recorded cases of token compression, and how values are compared."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

VALUES, SUMS = 2e-4, 1e-3  # absolute
FOLDER = Path(os.environ.get("OMNITOK_GOLDEN", Path(__file__).parents[3] / "shared/golden"))
# modules with weights, whose recorded data has a test of its own
LEARNED = ("token_learner_ttm", "tokenpacker", "blip3_video", "llava_mini_resampler")


@dataclass(frozen=True)
class Case:
    """One recorded case: what went in, came out, and the settings."""

    path: Path
    name: str
    meta: dict[str, Any]
    shared: str  # the case that holds the inputs

    def tensors(self, kind: str) -> dict[str, Tensor]:
        start = f"{self.shared if kind == 'in' else self.name}.{kind}."
        with safe_open(self.path, "pt") as file:
            names = [key for key in file.keys() if key.startswith(start)]
            found = {key.removeprefix(start): file.get_tensor(key) for key in names}
        return {k: v.long() if v.dtype == torch.int32 else v for k, v in found.items()}

    def __str__(self) -> str:
        return f"{self.path.stem}/{self.name}"


def recorded() -> list[Case]:
    cases = []
    for path in sorted((FOLDER / "compression").glob("*.safetensors")):
        if path.stem in LEARNED:
            continue
        with safe_open(path, "pt") as file:
            params, keys = json.loads(file.metadata()["params"]), set(file.keys())
        shared = ""
        for name, meta in params.items():
            if any(key.startswith(f"{name}.in.") for key in keys):
                shared = name
            cases.append(Case(path, name, meta, shared))
    return cases


def close(ours: Tensor, theirs: Tensor, tolerance: float = VALUES) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.tolist() == theirs.tolist()


Tensors = dict[str, Tensor]
