"""Fixtures for all tests."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored; commands respect that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a small clip by its name, made when first asked for; names: `video_clips.RECIPES`."""
    from video_clips import RECIPES  # PyAV loads late: most tests do not need it

    folder = tmp_path_factory.mktemp("clips")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else RECIPES[name](path)

    return get
