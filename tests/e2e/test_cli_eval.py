"""`omnitok eval`: one table that can be trusted, whatever the files are like."""

import csv
import io
import json
import math
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import save_network
from waves import waves, write_corpus

from tools.commands import eval_methods, evaluating
from video import write

SMALL = ("--frames", 6, "--size", 32)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_methods, "DRAWS", 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for name in ("lpips-alex", "mobilenet-v2"):
        save_network(folder, name)
    return folder


@pytest.fixture
def no_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNITOK_FEATURES", str(tmp_path / "no networks"))


@pytest.fixture
def clips_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "inner").mkdir(parents=True)
    clip = torch.from_numpy(waves(8, 40, 64, 0)).permute(0, 3, 1, 2)
    write(folder / "inner" / "a.mp4", clip)
    write(folder / "b.png", torch.from_numpy(waves(1, 48, 40, 1)).permute(0, 3, 1, 2))
    (folder / "c.txt").write_text("no picture")
    return folder


def row(data: dict, kind: str, method: str) -> dict:
    (found,) = [r for r in data["rows"] if (r["set"], r["method"]) == (kind, method)]
    return found


def test_every_held_out_item_is_scored_beside_baselines_of_equal_size(
    omnitok, weights, corpus, networks, tmp_path
):
    table, data_file = tmp_path / "t.md", tmp_path / "t.json"
    rows_file, files_file = tmp_path / "t.csv", tmp_path / "files.csv"
    outputs = ("-o", table, "-o", data_file, "-o", rows_file, "--per-file", files_file)
    size = ("--frames", 6, "--size", 64)
    done = omnitok(
        "eval", "--corpus", corpus, *size, "--networks", networks, *outputs, "--json",
        "--tokens", 9000,
    )  # fmt: skip
    assert done.status == 0
    data = done.json
    assert data == json.loads(data_file.read_text())
    model, base = str(weights), "PCA quantized to 16 bits"
    names = {
        "video": [base, model, f"x264, bytes of {model}", f"AV1, bytes of {model}"],
        "image": [base, model, f"JPEG, bytes of {model}", f"WebP, bytes of {model}"],
    }
    assert [(r["set"], r["method"]) for r in data["rows"]] == [
        (kind, name) for kind in names for name in names[kind]
    ]
    for kind in names:
        before, own = row(data, kind, base), row(data, kind, model)
        assert list(own["items"]) == [f"val-{kind}s-{n}" for n in range(2)] == list(before["items"])
        scores = list(own["items"].values())
        assert own["psnr"] == pytest.approx(sum(s["psnr"] for s in scores) / 2)
        mse = sum(s["mse"] for s in scores) / 2  # clips of one size
        assert own["psnr_all"] == pytest.approx(10 * math.log10(255**2 / mse))
        assert own["gain"] == pytest.approx(own["psnr"] - before["psnr"])
        assert own["gain"] < 0  # untrained
        assert own["lpips_ratio"] == pytest.approx(own["lpips"] / before["lpips"])
        assert before["gain"] is None
        assert own["bits_per_pixel"] == pytest.approx(
            16 * own["tokens"] / scores[0]["pixels"], rel=0.01
        )
        assert own["encode_fps"] > 0
        assert own["decode_fps"] > 0
        assert 0 < own["codes_used"] <= own["tokens"] * 2 / 64000
        assert own["perplexity"] == pytest.approx(2 ** own["entropy"])
        assert own["kernel_pictures"] is not None
        assert before["psnr"] > 15
    assert row(data, "video", model)["tokens_per_second"] == pytest.approx(
        row(data, "video", model)["tokens"] * 25 / 6
    )
    assert row(data, "video", model)["kernel_clips"] is not None
    assert row(data, "image", model)["tokens_per_second"] is None
    assert sorted(data["networks"]) == ["lpips-alex", "mobilenet-v2"]
    assert any("too few for a covariance" in note for note in data["notes"])
    assert data["codebooks"][model]["num_tokens"] >= 9000
    assert data["baselines"][0]["moving_patches"] > 0
    lines = table.read_text().splitlines()
    assert lines[0].startswith("| set ")
    assert len([line for line in lines if line.startswith("| ")]) == 2 + 8
    rows = list(csv.DictReader(io.StringIO(rows_file.read_text())))
    assert [r["method"] for r in rows] == [r["method"] for r in data["rows"]]
    assert float(rows[1]["psnr"]) == data["rows"][1]["psnr"]
    files = list(csv.DictReader(io.StringIO(files_file.read_text())))
    assert len(files) == 8 * 2
    assert {f["file"] for f in files} == {f"val-{k}s-{n}" for k in names for n in range(2)}


