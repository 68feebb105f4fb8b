"""The bench of published networks, on sizes that are quick."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

from tools.bench_published import atoken, cpu_seconds, peak, psnr

SMALL = argparse.Namespace(depth=1, size=64, rounds=1, threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of memory")
@torch.no_grad()
def test_both_ways_compute_the_same():
    contest = atoken(SMALL, torch.float32)
    assert peak(contest, "ours") < 2**30  # 0 where memory given back before is used again
    ours, plain = contest.ours(), contest.plain()
    assert ours.shape == plain.shape
    assert psnr(ours, plain) > 100
    assert plain.std() > 0.1  # pixels, not nothing


def test_the_least_of_the_rounds_counts_without_the_first():
    calls = []
    seconds, results = cpu_seconds({"a": lambda: calls.append(1) or torch.ones(1)}, 2)
    assert len(calls) == 3
    assert seconds["a"] < 1
    assert results["a"] == 1
