"""Weights on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import omnitok
from omnitok.checkpoint import (
    CONFIG_KEY,
    CheckpointError,
    hash_weights,
    load_checkpoint,
    read_card,
    save_checkpoint,
)
from omnitok.hub import find_weights, shipped
from omnitok.presets import PRESETS, preset
from tests.small_models import small_model


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, small_model("small"), card={"seed": 7})
    return path


def rewrite(path, tensors=None, metadata=None):
    tensors = load_file(path) if tensors is None else tensors
    config = json.dumps(small_model("small").config.to_dict())
    save_file(tensors, path, {CONFIG_KEY: config} if metadata is None else metadata)


def test_a_model_loads_with_equal_bits_and_hash(saved):
    model, digest = load_checkpoint(saved)
    original = small_model("small").state_dict()
    assert all(torch.equal(original[n], t) for n, t in model.state_dict().items())
    assert digest == hash_weights(original)
    assert read_card(saved) == {"seed": 7}
    assert not any(p.requires_grad for p in model.parameters())


def test_half_precision_halves_the_file_and_computes_in_float32(saved, tmp_path):
    small = tmp_path / "half.safetensors"
    digest = save_checkpoint(small, small_model("small"), dtype=torch.float16)
    model, found = load_checkpoint(small)
    assert found == digest
    assert small.stat().st_size < 0.6 * saved.stat().st_size
    assert model.embed.weight.dtype == torch.float32
    assert load_checkpoint(small, dtype=torch.bfloat16)[0].embed.weight.dtype == torch.bfloat16


def test_saving_leaves_nothing_but_the_file(saved):
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_others_may_read_what_the_user_lets_them(saved, tmp_path):
    (tmp_path / "plain").touch()
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_tensor_is_named(saved):
    tensors = load_file(saved)
    del tensors["head.weight"]
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'head\.weight'"):
        load_checkpoint(saved)


def test_an_extra_tensor_is_named(saved):
    rewrite(saved, {**load_file(saved), "more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="'more'"):
        load_checkpoint(saved)


def test_a_misshapen_tensor_is_named(saved):
    rewrite(saved, {**load_file(saved), "head.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'head\.bias' is \[3\]"):
        load_checkpoint(saved)


def test_a_tensor_of_another_kind_is_named(saved):
    tensors = load_file(saved)
    rewrite(saved, {**tensors, "head.weight": tensors["head.weight"].to(torch.int8)})
    with pytest.raises(CheckpointError, match=r"'head\.weight' is int8"):
        load_checkpoint(saved)


WRONG = {
    "width": ["48", 48.0, 0, 2**40, 2**70],
    "layers": ["local", 5, ["diagonal"], ["local"] * 5000],
    "mlp_hidden": [None, -1, 1.5],
    "heads": [True, 0, {}],
    "rope_base": [0, "x", float("nan")],
    "norm": ["batch", 5],
    "mlp": ["relu", []],
    "bias": [0, None],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, all_v in WRONG.items() for v in all_v])
def test_a_wrong_entry_of_a_config_is_named(saved, key, value):
    config = small_model("small").config.to_dict()
    config["encoder"][key] = value
    rewrite(saved, metadata={CONFIG_KEY: json.dumps(config)})
    with pytest.raises(CheckpointError, match=key.removesuffix("s")) as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {CONFIG_KEY: "null"},
        {CONFIG_KEY: "3"},
        {CONFIG_KEY: "[" * 5000},
        {CONFIG_KEY: json.dumps({**preset("tiny").to_dict(), "name": 5})},
        {CONFIG_KEY: json.dumps({**preset("tiny").to_dict(), "quantizer": {"dim": 2**70}})},
        {CONFIG_KEY: "not json"},
        {CONFIG_KEY: "{}"},
        {CONFIG_KEY: "[1]"},
        {CONFIG_KEY: json.dumps({**preset("tiny").to_dict(), "_target_": "os.system"})},
        {CONFIG_KEY: json.dumps({**preset("tiny").to_dict(), "patch": [4, 8]})},
        {CONFIG_KEY: json.dumps({**preset("tiny").to_dict(), "encoder": {"width": 1}})},
    ],
)
def test_a_config_that_cannot_be_used_is_refused(saved, metadata):
    rewrite(saved, metadata=metadata)
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"some text", b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        omnitok.load(path)


def test_a_file_cut_short_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="copy or download it again"):
        load_checkpoint(saved)


def test_names_without_weights_say_what_there_is():
    with pytest.raises(CheckpointError, match="a shape without weights"):
        omnitok.load("base")
    with pytest.raises(CheckpointError, match="no weights called 'huge'"):
        omnitok.load("huge")
    with pytest.raises(KeyError, match="choose one of"):
        preset("huge")


def test_a_folder_with_a_model_loads(saved):
    saved.rename(saved.with_name("model.safetensors"))
    assert omnitok.load(saved.parent).config.name == "small"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_configs_survive_json(name):
    config = preset(name)
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config


def test_a_shipped_name_means_what_ships_whatever_else_is_called_so(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    saved.rename("tiny")
    assert find_weights("tiny") == shipped()["tiny"]
    assert find_weights("./tiny") == find_weights(Path("tiny")) == Path("tiny")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a file or folder"):
        omnitok.load(tmp_path / "pipe")
