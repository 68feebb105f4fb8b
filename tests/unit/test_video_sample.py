"""Rates, clocks and target sizes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video import sample_times
from video.sample import as_rate, target_size


@pytest.mark.parametrize(
    ("given_rate", "rate"),
    [(25, Fraction(25)), (29.97, Fraction(2997, 100)), (24000 / 1001, Fraction(24000, 1001)),
     ("30000/1001", Fraction(30000, 1001)), ("12.5", Fraction(25, 2)), (0.1, Fraction(1, 10)),
     ("1/86400", Fraction(1, 86400)), ("0.0007", Fraction(7, 10000))],
)  # fmt: skip
def test_rates_are_read_exactly(given_rate, rate):
    assert as_rate(given_rate) == rate


@pytest.mark.parametrize(
    "bad",
    [0, -1, -0.01, float("nan"), float("inf"), "fast", "1/0", "1e999999999", None],
)
def test_a_rate_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="fps="):
        as_rate(bad)


def test_the_last_frame_is_shown_for_one_interval():
    pts = torch.arange(10, dtype=torch.float64) / 10
    assert sample_times(pts, 10).tolist() == list(range(10))
    assert sample_times(pts, 20).tolist() == [n // 2 for n in range(20)]
    assert sample_times(pts, 4).tolist() == [0, 2, 5, 7]
    assert sample_times(pts[:1], 4).tolist() == [0]
    assert sample_times(pts, 4, start=0.5, end=0.8).tolist() == [5, 7]


def test_times_rounded_to_milliseconds_neither_drop_nor_repeat_a_frame():
    exact = torch.arange(2000, dtype=torch.float64) * 1001 / 30000
    rounded = (exact * 1000).round() / 1000
    assert sample_times(rounded, Fraction(30000, 1001)).tolist() == list(range(2000))


@pytest.mark.parametrize("pts", [[], [0.0, 0.0], [1.0, 0.5], [[0.0]]])
def test_times_that_do_not_increase_are_refused(pts):
    with pytest.raises(ValueError, match="increasing"):
        sample_times(torch.tensor(pts, dtype=torch.float64), 25)


@given(
    st.lists(st.floats(0.001, 2), min_size=1, max_size=30),
    st.fractions(Fraction(1, 4), 120, max_denominator=1001),
)
def test_every_tick_shows_the_newest_frame_that_is_due(steps, fps):
    pts = torch.tensor(steps, dtype=torch.float64).cumsum(0)
    picked = sample_times(pts, fps)
    ticks = pts[0] + torch.arange(len(picked), dtype=torch.float64) / float(fps)
    assert (picked.diff() >= 0).all()
    assert (pts[picked] <= ticks + 1.1e-3).all()
    later = picked + 1 < len(pts)
    assert (pts[(picked + 1).clamp_max(len(pts) - 1)][later] > ticks[later]).all()


@pytest.mark.parametrize(
    ("size", "source", "expected"),
    [(None, (47, 63), (47, 63)), (24, (48, 64), (24, 32)), (24, (64, 48), (32, 24)),
     (256, (1080, 1920), (256, 456)), (25, (100, 100), (25, 25)), (5, (10, 11), (5, 6)),
     (64, (2, 3), (64, 96)), (np.int64(24), (48, 64), (24, 32)), ((10, 20), (48, 64), (10, 20))],
)  # fmt: skip
def test_target_sizes(size, source, expected):
    assert target_size(size, *source) == expected


@pytest.mark.parametrize("bad", [0, -2, (0, 3), (1, 2, 3), (), 24.0, "24", (1.5, 2)])
def test_a_size_that_means_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="size="):
        target_size(bad, 10, 10)
