"""A command that is stopped leaves whole files only, says so, and goes on when run again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from video_clips import encode

from tools.commands import reporting


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough frames to be caught in the middle."""
    return encode(tmp_path_factory.mktemp("long") / "z_long.mp4", 1000, size=(96, 128))


@pytest.mark.parametrize("command", ["tokenize", "decode"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_summary(
    command, signum, clips, omnitok, monkeypatch, tmp_path
):
    inputs = [clips("steady.mp4"), clips("film.mp4"), clips("smooth.mp4")]
    if command == "decode":
        omnitok("tokenize", *inputs, "-o", tmp_path / "tokens")
        inputs = sorted((tmp_path / "tokens").iterdir())
    seen = 0

    def update(self: object, done: int, total: int | None) -> None:
        nonlocal seen
        seen += 1
        if seen == 12:  # in the second file
            signal.raise_signal(signum)

    monkeypatch.setattr(reporting._Log, "update", update)
    run = omnitok(command, *inputs, "-o", tmp_path / "out", "--json")
    assert run.status == 128 + signum
    assert run.json["stopped"]
    assert run.json["done"] + run.json["left"] == 3
    assert len(list((tmp_path / "out").iterdir())) == run.json["done"]
    monkeypatch.undo()
    again = omnitok(command, *inputs, "-o", tmp_path / "out", "--json")
    assert again.status == 0
    assert again.json["skipped"] == run.json["done"]
    assert again.json["done"] == run.json["left"]


def test_a_killed_process_leaves_no_output_that_is_not_whole(
    clips, long_clip, weights, omnitok, tmp_path
):
    words = ["tokenize", clips("tiny.png"), long_clip, "-o", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", *map(str, words), "--model", str(weights)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "tiny.omni.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.omni.safetensors"]
    (tmp_path / ".omnitok-1-2.tmp").write_bytes(b"left by a crash of the machine")
    again = omnitok(*words, "--json")
    assert (again.status, again.json["done"], again.json["skipped"]) == (0, 1, 1)
