"""Recorded data of published implementations: where it is, and its cases as test parameters.

A test that takes `golden_case` runs once for every case of every *.safetensors file in the folder
that its module names by `GOLDEN`.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

_ABSENT = "no recorded data at {}; set OMNITOK_GOLDEN to the folder that holds it"


@dataclass(frozen=True)
class GoldenCase:
    """One recorded case: `meta` is its settings, `tensors` what went in and came out."""

    path: Path
    name: str

    @property
    def meta(self) -> dict[str, Any]:
        with safe_open(self.path, "pt") as file:
            return json.loads(file.metadata()[self.name])

    @property
    def tensors(self) -> dict[str, Tensor]:
        start = f"{self.name}/"
        with safe_open(self.path, "pt") as file:
            return {k[len(start) :]: file.get_tensor(k) for k in file.keys() if k.startswith(start)}

    def __str__(self) -> str:
        return f"{self.path.stem}/{self.name}"


def golden_folder() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "golden"
    return Path(os.environ.get("OMNITOK_GOLDEN", beside))


@pytest.fixture
def golden() -> Path:
    """The folder of recorded data; skips the test where it is absent."""
    folder = golden_folder()
    if not folder.is_dir():
        pytest.skip(_ABSENT.format(folder))
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" not in metafunc.fixturenames:
        return
    folder = golden_folder() / metafunc.module.GOLDEN
    cases: list[Any] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            cases += [GoldenCase(path, name) for name in sorted(file.metadata() or {})]
    if not cases:
        cases = [pytest.param(None, marks=pytest.mark.skip(reason=_ABSENT.format(folder)))]
    metafunc.parametrize("golden_case", cases, ids=str)
