"""How the project is laid out."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("omnitok", "video", "shapes", "configs", "tools")
FILES = sorted(
    path.relative_to(ROOT) for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_longer_than_400_lines(path: Path):
    assert len((ROOT / path).read_text().splitlines()) <= 400


def test_no_tool_hides_a_module_of_the_standard_library():
    # `python tools/anything.py` puts tools/ first on sys.path, and torch then dies on import
    names = {path.stem for path in FILES if path.parts[0] == "tools"} - {"__init__"}
    assert names
    assert not names & sys.stdlib_module_names


def test_no_file_has_a_name_that_says_nothing():
    assert not {path.stem for path in FILES} & {"utils", "helpers", "misc", "common"}
