"""Files of AToken: loaded by path and by name, converted, refused with the tensor at fault."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import omnitok
from omnitok.checkpoint import CONFIG_KEY, CheckpointError
from omnitok.hub import open_named
from omnitok.interop import registry
from omnitok.interop.atoken_gaussians import GaussianDecoder
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from tests.published_files import PATCH, arch, atoken_state, gaussian_state, save
from tests.small_models import noise


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "atoken-soc.pt", atoken_state())


def refusal(path):
    """The sentence that a file is refused with."""
    with pytest.raises(CheckpointError) as caught:
        omnitok.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_config_is_worked_out_from_the_tensors(file):
    tok = omnitok.load(file)
    assert isinstance(tok, ATokenTokenizer)
    settings = arch()
    assert (tok.config.name, tok.patch, tok.codebook_size) == ("atoken-so-c", PATCH, None)
    for side in ("encoder", "decoder"):
        stack = getattr(tok.config, side)
        for name, value in (
            ("model_channels", stack.width),
            ("num_heads", stack.heads),
            ("num_blocks", stack.depth),
            ("mlp_channels", stack.mlp_hidden),
            ("use_bias", stack.bias),
        ):
            assert settings[f"{side}_{name}"] == value, (side, name)
    assert torch.equal(tok.model.proj.weight, atoken_state()["proj.weight"])


@pytest.mark.parametrize("wrapped", ["state_dict", "model", "both", "module.", "model."])
def test_wrapped_files_are_the_same_model(wrapped, file, tmp_path):
    state = atoken_state() | {"logit_scale": torch.ones(1), "logit_bias": torch.ones(1)}
    if wrapped.endswith("."):
        state = {wrapped + name: tensor for name, tensor in state.items()}
    else:
        inner = {"state_dict": state, "step": 3} if wrapped == "both" else state
        outer = "model" if wrapped == "both" else wrapped
        state = {outer: inner, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    other = omnitok.load(save(tmp_path / "other.pt", state))
    assert other.weights_sha256 == omnitok.load(file).weights_sha256


def test_only_the_name_tells_the_discrete_model(file, tmp_path):
    copy = Path(os.link(file, tmp_path / "atoken-sod.pt") or tmp_path / "atoken-sod.pt")
    tok = omnitok.load(copy)
    assert (tok.codebook_size, tok.model.quantizer.num_codebooks) == (4096, 8)
    assert tok.tokenize(noise(3, 9, 9)).codes.shape == (1, 2, 2, 8)


def test_weights_load_by_name_and_are_held_to_their_hash(file, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path))
    tok = omnitok.load("atoken-so-c")
    assert registry.name_of_hash(tok.weights_sha256) == "atoken-so-c"
    assert omnitok.load("atoken-so-c").weights_sha256 == tok.weights_sha256
    save(file, atoken_state(seed=1))
    with pytest.raises(CheckpointError, match="is not the file that was first loaded"):
        omnitok.load("atoken-so-c")
    assert registry.name_of_hash("0" * 64) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_converted_file_loads_to_equal_bits(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in atoken_state().items()}
    before = save(tmp_path / "atoken-sod.pt", state)
    after = tmp_path / "new" / "own.safetensors"
    digest = open_named(before).save(after)
    old, new = omnitok.load(before), omnitok.load(after)
    assert old.weights_sha256 == new.weights_sha256 == digest
    assert (new.config, new.promises) == (old.config, old.promises)
    clip = noise(5, 17, 12)
    assert torch.equal(old.tokenize(clip).codes, new.tokenize(clip).codes)
    assert torch.equal(old.reconstruct(clip), new.reconstruct(clip))
    with safe_open(after, "pt") as opened:
        assert {opened.get_tensor(name).dtype for name in opened.keys()} == {dtype}


def test_a_gaussian_decoder_loads_and_converts(tmp_path):
    training = {"lpips_loss.net.slice1.0.weight": torch.ones(3)}
    before = save(tmp_path / "3d_decode_gs.pt", gaussian_state() | training)
    open_named(before).save(tmp_path / "own.safetensors")
    old, new = omnitok.load(before), omnitok.load(tmp_path / "own.safetensors")
    assert isinstance(new, GaussianDecoder)
    assert old.config == new.config
    coords = torch.tensor([[0, 1, 2, 3], [0, 9, 2, 3], [0, 1, 2, 4]])
    x = torch.randn(3, 192)
    assert torch.equal(old(x, coords), new(x, coords))


def test_tensors_that_share_memory_are_converted(tmp_path):
    state = atoken_state()
    state["encoder.head.layernorm.weight"] = state["encoder.head.layernorm.bias"]
    flat = torch.cat([state[f"encoder.blocks.0.norm{i}.weight"] for i in (1, 2)])
    for i, part in enumerate(flat.chunk(2), 1):
        state[f"encoder.blocks.0.norm{i}.weight"] = part
    before, after = save(tmp_path / "a.pt", state), tmp_path / "b.safetensors"
    open_named(before).save(after)
    assert omnitok.load(before).weights_sha256 == omnitok.load(after).weights_sha256


def test_a_compressed_archive_is_the_same_model(file, tmp_path):
    with zipfile.ZipFile(file) as stored, zipfile.ZipFile(tmp_path / "a.pt", "w") as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    assert omnitok.load(tmp_path / "a.pt").weights_sha256 == omnitok.load(file).weights_sha256


@pytest.mark.parametrize("prefix", ["ema.", "module."])
@pytest.mark.parametrize("first", [True, False])
def test_of_two_copies_of_the_weights_none_is_chosen(prefix, first, tmp_path):
    state = atoken_state()
    other = {prefix + name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = save(tmp_path / "two.pt", other | state if first else state | other)
    assert f"'{prefix}" in refusal(path)


def test_a_copy_that_lacks_marks_is_not_mixed_with_the_other(tmp_path):
    state = atoken_state()
    other = {f"module.{name}": tensor for name, tensor in state.items()}
    del state["encoder.head.probe"]
    text = refusal(save(tmp_path / "two.pt", state | other))
    assert "twice, with and without 'module.'" in text


FAULTS = {
    "missing": ("decoder.blocks.1.norm2.weight", None),
    "missing early": ("encoder.input_layer.weight", None),
    "misshapen": ("decoder.blocks.1.mlp.mlp.0.weight", torch.zeros(96, 143)),
    "narrow early": ("encoder.input_layer.weight", torch.zeros(143, 768)),
    "misshapen early": ("encoder.input_layer.weight", torch.zeros(144)),
    "not a patch": ("encoder.input_layer.weight", torch.zeros(144, 700)),
    "empty": ("proj.weight", torch.zeros(0, 144)),
    "wide": ("decoder.input_layer.weight", torch.zeros(1, 48).expand(2**20, 48)),
    "extra": ("encoder.blocks.1.gate", torch.zeros(3)),
    "extra block": ("decoder.blocks.9.norm1.weight", torch.zeros(144)),
    "integers": ("decoder.out_norm.weight", torch.zeros(144, dtype=torch.int64)),
    "complex": ("decoder.out_norm.weight", torch.zeros(144, dtype=torch.complex64)),
    "sparse": ("decoder.out_norm.weight", torch.zeros(144).to_sparse()),
    "expanded": ("decoder.out_norm.weight", torch.zeros(1).expand(144)),
    "endless number": (f"encoder.blocks.{'9' * 5000}.norm1.weight", torch.zeros(3)),
    "no tensor": ("decoder.out_norm.weight", [1.0] * 144),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_tensor_at_fault_is_named(fault, tmp_path):
    name, value = FAULTS[fault]
    state = atoken_state() | {name: value}
    if value is None:
        del state[name]
    text = refusal(save(tmp_path / "bad.pt", state))
    assert repr(name) in text
    assert "bad.pt" in text


@pytest.mark.parametrize(
    "name", ["input_layer.weight", "blocks.0.mlp.mlp.0.weight", "out_layer.bias"]
)
@pytest.mark.parametrize("shape", [(), (0,), (7, 7, 7)], ids=str)
def test_a_fault_of_a_gaussian_decoder_is_named(name, shape, tmp_path):
    assert repr(name) in refusal(
        save(tmp_path / "gs.pt", gaussian_state() | {name: torch.zeros(shape)})
    )


def test_files_of_other_kinds_are_refused(tmp_path):
    itself: dict[str, object] = {}
    itself["model"] = itself
    cases = {
        "other.pt": {"layer.weight": torch.zeros(3)},
        "number.pt": 3,
        "list.pt": [torch.zeros(3)],
        "empty.pt": {},
        "keys.pt": {1: torch.zeros(3)},
        "named by number.pt": atoken_state() | {1: torch.zeros(3)},
        "pair.pt": gaussian_state() | {("a", 1): torch.zeros(3)},
        "self.pt": itself,
    }
    for name, content in cases.items():
        assert name in refusal(save(tmp_path / name, content))
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "no known tokenizer" in refusal(tmp_path / "other.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt" in refusal(tmp_path / "text.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, file):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "atoken-soc.pt" in refusal(file)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_asks_for_is_not_run(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    if zipped:
        torch.save(atoken_state() | {"extra": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Payload()}, protocol=2))
    assert "mkdir" in refusal(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    state = atoken_state()
    state["decoder.blocks.1.norm2.weight"][7] = float(value)
    text = refusal(save(tmp_path / "bad.pt", state))
    assert "'decoder.stack.blocks.1.norm2.weight' holds numbers that are not finite" in text


LOADING = """
import sys
from pathlib import Path
import omnitok
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
omnitok.load(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
tok = omnitok.load(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_loading_takes_no_second_copy(file, tmp_path):
    wide = dict.fromkeys(("encoder_mlp_channels", "decoder_mlp_channels"), 20_000)
    big = save(tmp_path / "big.pt", atoken_state(**wide))
    command = [sys.executable, "-c", LOADING, str(file), str(big)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1.1 * big.stat().st_size


def test_a_config_that_lies_is_refused(file, tmp_path):
    opened = open_named(file)
    opened = replace(opened, config=replace(opened.config, patch=(4, 16, 16)))
    with pytest.raises(CheckpointError, match=r"'decoder\.|'encoder\."):
        opened.save(tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("encoder", "lookback", 1),
        ("decoder", "rope_base", 1.0),
        ("encoder", "layers", ["global", "local"]),
        ("decoder", "heads", 0),
        ("quantizer", "levels", [4, 4]),
        ("quantizer", "bound_eps", "x"),
        ("quantizer", "l2", 0),
        ("quantizer", "bound", "x" * 5000),
        (None, "patch", [4, 8]),
        (None, "patch", [4, 16, 16]),
        (None, "name", 3),
        (None, "extra", 3),
    ],
)
def test_a_wrong_entry_in_our_own_file_is_refused(part, entry, value, tmp_path):
    path = tmp_path / "own.safetensors"
    open_named(save(tmp_path / "atoken-sod.pt", atoken_state())).save(path)
    rewrite(path, part, entry, value)
    text = refusal(path)
    assert "own.safetensors" in text
    assert len(text) < 600


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("stack", "layers", ["global", "local"]),
        ("rates", "rotation", "x"),
        ("rates", "size", 1.0),
        (None, "resolution", 0),
        (None, "num_gaussians", 2**40),
        (None, "opacity_bias", 1.5),
        (None, "filter_size", -1.0),
        (None, "voxel_size", None),
    ],
)
def test_a_wrong_entry_of_a_gaussian_decoder_is_refused(part, entry, value, tmp_path):
    path = tmp_path / "own.safetensors"
    open_named(save(tmp_path / "gs.pt", gaussian_state())).save(path)
    rewrite(path, part, entry, value)
    assert "own.safetensors" in refusal(path)


