"""The plain readings that compression is timed against."""

import pytest

from tools import bench_compress


def test_plain_readings_give_what_the_recipes_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compress, "FRAMES", 8)
    monkeypatch.setattr(bench_compress, "WIDTH", 16)
    figures = bench_compress.speed(quick=True)  # compares outputs before it times anything
    assert [figure.most for figure in figures] == [0.5] * 4


def test_outputs_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_compress, "FRAMES", 8)
    monkeypatch.setattr(bench_compress, "WIDTH", 16)
    monkeypatch.setattr(bench_compress, "plain_tome", lambda x, r: x[:, r:])
    with pytest.raises(AssertionError, match="not close"):
        bench_compress.speed(quick=True)
