"""The bench of published networks, on sizes that are quick."""

from __future__ import annotations

import argparse

import torch

from tools.bench_published import atoken, cpu_seconds, peak, psnr

SMALL = argparse.Namespace(depth=1, size=64, rounds=1, threads=1)


@torch.no_grad()
def test_both_ways_compute_the_same():
    contest = atoken(SMALL, torch.float32)
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


def test_the_peak_is_what_tensors_take_at_a_time():
    def run():
        for _ in range(3):
            a = torch.zeros(2**20)
            b = a + 1
            del a, b

    assert 2 * 2**22 <= peak(run) < 2.1 * 2**22
