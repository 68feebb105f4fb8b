"""Files of OmniTokenizer: recognised by content, loaded whole or refused with the fault named."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import omnitok
from omnitok.checkpoint import CheckpointError
from omnitok.hub import open_named
from omnitok.interop.omnitokenizer import PARTS, OmniTokenizer, published_name
from omnitok.interop.omnitokenizer_config import config_of
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from tests.omnitokenizer_files import SETTINGS, omnitokenizer_state, save_omnitokenizer
from tests.small_models import noise
from tools.plain_omnitokenizer import RELEASED

FLAVOURS = {
    "vq": {},
    "vae": {"use_vae": True},
    "rel": {"spatial_pos": "rel", "temporal_patch_size": 2},
    "deferred": {"defer_temporal_pool": True, "defer_spatial_pool": True},
}


@pytest.fixture
def file(tmp_path):
    return save_omnitokenizer(tmp_path / "some.ckpt")


def refusal(path):
    """The sentence that a file is refused with."""
    with pytest.raises(CheckpointError) as caught:
        omnitok.load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    assert str(path) in text
    return text


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_file_is_recognised_by_what_it_holds(flavour, tmp_path):
    path = save_omnitokenizer(tmp_path / "renamed.bin", **FLAVOURS[flavour])
    tok = omnitok.load(path)
    assert isinstance(tok, OmniTokenizer)
    assert tok.config.name == "renamed"
    assert (tok.codebook_size is None) == (flavour == "vae")
    assert tok.patch == (2 if flavour == "rel" else 4, 4, 4)
    assert tok.config.position == ("rel" if flavour == "rel" else "rope")
    assert not any(p.requires_grad for p in tok.model.parameters())
    state = omnitokenizer_state(**FLAVOURS[flavour])
    assert torch.equal(tok.model.from_latent.weight, state["post_vq_conv.1.weight"])
    assert torch.equal(tok.model.encoder.spatial.norm.bias, state[BETA])


BETA = "encoder.enc_spatial_transformer.norm_out.beta"


@pytest.mark.parametrize("flavour", ["vq", "vae", "rel"])
def test_settings_that_are_missing_are_told_from_the_tensors(flavour, tmp_path):
    state = omnitokenizer_state(**FLAVOURS[flavour])
    known = omnitok.load(save_omnitokenizer(tmp_path / "a.ckpt", state, **FLAVOURS[flavour]))
    torch.save({"state_dict": state}, tmp_path / "b.ckpt")
    torch.save(state, tmp_path / "c.pt")
    for name in ("b.ckpt", "c.pt"):
        told = omnitok.load(tmp_path / name)
        assert told.config == replace(known.config, name=name[0], clip_frames=17)
        assert told.weights_sha256 == known.weights_sha256


PLACES = {
    "namespace in dict": lambda settings: {"args": argparse.Namespace(**settings)},
    "dict in dict": lambda settings: {"args": settings},
    "namespace": lambda settings: argparse.Namespace(**settings),
    "simple namespace": lambda settings: SimpleNamespace(**settings),
    "dict": dict,
}


@pytest.mark.parametrize("place", PLACES)
def test_settings_are_read_wherever_programs_keep_them(place, tmp_path):
    kept = PLACES[place](SETTINGS | {"casual_in_peg": False})  # which no shape tells
    contents = {"state_dict": omnitokenizer_state(), "hyper_parameters": kept}
    torch.save(contents, tmp_path / "a.ckpt")
    config = omnitok.load(tmp_path / "a.ckpt").config
    assert (config.causal_attention, config.causal_peg) == (True, False)
    assert config.clip_frames == SETTINGS["sequence_length"]


@pytest.mark.parametrize("kept", [Path("settings.yaml"), [1]], ids=str)
def test_settings_that_cannot_be_read_are_not_guessed(kept, tmp_path):
    contents = {"state_dict": omnitokenizer_state(), "hyper_parameters": kept}
    torch.save(contents, tmp_path / "a.ckpt")
    assert "settings that cannot be used" in refusal(tmp_path / "a.ckpt")


def test_settings_that_hold_themselves_are_refused(tmp_path):
    settings = argparse.Namespace(**SETTINGS)
    settings.heads = settings
    contents = {"state_dict": omnitokenizer_state(), "hyper_parameters": {"args": settings}}
    torch.save(contents, tmp_path / "a.ckpt")
    assert "settings that cannot be used" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_that_programs_put_something_before_are_known(prefix, file, tmp_path):
    state = {prefix + name: tensor for name, tensor in omnitokenizer_state().items()}
    path = save_omnitokenizer(tmp_path / "some.bin", state)
    assert omnitok.load(path).weights_sha256 == omnitok.load(file).weights_sha256


@pytest.mark.parametrize("spelling", ["causal", "casual"])
@pytest.mark.parametrize("value", [True, False])
def test_old_spellings_are_read(spelling, value, tmp_path):
    changes = dict.fromkeys([n for n in SETTINGS if n.startswith("casual")], "absent")
    changes |= {f"{spelling}_in_temporal_transformer": value, f"{spelling}_in_peg": not value}
    tok = omnitok.load(save_omnitokenizer(tmp_path / "a.ckpt", omnitokenizer_state(), **changes))
    assert tok.config.causal_attention is value
    assert tok.config.causal_peg is not value


def test_namespaces_of_other_kinds_and_foreign_objects_are_read(file, tmp_path):
    contents = torch.load(file, weights_only=False)
    contents["callbacks"] = {"x": SimpleNamespace(a=1)}
    contents["hyper_parameters"]["args"].path = torch.Size([2])
    torch.save(contents, tmp_path / "b.ckpt")
    assert omnitok.load(tmp_path / "b.ckpt").weights_sha256 == omnitok.load(file).weights_sha256


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_converted_file_gives_equal_bits(flavour, tmp_path):
    before = save_omnitokenizer(tmp_path / "a.ckpt", **FLAVOURS[flavour])
    after = tmp_path / "own.safetensors"
    digest = open_named(before).save(after)
    old, new = omnitok.load(before), omnitok.load(after)
    assert old.weights_sha256 == new.weights_sha256 == digest
    assert (old.config, old.promises, old.window) == (new.config, new.promises, new.window)
    clip = noise(6, 17, 12)
    assert torch.equal(old.reconstruct(clip), new.reconstruct(clip))


def test_only_the_name_tells_which_file_adds_biases(tmp_path):
    for name, attention in (("imagenet_only", "explicit"), ("celebahq", "fused")):
        path = save_omnitokenizer(tmp_path / f"{name}.ckpt", **FLAVOURS["rel"])
        assert omnitok.load(path).config.attention == attention


LIES = {
    "embedding_dim": (32, "dsconv"),
    "heads": (4, "to_"),
    "dim_head": (16, "scale"),
    "patch_size": (8, "to_pixels"),
    "temporal_patch_size": (2, "to_pixels"),
    "enc_block": ("tt", "encoder.enc_spatial_transformer.layers.1"),
    "dec_block": ("ttt", "decoder.dec_spatial_transformer.layers.2"),
    "temporal_depth": (1, "temporal_transformer.layers.1"),
    "twod_window_size": (8, "relative_position_bias_table"),
    "spatial_pos": ("rel", "spatial_rel_pos_bias"),
    "ff_mult": (2.0, ".3."),
    "n_codes": (64, "'codebook."),
    "codebook_dim": (4, "'codebook."),
    "use_vae": (True, "pre_vq_conv"),
    "defer_spatial_pool": (True, "to_pixels"),
}


@pytest.mark.parametrize("setting", LIES)
def test_a_setting_that_lies_is_refused_with_the_first_tensor_that_shows_it(setting, tmp_path):
    value, part = LIES[setting]
    path = save_omnitokenizer(tmp_path / "a.ckpt", omnitokenizer_state(), **{setting: value})
    assert part in refusal(path)


NEVER = {
    "patch_embed": "cnn",
    "gen_upscale": 2,
    "use_external_codebook": True,
    "attn_dropout": 0.1,
    "ff_dropout": 0.1,
    "image_channels": 1,
    "q_strides": "1221",
    "enc_block": "ta",
    "spatial_pos": "absolute",
    "heads": "8",
    "use_vae": 3,
    "ff_mult": float("inf"),
    "temporal_depth": 10**9,
    "embedding_dim": 2**40,
    "twod_window_size": -4,
    "sequence_length": 0,
    "codebook_dim": torch.ones(3),
}


@pytest.mark.parametrize("setting", NEVER)
def test_settings_that_were_never_published_are_refused_by_name(setting, tmp_path):
    value = NEVER[setting]
    path = save_omnitokenizer(tmp_path / "a.ckpt", omnitokenizer_state(), **{setting: value})
    ours = {
        "temporal_depth": "temporal_depth",
        "embedding_dim": "width",
        "twod_window_size": "window",
        "sequence_length": "clip_frames",
        "enc_block": "encoder",
        "spatial_pos": "position",
    }
    text = refusal(path)
    assert "settings that cannot be used" in text
    assert ours.get(setting, setting) in text or setting == "ff_mult"


LAYER = "encoder.enc_spatial_transformer.layers.0."
WINDOW = "encoder.enc_spatial_transformer.layers.1.1."
FAULTS = {
    "missing": ("decoder.to_pixels.0.bias", None),
    "missing mark": ("encoder.to_patch_emb.2.weight", None),
    "missing unused codebook part": ("codebook.N", None),
    "misshapen": (f"{LAYER}3.1.weight", torch.zeros(127, 24)),
    "scalar": (f"{LAYER}1.q_scale", torch.tensor(1.0)),
    "transposed": (f"{LAYER}1.to_kv.weight", torch.zeros(24, 32)),
    "extra": ("decoder.dec_spatial_transformer.layers.9.1.to_q.weight", torch.zeros(3)),
    "extra part": ("encoder.gate", torch.zeros(3)),
    "integers": ("post_vq_conv.1.bias", torch.zeros(24, dtype=torch.int64)),
    "expanded": ("post_vq_conv.1.bias", torch.zeros(1).expand(24)),
    "sparse": ("post_vq_conv.1.bias", torch.zeros(24).to_sparse()),
    "no tensor": ("post_vq_conv.1.bias", [0.0] * 24),
    "order of windows": (f"{WINDOW}relative_position_index", torch.zeros(16, 16).long()),
    "size of windows": (f"{WINDOW}relative_position_index", torch.zeros(4, 4).long()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_tensor_at_fault_is_named(fault, tmp_path):
    name, value = FAULTS[fault]
    state = omnitokenizer_state() | {name: value}
    if value is None:
        del state[name]
    assert repr(name) in refusal(save_omnitokenizer(tmp_path / "bad.ckpt", state))


@pytest.mark.parametrize("shape", [None, (7,), (9, 24), (3, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "pre_vq_conv.1.weight",
        "encoder.to_patch_emb_first_frame.2.weight",
        "encoder.to_patch_emb.2.weight",
        "encoder.enc_temporal_transformer.layers.0.1.q_scale",
    ],
)
def test_a_fault_is_named_without_settings_too(name, shape, tmp_path):
    state = omnitokenizer_state() | {name: None if shape is None else torch.zeros(shape)}
    torch.save({"state_dict": state}, tmp_path / "bad.ckpt")
    text = refusal(tmp_path / "bad.ckpt")
    assert repr(name) in text


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, file):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refusal(file)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("place", ["settings", "beside", "tensor"])
def test_what_a_pickle_asks_for_is_not_run(place, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = torch.load(file, weights_only=False)
    if place == "settings":
        contents["hyper_parameters"]["args"] = argparse.Namespace(**SETTINGS, x=Payload())
    elif place == "beside":
        contents["callbacks"] = [Payload()]
    else:
        contents["state_dict"]["decoder.to_pixels.0.bias"] = Payload()
    torch.save(contents, tmp_path / "bad.ckpt")
    assert "mkdir" in refusal(tmp_path / "bad.ckpt")
    assert not (tmp_path / "harm").exists()


def test_the_released_shape_has_the_published_tensors_and_parameters():
    config = config_of("released", RELEASED, {})
    with torch.device("meta"):
        model = OmniTokenizerNet(config)
    assert sum(p.numel() for p in model.parameters()) == 51_554_904
    names = {published_name(name) for name in model.state_dict()} - {"quantizer.initialised"}
    # 312 but for 48 of learned biases and 28 of norms that are never used, and 2 orders of windows
    assert len(names) == 312 - 48 - 28 - 2
    assert {name.split(".")[0] for name in names} == {part.rstrip(".") for part in PARTS}
    assert (config.multiple, config.inner_patch) == ((64, 64), (4, 8, 8))


MEASURE = """
import re, sys
from pathlib import Path
import omnitok
from omnitok.hub import SYSTEMS
status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
def kilobytes(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", status.read_text())[1])
omnitok.load(sys.argv[1])  # imports what loading needs
refs.write_text("5")
before = kilobytes("VmRSS")
tok = omnitok.load(sys.argv[2])
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are Linux's to tell")
def test_loading_takes_no_second_copy_of_the_weights(file, tmp_path):
    large = {"embedding_dim": 512, "heads": 8, "dim_head": 64, "temporal_depth": 1}
    path = save_omnitokenizer(tmp_path / "large.ckpt", **large)
    command = [sys.executable, "-c", MEASURE, str(file), str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    size = path.stat().st_size
    assert size > 40e6
    assert int(ran.stdout) < 1.1 * size