def test_the_command_of_a_row_repeats_it(omnitok, clips_folder, networks, tmp_path):
    absent = tmp_path / "no corpus"
    words = ("--data", clips_folder, "--corpus", absent, "--networks", networks, *SMALL)
    first = omnitok("eval", *words, "--json").json
    command = shlex.split(first["rows"][0]["command"])
    assert command[:2] == ["omnitok", "eval"]
    again = omnitok("eval", *command[2:], "--json", model=None).json
    timed = ("encode_fps", "decode_fps", "items")
    for a, b in zip(first["rows"], again["rows"], strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


@pytest.mark.usefixtures("no_networks")
def test_what_is_missing_is_said_in_one_line_each(omnitok, clips_folder, tmp_path):
    absent = tmp_path / "no corpus"
    done = omnitok("eval", "--data", clips_folder, "--corpus", absent, *SMALL)
    assert done.status == 0
    notes = [line for line in done.out.splitlines() if line.startswith("Note: ")]
    for words in (str(absent), "no LPIPS", "no Fréchet and kernel distances"):
        assert sum(words in note for note in notes) == 1, words
    assert "no network" in done.out.splitlines()[2]
    assert "python -m tools.feature_nets" in done.out
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("no_networks")
def test_a_broken_file_is_named_and_stops_nothing(omnitok, weights, clips_folder):
    (clips_folder / "a-broken.mp4").write_bytes(b"not a video at all" * 99)
    (clips_folder / "empty.png").write_bytes(b"")
    done = omnitok("eval", "--data", clips_folder, *SMALL, "--only-models", "--json")
    assert done.status == 3
    assert sorted(done.json["failed"]) == ["a-broken.mp4", "empty.png"]
    assert "a-broken.mp4" in done.err
    assert list(row(done.json, "video", str(weights))["items"]) == ["inner/a.mp4"]
    assert list(row(done.json, "image", str(weights))["items"]) == ["b.png"]
    assert len(done.json["rows"]) == 2


@pytest.mark.usefixtures("no_networks")
def test_names_of_any_bytes_are_written(omnitok, clips_folder, tmp_path):
    os.rename(clips_folder / "b.png", os.fsencode(clips_folder) + b"/\xff.png")
    table, files = tmp_path / "t.md", tmp_path / "files.csv"
    words = ("--data", clips_folder, *SMALL, "--only-models", "-o", table, "--per-file", files)
    assert omnitok("eval", *words).status == 0
    assert "\\udcff.png" in files.read_text()
    assert table.exists()


@pytest.mark.usefixtures("no_networks")
def test_codes_that_cannot_be_counted_leave_the_table(omnitok, weights, corpus, monkeypatch):
    def fail(*_):
        raise ValueError("too many codes")

    monkeypatch.setattr(evaluating, "codebook_use", fail)
    words = ("--corpus", corpus, *SMALL, "--only-models", "--tokens", 9, "--json")
    data = omnitok("eval", *words).json
    assert len(data["rows"]) == 2
    assert f"no codes of {weights} on training tokens: too many codes" in data["notes"]


@pytest.mark.usefixtures("no_networks")
def test_a_protocol_decides_what_is_scored(omnitok, clips_folder, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"kinds": ["video"], "frames": 9, "size": 32, "short": "skip"}))
    clip = torch.from_numpy(waves(12, 40, 64, 3)).permute(0, 3, 1, 2)
    write(clips_folder / "long.mp4", clip)
    done = omnitok("eval", "--data", clips_folder, "--protocol", own, "--only-models", "--json")
    assert done.status == 0
    assert done.json["left_out"] == ["inner/a.mp4"]
    (only,) = done.json["rows"]
    assert list(only["items"]) == ["long.mp4"]
    assert only["frames"] == 9
    assert only["items"]["long.mp4"]["pixels"] == 9 * 32 * 32


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (("--corpus", "absent"), 2, "make corpus"),
        (("--data", "DIR"), 3, "holds no videos or images"),
        (("--data", "absent"), 3, "absent is no folder"),
        (("--data", "DIR", "--tokens", 9, "--corpus", "absent"), 2, "there is no corpus in absent"),
        (("--data", "DIR", "--networks", "absent"), 2, "--networks absent is no folder"),
        (("--data", "DIR", "--probe", "absent"), 3, "--probe absent is no folder"),
        (("--data", "DIR", "-o", "DIR/table.txt"), 2, "must end in .md or .csv or .json"),
        (("--data", "DIR", "-o", "DIR/old.csv"), 2, "old.csv exists; name another"),
        (("--data", "DIR", "--per-file", "DIR/a.md"), 2, "must end in .csv"),
        (("--data", "DIR", "-o", "DIR/a.csv", "--per-file", "DIR/a.csv"), 2, "the same name"),
        (("--data", "DIR", "--protocol", "ucf"), 2, "ucf101-17x256"),
        (("--data", "DIR", "--protocol", "imagenet-256", "--frames", 3), 2, "is fixed"),
        (("--data", "DIR", "--probe", "DIR"), 3, "does not hold two subfolders"),
        (("--data", "DIR", "-o", "DIR"), 2, "name a file in a folder that exists"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(omnitok, tmp_path, words, status, why):
    (tmp_path / "old.csv").write_text("kept")
    done = omnitok("eval", *(str(word).replace("DIR", str(tmp_path)) for word in words))
    assert done.status == status
    assert why in done.err
    assert (tmp_path / "old.csv").read_text() == "kept"


@pytest.mark.usefixtures("no_networks")
def test_a_model_that_cannot_code_the_clips_takes_no_row_from_the_others(
    omnitok, weights, other_weights, clips_folder, corpus, monkeypatch
):
    tokenizer = eval_methods._tokenizer

    def refusing(tok):
        code = tokenizer(tok)

        def refuse(item, bits):
            if tok.config.name == "other" and item.kind == "video":
                raise ValueError("a grid of 4x4 tokens is too small")
            return code(item, bits)

        return refuse

    monkeypatch.setattr(eval_methods, "_tokenizer", refusing)
    both = ("--model", other_weights, "--model", other_weights)  # and the random one
    done = omnitok("eval", "--data", clips_folder, "--corpus", corpus, *both, *SMALL, "--json")
    assert done.status == 3
    rows = [(r["set"], r["method"]) for r in done.json["rows"] if r["method"] == r["model"]]
    own, other = str(weights), str(other_weights)
    assert rows == [("video", own), ("image", other), ("image", own)]
    assert row(done.json, "video", own)["gain"] is not None
    assert not [r for r in done.json["rows"] if r["set"] == "video" and other in r["method"]]
    why = f"no videos of {other}, which cannot code inner/a.mp4 (6x32x32): a grid of 4x4 tokens"
    assert sum(why in note for note in done.json["notes"]) == 1
    assert not done.json["failed"]


@pytest.mark.usefixtures("no_networks")
def test_what_is_too_short_hidden_or_a_mesh_is_no_failure(omnitok, clips_folder, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"kinds": ["video"], "frames": 9, "size": 32, "short": "skip"}))
    (clips_folder / "._a.mp4").write_bytes(b"of another system")
    (clips_folder / "chair.obj").write_text("v 0 0 0")
    done = omnitok("eval", "--data", clips_folder, "--protocol", own, "--only-models")
    assert done.status == 3
    assert "none of the 1 files could be scored by protocol" in done.err
    assert "0 failed, 1 are too short for it" in done.err


