"""Fixtures for tests of whole commands: small random weights, and the command line in process."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llm_models import MAKERS, Tiny

from tools.cli import main


@dataclass
class Run:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which has to be exactly one JSON object."""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer with random weights and the patches of `tiny`."""
    return _save(tmp_path_factory, "random", seed=0)


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other numbers."""
    return _save(tmp_path_factory, "other", seed=1)


def _save(tmp_path_factory: pytest.TempPathFactory, name: str, seed: int) -> Path:
    import torch

    from omnitok.checkpoint import save_checkpoint
    from omnitok.model import Autoencoder
    from omnitok.presets import preset

    config = preset("tiny")
    stack = replace(config.encoder, width=64, heads=1, layers=("local", "shifted"), mlp_hidden=64)
    config = replace(config, name=name, encoder=stack, decoder=stack)
    torch.manual_seed(seed)
    path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
    save_checkpoint(path, Autoencoder(config))
    return path


@pytest.fixture
def omnitok(weights: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command in this process, with the random weights unless told otherwise."""

    def run(command: str, *words: object, model: Path | str | None = weights) -> Run:
        given = [str(word) for word in words]
        if model is not None and command not in ("inspect", "models", "doctor"):
            given += ["--model", str(model)]
        capsys.readouterr()
        status = main([command, *given])
        caught = capsys.readouterr()
        return Run(status, caught.out, caught.err)

    return run


@pytest.fixture
def shipped(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the random weights the ones that ship with the package."""
    monkeypatch.setattr("omnitok.hub.SHIPPED", weights.parent)
    return weights


@pytest.fixture(scope="module", params=MAKERS)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A vision-language model of every kind."""
    return MAKERS[request.param]()


@pytest.fixture
def plain_inference() -> Iterator[None]:
    """Without gradients, on one thread: models this small only wait for further ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
