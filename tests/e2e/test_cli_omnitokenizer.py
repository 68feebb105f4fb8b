"""A real clip through a model in the layout of the published files of OmniTokenizer, and back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import video
from tests.omnitokenizer_files import save_omnitokenizer

BESIDE = Path(__file__).parents[3] / "shared"
CLIPS = Path(os.environ.get("OMNITOK_DATA") or BESIDE / "data") / "video"
GOLDEN = Path(os.environ.get("OMNITOK_GOLDEN") or BESIDE / "golden") / "omnitokenizer"


@pytest.fixture
def clip(tmp_path):
    source = CLIPS / "carphone.mp4"
    if not source.exists():
        pytest.skip(f"no real clips at {CLIPS}; set OMNITOK_DATA to the folder that holds video/")
    return Path(shutil.copy(source, tmp_path))


@pytest.mark.parametrize("flavour", ["released", "vae", "deferred"])
def test_a_clip_goes_to_tokens_and_back(flavour, clip, omnitok, tmp_path):
    if flavour == "released":
        model = GOLDEN / "tiny_released_layout.ckpt"
        if not model.exists():
            pytest.skip(f"no recorded data at {GOLDEN}; set OMNITOK_GOLDEN to the folder with it")
    else:
        changes = {"vae": {"use_vae": True}, "deferred": {"defer_temporal_pool": True}}[flavour]
        model = save_omnitokenizer(tmp_path / "some.ckpt", **changes)
    words = ("tokenize", clip, "--clip", "0:0.9", "--size", "90", "--json")
    plan = omnitok(*words, "--dry-run", model=model).json["files"][0]
    done = omnitok(*words, model=model).json["files"][0]
    assert (done["status"], done["num_frames"]) == ("done", 27)
    assert (plan["grid"], plan["num_tokens"]) == (done["grid"], done["num_tokens"])
    seen = omnitok("inspect", done["output"], "--json").json
    assert seen["kind"] == ("latents" if flavour == "vae" else "codes")
    assert seen["grid"] == done["grid"]
    released = flavour == "released"
    window, padded = (17, (30, 128, 128)) if released else (9, (27, 96, 112))
    assert seen["preprocess"]["window"] == [window, 0]
    assert seen["preprocess"]["pad"] == [padded[0] - 27, padded[1] - 90, padded[2] - 110]
    assert omnitok("decode", done["output"], model=None).status == 3
    back = omnitok("decode", done["output"], "--json", model=model).json["files"][0]
    before, after = video.read(clip).pts[:27], video.read(back["output"])
    assert after.frames.shape == (27, 3, 90, 110)
    assert (after.pts - before).abs().max() < 1e-4


def test_the_console_script_takes_a_published_file(clip, tmp_path):
    model = save_omnitokenizer(tmp_path / "some.ckpt")
    words = [clip, "--clip", "0:0.2", "--size", "32", "--model", model]
    command = [sys.executable, "-m", "tools.cli", "tokenize", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "carphone.omni.safetensors").exists()


def test_a_bad_file_costs_one_sentence(clip, omnitok, tmp_path):
    model = save_omnitokenizer(tmp_path / "some.ckpt", enc_block="tt")
    model.write_bytes(model.read_bytes()[:-2000])
    run = omnitok("tokenize", clip, model=model)
    assert (run.status, run.out, run.err.count("\n")) == (2, "", 1)
    assert "some.ckpt is not a whole PyTorch file" in run.err
    assert not (tmp_path / "carphone.omni.safetensors").exists()
