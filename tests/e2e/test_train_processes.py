"""Two processes train as one does, and a run goes on after SIGKILL, on any number of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_networks import save_network
from small_runs import losses, two_process_config, with_a_broken_one, write_corpus

from omnitok.train.log import read_log
from omnitok.train.loop import Trainer

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def root(folder):
    (folder / "corpus").mkdir()
    return write_corpus(folder / "corpus")


def two_processes(root, out, kind="copy", network="", kill_at=-1):
    env = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(TESTS / "train_two.py"), str(root), str(out)]
    return subprocess.run(
        [*command, kind, str(network), str(kill_at)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_process(root, out, kind="copy", network=""):
    items = {"small": with_a_broken_one(root)}
    trainer = Trainer(two_process_config(kind, str(network)), out, items)
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def alone(root, folder):
    one_process(root, folder / "alone")
    return losses(folder / "alone")


def test_two_processes_have_the_losses_of_one_also_after_a_kill(root, folder, alone):
    done = two_processes(root, folder / "whole")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str([str(root / "gone.png")])
    assert losses(folder / "whole") == pytest.approx(alone, rel=1e-5)
    killed = two_processes(root, folder / "killed", kill_at=6)
    assert killed.returncode != 0
    assert two_processes(root, folder / "killed").returncode == 0
    assert losses(folder / "killed") == losses(folder / "whole")


def test_a_sharded_run_is_the_same_and_goes_on_alone(root, folder, alone):
    killed = two_processes(root, folder / "shard", "shard", kill_at=6)
    assert killed.returncode != 0
    assert losses(folder / "shard") == pytest.approx(alone[:7], rel=1e-5)
    trainer = one_process(root, folder / "shard")
    assert "2 processes" in trainer.notes[0]
    assert losses(folder / "shard") == pytest.approx(alone, rel=1e-5)


def test_losses_that_draw_numbers_or_look_at_all_clips_are_those_of_one_process(root, folder):
    network = save_network(folder, "lpips-alex")
    one_process(root, folder / "one", "games", network)
    done = two_processes(root, folder / "two", "games", network)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = set()
    for one, two in zip(*(read_log(folder / n / "log.csv") for n in ("one", "two")), strict=True):
        terms = [k for k in one if k.startswith(("l1", "lpips", "gan")) or k in ("loss", "norm")]
        assert [float(two[k]) for k in terms] == pytest.approx(
            [float(one[k]) for k in terms], rel=1e-5, abs=1e-7
        )
        seen |= set(terms)
    assert {"lpips", "gan2d_factor", "gan2d_discriminator_lecam", "gan3d_features"} <= seen
