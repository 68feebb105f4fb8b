"""Every command and every Python line of the README works as printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import shapes
from omnitok.hub import shipped
from tests.shape_samples import sphere
from tools.cli import main
from tools.commands.demonstrating import CLIP

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line[2:]
    for block in re.findall(r"```console\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("$ ")
]

pytestmark = pytest.mark.skipif(not shipped(), reason="the package holds no weights")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the files that the README speaks of."""
    shutil.copy(CLIP, tmp_path / "talk.mp4")
    shapes.write(tmp_path / "bunny.ply", sphere())
    (tmp_path / "holiday").mkdir()
    shutil.copy(CLIP, tmp_path / "holiday" / "beach.mp4")
    (tmp_path / "my_data").mkdir()
    for n in range(6):
        shutil.copy(CLIP, tmp_path / "my_data" / f"{n}.mp4")
        Image.effect_noise((160, 120), 20 + 20 * n).save(tmp_path / "my_data" / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_shows_commands():
    assert sum(c.startswith("omnitok ") for c in COMMANDS) >= 5
    assert sum(c.startswith("make ") for c in COMMANDS) >= 2


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.M), command


def test_the_commands_of_the_readme_run_in_order(desk, capsys):
    for command in COMMANDS:
        if command.startswith("omnitok "):
            assert main(shlex.split(command)[1:]) == 0, command


def test_the_python_of_the_readme_runs(desk):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
