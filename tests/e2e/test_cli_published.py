"""Commands with weights that others published, in files of their layout."""

from __future__ import annotations

import shutil

import pytest

from omnitok.interop import registry
from tests.published_files import atoken_state, gaussian_state, save
from tools.commands.demonstrating import CLIP


@pytest.fixture(scope="module")
def soc(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "atoken-soc.pt", atoken_state())


@pytest.fixture
def talk(tmp_path):
    return shutil.copy(CLIP, tmp_path / "talk.mp4")


SMALL = ("--clip", "0:0.7", "--size", "30")


def test_a_clip_goes_to_tokens_and_back(soc, talk, omnitok, tmp_path):
    plan = omnitok("tokenize", talk, *SMALL, "--dry-run", "--json", model=soc).json["files"][0]
    done = omnitok("tokenize", talk, *SMALL, "--json", model=soc).json["files"][0]
    assert done["status"] == "done"
    assert (plan["grid"], plan["num_tokens"]) == (done["grid"], done["num_tokens"])
    seen = omnitok("inspect", done["output"], "--json").json
    assert (seen["model"], seen["kind"]) == ("atoken-so-c", "latents")
    back = omnitok("decode", done["output"], "--json", model=soc).json["files"][0]
    assert back["status"] == "done"
    assert back["num_frames"] == done["num_frames"]
    assert (back["height"], back["width"]) == (done["height"], done["width"])
    assert omnitok("decode", done["output"], "--overwrite", model=None).status == 3


def test_tokens_of_weights_loaded_by_name_need_no_model(soc, talk, omnitok, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path / "cache"))
    run = omnitok("tokenize", talk, "--dry-run", model="atoken-so-c")
    assert run.status == 2
    assert registry.PUBLISHED["atoken-so-c"].address in run.err
    (tmp_path / "cache").mkdir()
    shutil.copy(soc, tmp_path / "cache" / "atoken-soc.pt")
    listed = {m["name"]: m["weights"] for m in omnitok("models", "--json").json["published"]}
    assert listed.pop("atoken-so-c") == str(tmp_path / "cache" / "atoken-soc.pt")
    assert set(listed.values()) == {None}
    done = omnitok("tokenize", talk, *SMALL, "--json", model="atoken-so-c").json["files"][0]
    assert omnitok("decode", done["output"], model=None).status == 0


def test_convert_writes_weights_that_load(soc, talk, omnitok, tmp_path):
    own = tmp_path / "own.safetensors"
    run = omnitok("convert", soc, own, "--json", model=None)
    assert run.status == 0
    assert run.json["system"] == "atoken"
    for number, weights in enumerate((soc, own)):
        out = tmp_path / f"{number}.omni.safetensors"
        assert omnitok("tokenize", talk, *SMALL, "-o", out, model=weights).status == 0
    seen = [omnitok("inspect", tmp_path / f"{n}.omni.safetensors", "--json").json for n in (0, 1)]
    assert seen[0]["weights_sha256"] == seen[1]["weights_sha256"] == run.json["weights_sha256"]
    assert omnitok("decode", tmp_path / "0.omni.safetensors", model=own).status == 0


def test_convert_takes_the_name_of_a_renamed_file(soc, omnitok, tmp_path):
    copy = shutil.copy(soc, tmp_path / "renamed.pt")
    own = tmp_path / "own.safetensors"
    assert omnitok("convert", copy, own, "--as", "atoken-so-d", model=None).status == 0
    clip = shutil.copy(CLIP, tmp_path / "talk.mp4")
    done = omnitok("tokenize", clip, *SMALL, "--json", model=own).json["files"][0]
    assert omnitok("inspect", done["output"], "--json").json["kind"] == "codes"


def test_convert_says_what_is_wrong(soc, omnitok, tmp_path):
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"kept")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(soc.read_bytes()[:-1000])
    new = tmp_path / "new.safetensors"
    cases = [
        ((soc, there), 2, "exists"),
        ((soc, tmp_path / "new.pt"), 2, "ends with .safetensors"),
        ((soc, new, "--as", "nothing"), 2, "--as nothing is unknown"),
        ((cut, new), 3, "cut.pt is not a whole PyTorch file"),
        ((tmp_path / "none.pt", new), 3, "none.pt"),
    ]
    for words, status, part in cases:
        run = omnitok("convert", *words, model=None)
        assert (run.status, run.out) == (status, "")
        assert part in run.err
        assert run.err.count("\n") == 1
    assert there.read_bytes() == b"kept"
    assert not new.exists()


def test_a_gaussian_decoder_is_no_tokenizer(talk, omnitok, tmp_path):
    file = save(tmp_path / "3d_decode_gs.pt", gaussian_state())
    for more in ((), ("--dry-run",)):
        run = omnitok("tokenize", talk, *more, model=file)
        assert run.status == 2
        assert "takes voxels, not frames" in run.err
