"""`omnitok train` as a user runs it: a folder, mistakes, every shipped curriculum."""

from __future__ import annotations

import csv
import json
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import omnitok
from omnitok.train.loop import Trainer
from omnitok.train.network import build_model
from tools.cli import main
from tools.train_config import CONFIGS, read_config

QUICK = (
    "model.encoder={width: 64, heads: 1, layers: [local], mlp_hidden: 64}",
    "model.decoder={width: 64, heads: 1, layers: [local], mlp_hidden: 64}",
    "compile=false",
    "stages.0.steps=2",
    "stages.1.steps=3",
    "stages.0.mix.0.batch=2",
    "stages.0.mix.0.sizes=[[1,32,32]]",
    "stages.1.mix=[{kind: images, batch: 2, sizes: [[1,32,32]]}, {kind: videos, batch: 2, "
    "sizes: [[5,32,32],[9,16,32]], fps: 12}]",
    "eval_every=3",
    "workers=0",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, clips):
    """A folder with pictures, a video in a subfolder, and broken files."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(30):
        small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 48)).save(root / f"{n}.png")
    (root / "videos").mkdir()
    video = clips("steady.mp4").read_bytes()
    for n in range(3):
        (root / "videos" / f"{n}.mp4").write_bytes(video)
    (root / "videos" / "broken.mp4").write_bytes(video[: len(video) // 3])
    (root / "broken.jpg").write_bytes(b"no picture")
    return root


def train(*settings: object) -> int:
    return main(["train", *map(str, settings)])


def test_a_folder_of_files_becomes_a_tokenizer_and_broken_ones_are_named(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert train("curriculum=tiny-kl", f"data={photos}", *QUICK, "-o", out, "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["steps"] == 5
    assert all("broken" in name for name in result["broken_files"])
    assert len(result["broken_files"]) == printed.err.count("passed over")
    tok = omnitok.load(out / "weights.safetensors")
    clip = torch.zeros(3, 3, 16, 24, dtype=torch.uint8)
    assert tok.detokenize(tok.tokenize(clip)).shape == clip.shape
    assert (out / "best.safetensors").exists()
    assert list(out.glob("pictures/step-*/image-0.png"))
    assert list(out.glob("tensorboard/events*"))
    with open(out / "log.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5


def test_the_same_command_again_is_done_at_once(photos, tmp_path, capsys):
    out = tmp_path / "run"
    settings = ("curriculum=tiny-kl", f"data={photos}", *QUICK, "-o", out)
    assert train(*settings) == 0
    before = (out / "weights.safetensors").read_bytes()
    assert train(*settings) == 0
    assert "going on at step 5 of 5" in capsys.readouterr().err
    assert (out / "weights.safetensors").read_bytes() == before


def test_a_dry_run_prints_a_plan_and_writes_nothing(photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert train("curriculum=tiny-kl", f"data={photos}", *QUICK, "-o", out, "--dry-run") == 0
    text = capsys.readouterr().out
    for part in ("images", "videos", "M parameters", "tokens", "min"):
        assert part in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["stages.0.inflate=still", "start_from=tiny-kl"], "those before it have nothing"),
        (["stages.1.freeze=[encodr]"], "freezes 'encodr'"),
        (["start_from=/no/such.safetensors"], "start_from=/no/such.safetensors: no weights"),
        (["--device", "cudaa"], "no device 'cudaa'"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(photos, tmp_path, capsys, settings, words):
    for dry in ((), ("--dry-run",)):
        given = ["curriculum=tiny-kl", f"data={photos}", *QUICK, *settings]
        assert train(*given, "-o", tmp_path / "run", *dry) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["curriculum=tinykl"], "did you mean 'tiny-kl'"),
        (["curiculum=tiny-kl"], "unknown key 'curiculum'; did you mean 'curriculum'"),
        (["optim.lrr=1"], "did you mean 'lr'"),
        (["optim.lr=quick"], "expected float"),
        (["data=/no/such/folder"], "the path of a folder, a .tar or a list that exists"),
        (["stages.9.steps=3"], "list index out of range"),
        (["--device", "cudaa"], "no device 'cudaa'"),
        (["--configs", "/no/such/folder"], "--configs /no/such/folder is no folder"),
        (["stages.0.mix.0.data=[other]"], "'other', which is not among"),
        (["stages.0.losses={rmsee: 1}"], "did you mean 'rmse'"),
        (["model.quantizer={kind: nothing, dim: 3}"], "nothing"),
        (["nonsense"], "expected key=value"),
    ],
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(photos, tmp_path, capsys, settings, words):
    out = tmp_path / "run"
    given = ["curriculum=tiny-kl", f"data={photos}", *QUICK, *settings]
    assert train(*given, "-o", out) == 2
    text = capsys.readouterr().err.strip()
    assert words in text
    assert "\n" not in text
    assert not (out / "weights.safetensors").exists()


def test_an_empty_folder_is_named(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert train(f"data={tmp_path / 'none'}", "-o", tmp_path / "run") == 2
    assert "holds no pictures or videos" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_same_command_goes_on(photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    settings = ("curriculum=tiny-kl", f"data={photos}", *QUICK, "-o", out, "--json")
    step = Trainer.train_step

    def interrupted(self, batches):
        step(self, batches)
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert train(*settings) == 128 + signal.SIGINT
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["stopped"]) == (2, True)
    monkeypatch.undo()
    assert train(*settings) == 0
    printed = capsys.readouterr()
    assert "going on at step 2 of 5" in printed.err
    assert not json.loads(printed.out)["stopped"]


def test_what_stops_a_run_is_one_sentence_also_as_json(photos, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainer, "train_step", fail)
    settings = ("curriculum=tiny-kl", f"data={photos}", *QUICK, "-o", tmp_path / "run", "--json")
    assert train(*settings) == 3
    result = json.loads(capsys.readouterr().out)
    assert "lower batch" in result["error"]
    assert "goes on from the last checkpoint" in result["error"]


def test_a_run_cannot_be_put_into_a_file(photos, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert train("curriculum=tiny-kl", f"data={photos}", *QUICK, "-o", tmp_path / "run") == 2
    assert "is a file; choose a folder for the run" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


CURRICULA = sorted(path.stem for path in (CONFIGS / "curriculum").glob("*.yaml"))


@pytest.mark.parametrize("name", CURRICULA)
def test_every_shipped_curriculum_fits_its_model(name):
    text = (CONFIGS / "curriculum" / f"{name}.yaml").read_text()
    found = re.search(r"model=([\w-]+\w)", text)
    config = read_config([f"curriculum={name}", f"model={found[1] if found else name}"])
    for stage in config.stages:
        with torch.device("meta"):
            built = build_model(config.model, stage.quantizer)
        assert sum(p.numel() for p in built.parameters()) > 1e6
    assert config.stage_at(config.steps - 1)[1] is config.stages[-1]