def rewrite(path, part, entry, value):
    """Change one entry of the config of our own file."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    config = json.loads(metadata[CONFIG_KEY])
    (config if part is None else config[part])[entry] = value
    save_file(tensors, path.with_suffix(".new"), {CONFIG_KEY: json.dumps(config)})
    path.with_suffix(".new").replace(path)


def test_known_facts_of_published_weights_are_those_of_their_configs():
    from omnitok.interop.atoken import config_of
    from omnitok.interop.atoken_net import ATokenModel
    from tools.plain_atoken import arch as released

    for name in ("atoken-so-c", "atoken-so-d", "atoken-so-c-s1"):
        entry = registry.PUBLISHED[name]
        extra = {"use_quantizer": True, "quantizer_codebook_size": 4096}
        extra |= {"quantizer_num_codebooks": entry.num_codebooks}
        settings = released(1152, 16, 27, 4304) | {"latent_channels": entry.latent_dim}
        config = config_of(name, settings | (extra if entry.codebook_size else {}))
        with torch.device("meta"):
            model = ATokenModel(config)
        assert sum(p.numel() for p in model.parameters()) == entry.parameters
        assert (config.patch, config.quantizer.dim) == (entry.patch, entry.latent_dim)
        assert model.quantizer.codebook_size == entry.codebook_size
