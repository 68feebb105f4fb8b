"""The command line itself: options, names of outputs, errors; nothing here needs weights."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.cli import main
from tools.commands import errors, listing
from tools.commands.errors import UsageError
from tools.commands.options import rate, seconds, side
from tools.commands.planning import TOKENS, is_media, is_tokens, make_plan
from tools.commands.reporting import clock, printable, size_of


def plan(*inputs: Path | str, output: Path | None = None, walk: bool = True):
    return make_plan(
        [str(path) for path in inputs],
        None if output is None else str(output),
        wanted=is_media,
        ending=lambda _: TOKENS,
        is_file_name=lambda name: name.endswith(".safetensors"),
        walk=walk,
    )


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return paths


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom tools.cli import main\n"
        "try:\n    main(['tokenize', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'av', 'rich', 'PIL', 'omnitok', 'video'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        durations.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
    assert min(durations) < 0.3


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["tokenise"],
        ["tokenize"],
        ["tokenize", "a.mp4", "--fps", "0"],
        ["tokenize", "a.mp4", "--fps", "fast"],
        ["tokenize", "a.mp4", "--size", "0"],
        ["tokenize", "a.mp4", "--size", "256x256"],
        ["tokenize", "a.mp4", "--clip", "3"],
        ["tokenize", "a.mp4", "--clip", "3:2"],
        ["tokenize", "a.mp4", "--dtype", "int8"],
        ["compare", "a.mp4"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2_with_a_reason(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--model", "no-such-model"], ["--model", "small"], ["--device", "cuda:99"]]
)
def test_a_model_or_device_that_is_not_there_is_status_2(words, tmp_path, capsys):
    assert main(["tokenize", *map(str, touch(tmp_path, "a.mp4")), *words]) == 2
    told = capsys.readouterr().err
    assert words[1] in told
    assert "choose one of" in told or "nor one of" in told


def test_options_are_read():
    assert rate("30000/1001") == "30000/1001"
    for bad in ("1e999999999", "1001", "1/0", "nan", "-1/2"):  # the first would take minutes
        with pytest.raises(argparse.ArgumentTypeError):
            rate(bad)
    assert side("256") == 256
    assert seconds("1.5:3") == (1.5, 3)
    assert seconds(":3") == (0, 3)
    assert seconds("2:") == (2, math.inf)
    for bad in ("nan:1", "inf:", "-1:2", "1:1"):
        with pytest.raises(argparse.ArgumentTypeError):
            seconds(bad)


def test_outputs_are_named_after_inputs(tmp_path):
    a, b = touch(tmp_path, "talk.mp4", "a.b.MOV")
    assert [job.dst for job in plan(a, b).jobs] == [
        str(tmp_path / "talk.omni.safetensors"),
        str(tmp_path / "a.b.omni.safetensors"),
    ]
    out = tmp_path / "out"
    assert plan(a, output=out).jobs[0].dst == str(out / "talk.omni.safetensors")
    one = tmp_path / "one.safetensors"
    assert plan(a, output=one).jobs[0].dst == str(one)


def test_a_folder_keeps_its_layout_and_skips_what_is_not_media(tmp_path):
    touch(tmp_path / "in", "a.mp4", "sub/b.png", "notes.txt", ".hidden.mp4", ".git/c.mp4")
    touch(tmp_path / "in", "a.decoded.mp4", "a.omni.safetensors")
    found = plan(tmp_path / "in", output=tmp_path / "out")
    assert [job.dst for job in found.jobs] == [
        str(tmp_path / "out/a.omni.safetensors"),
        str(tmp_path / "out/sub/b.omni.safetensors"),
    ]
    assert found.ignored == 4


def test_a_folder_of_frames_is_one_input(tmp_path):
    touch(tmp_path / "shot.1", "0.png", "1.png")
    found = plan(tmp_path / "shot.1", walk=False)
    assert [job.dst for job in found.jobs] == [str(tmp_path / "shot.1.omni.safetensors")]


def test_a_folder_of_frames_may_be_the_one_we_are_in(tmp_path, monkeypatch):
    touch(tmp_path / "shot", "sub/0.png")
    monkeypatch.chdir(tmp_path / "shot" / "sub")
    for given, name in ((".", "shot/sub"), ("..", "shot"), ("../sub/", "shot/sub")):
        (job,) = plan(given, walk=False).jobs
        assert os.path.abspath(job.dst) == str(tmp_path / f"{name}.omni.safetensors")
    (job,) = plan(".", output=tmp_path / "out", walk=False).jobs
    assert job.dst == str(tmp_path / "out" / "sub.omni.safetensors")


def test_an_input_without_a_name_is_a_failure_and_not_the_folder_we_are_in(tmp_path, monkeypatch):
    (path,) = touch(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    empty, good = plan("", path).jobs
    assert "no name" in empty.error
    assert not good.error


def test_inputs_of_the_same_stem_keep_their_suffixes(tmp_path):
    inputs = touch(tmp_path, "a.mp4", "a.mov", "b.mp4")
    assert [Path(job.dst).name for job in plan(*inputs).jobs] == [
        "a.mp4.omni.safetensors",
        "a.mov.omni.safetensors",
        "b.omni.safetensors",
    ]


def test_inputs_that_cannot_both_be_kept_are_refused_by_name(tmp_path):
    one, two = touch(tmp_path, "x/a.mp4", "y/a.mp4")
    jobs = plan(one, two, output=tmp_path / "out").jobs
    assert all(str(one) in job.error and str(two) in job.error for job in jobs)


def test_an_input_named_twice_is_one_job(tmp_path, monkeypatch):
    (path,) = touch(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(plan(path, Path("a.mp4"), tmp_path).jobs) == 1


def test_a_folder_without_media_is_a_failure_that_says_so(tmp_path):
    touch(tmp_path, "notes.txt")
    (job,) = plan(tmp_path).jobs
    assert "holds no file" in job.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_failure(tmp_path):
    touch(tmp_path, "shut/a.mp4", "b.mp4")
    (tmp_path / "shut").chmod(0)
    try:
        jobs = plan(tmp_path).jobs
    finally:
        (tmp_path / "shut").chmod(0o700)
    assert "permissions" in jobs[1].error


def test_one_output_file_for_many_inputs_is_refused(tmp_path):
    one, two = touch(tmp_path, "a.mp4", "b.mp4")
    for inputs in ((one, two), (tmp_path,)):
        with pytest.raises(UsageError, match="give a folder"):
            plan(*inputs, output=tmp_path / "c.safetensors")
    with pytest.raises(UsageError, match="another kind"):
        plan(one, output=two)
    with pytest.raises(UsageError, match="another kind"):
        plan(one, output=tmp_path / "new.avi")  # a folder of that name would surprise


def test_names_in_folders_are_told_apart():
    assert is_media("A.MP4")
    assert is_media("b.jpeg")
    assert not is_media("a.decoded.png")
    assert not is_media("a.txt")
    assert is_tokens("a.omni.safetensors")
    assert not is_tokens("model.safetensors")


def test_numbers_and_names_are_fit_to_print():
    assert [size_of(n) for n in (0, 999, 1000, 25_300_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "25.3 GB",
    ]
    assert [clock(s) for s in (0, 61.4, 3600)] == ["0:00", "1:01", "1:00:00"]
    assert printable("a\x1b[31mb") == "a\\x1b[31mb"


def test_models_lists_every_preset_without_building_it(capsys):
    assert main(["models", "--json"]) == 0
    models = {m["name"]: m for m in json.loads(capsys.readouterr().out)["models"]}
    assert models["tiny"]["codebook_size"] == 64000
    assert models["tiny"]["bits_per_token"] == pytest.approx(math.log2(64000))
    assert models["so400m"]["weights"] is None
    assert models["so400m"]["parameters"] > 4e8
    assert main(["models"]) == 0
    assert "a shape to train" in capsys.readouterr().out


def test_a_bug_is_one_line_and_status_1(monkeypatch, capsys):
    def broken() -> list[str]:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(listing, "names", broken)
    assert main(["models"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("omnitok: this is a bug in omnitok: ZeroDivisionError: oh")
    assert told.count("\n") == 1
    assert main(["--debug", "models"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("OMNITOK_DEBUG", "1")
    assert main(["models", "--json"]) == 1
    caught = capsys.readouterr()
    assert "Traceback" in caught.err
    assert json.loads(caught.out)["status"] == 1


def test_a_reader_that_goes_away_is_no_bug():
    read, write = os.pipe()
    os.close(read)
    code = (
        "import sys\nfrom tools.cli import main\nfrom tools.commands import listing\n"
        "listing.names = lambda: []\nsys.exit(main(['models']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_memory_and_system_errors_are_told_in_a_sentence():
    assert "--size" in (errors.sentence(MemoryError()) or "")
    assert "free some space" in (errors.sentence(OSError(28, "no space left", "a.mp4")) or "")
    assert errors.sentence(ValueError("x")) is None


@pytest.mark.parametrize("name", ["tokenize_video", "decode_video", "inspect_tokens"])
def test_the_scripts_are_the_commands(name):
    script = Path(__file__).parents[2] / "tools" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: omnitok {name.split('_')[0]}")