@pytest.mark.usefixtures("no_networks")
def test_a_probe_that_fails_leaves_the_table(omnitok, clips_folder, tmp_path):
    classes = tmp_path / "classes"
    for label, content in (("a", None), ("b", b"broken")):
        (classes / label).mkdir(parents=True)
        for number in range(2):
            path = classes / label / f"{number}.png"
            Image.new("RGB", (40, 40)).save(path) if content is None else path.write_bytes(content)
    table = tmp_path / "old.md"
    table.write_text("of last time")
    words = ("--data", clips_folder, "--probe", classes, *SMALL, "--only-models", "-o", table)
    done = omnitok("eval", *words, "--overwrite")
    assert done.status == 3
    assert "too few to test two classes" in done.out
    assert table.read_text().startswith("| set ")


@pytest.mark.usefixtures("no_networks")
def test_a_folder_of_another_kind_than_the_protocol_is_named(omnitok, tmp_path):
    Image.fromarray(waves(1, 40, 40, 0)[0]).save(tmp_path / "a.png")
    done = omnitok("eval", "--data", tmp_path, "--protocol", "ucf101-17x256")
    assert done.status == 3
    assert "none of the video files" in done.err


@pytest.mark.usefixtures("no_networks")
def test_a_linear_probe_tells_classes_apart_that_look_different(omnitok, weights, tmp_path):
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 60)):
        (tmp_path / label).mkdir()
        for number in range(8):
            pixels = rng.integers(level - 40, level + 40, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    (tmp_path / "dark" / "broken.png").write_bytes(b"x")
    done = omnitok(
        "eval", "--data", tmp_path / "bright", "--probe", tmp_path, "--only-models", *SMALL,
        "--json",
    )  # fmt: skip
    assert done.status == 0
    found = done.json["probes"][str(weights)]
    assert found == {"accuracy": 1.0, "chance": 0.5, "trained": 12, "tested": 4, "classes": 2}
    assert "left out of the probe" in done.err
