"""Recorded models written as files of our own load to equal bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import omnitok
from omnitok.hub import open_named
from omnitok.interop.atoken import ATOKEN, published_name, to_ours
from omnitok.interop.loading import Opened
from tests.parity.atoken_goldens import Golden, clips, every, tokenizer
from tests.parity.conftest import golden_folder
from tests.small_models import noise

FOLDER = golden_folder() / "omnitokenizer"


@every("autoencoder", "pixels0")
def test_an_atoken_is_equal_after_conversion(golden: Golden, case: str, tmp_path: Path):
    before = tokenizer(golden)
    tensors = to_ours(golden.weights(), before.model, published_name, golden.path)
    opened = Opened(path=golden.path, system=ATOKEN, config=before.config, tensors=tensors)
    digest = opened.save(tmp_path / "own.safetensors")
    after: Any = omnitok.load(tmp_path / "own.safetensors")
    assert after.weights_sha256 == before.weights_sha256 == digest
    for x in clips(golden, case):
        z = before.encode(x[None])
        assert torch.equal(after.encode(x[None]), z)
        assert torch.equal(after.decode(z), before.decode(z))


@pytest.mark.parametrize(
    "path",
    sorted(FOLDER.glob("*.ckpt"))
    or [pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded data at {FOLDER}"))],
    ids=str,
)
def test_an_omnitokenizer_is_equal_after_conversion(path: Path, tmp_path: Path):
    digest = open_named(path).save(tmp_path / "own.safetensors")
    before, after = omnitok.load(path), omnitok.load(tmp_path / "own.safetensors")
    assert after.weights_sha256 == before.weights_sha256 == digest
    assert (after.config, after.promises, after.window) == (
        before.config,
        before.promises,
        before.window,
    )
    clip = noise(6, 40, 70)
    tokens = before.tokenize(clip)
    assert torch.equal(after.tokenize(clip).data, tokens.data)
    assert torch.equal(after.detokenize(tokens), before.detokenize(tokens))
