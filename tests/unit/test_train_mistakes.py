"""What goes wrong around a run: settings, disks, folders, signals; one sentence, nothing lost."""

from __future__ import annotations

import errno
import multiprocessing
import resource
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL, VQ, corpus, losses, run_config, run_dict  # noqa: F401 - a fixture

from omnitok.pixels import to_float
from omnitok.train.config import ConfigError, DatasetConfig, TrainConfig, from_dict
from omnitok.train.loop import Hooks, Trainer, TrainingError
from omnitok.train.network import Network
from omnitok.train.parallel import World, spread
from omnitok.train.sampler import SampleError
from omnitok.train.state import Checkpoints, alone_in
from tools.cli import build_parser
from tools.commands.eval_data import media_of
from tools.commands.probing import labelled
from tools.commands.training import FEW, _Clock
from tools.train_config import read_config
from tools.train_run import Validator
from video.data.crops import pan
from video.data.datasets import find_items
from video.data.items import FileItem, read_embedding

# ruff: noqa: F811 - tests take the fixture by its name


def trainer(corpus, out, config=None, **hooks):
    return Trainer(config or run_config(), out, {"small": corpus}, hooks=Hooks(**hooks))


# settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"seconds": 0}, "seconds=0.0 must be above 0"),
        ({"optim": {"betas": [2, 0.9]}}, r"betas=\(2.0, 0.9\) must be in \[0, 1\)"),
        ({"optim": {"weight_decay": -1}}, "weight_decay=-1.0 not be negative"),
        ({"optim": {"lr_scale": {"encoder": "slow"}}}, "'encoder' is 'slow'; expected a number"),
        ({"data": {"a": {"path": "x", "holdout": 2}}}, "holdout=2.0 must be a share"),
        ({"validation": {"a": {"data": {"path": "x"}, "kind": "pans", "size": [1, 8, 8]}}}, "pans"),
        (
            {"validation": {"a": {"data": {"path": "x"}, "kind": "images", "size": [1, 8, 9]}}},
            "H equal to W",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_read(changes, words):
    with pytest.raises(ConfigError, match=words):
        run_config(**changes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "losses is empty"),
        ({"rmse": "much"}, r"stage 'images': loss 'rmse': weight is 'much'; expected float"),
        ({"lpips": {"network": "/no/such"}}, r"/no/such does not exist; .*tools\.feature_nets"),
        ({"distill": {"width": 64, "embedding": 3}}, "needs a teacher"),
        ({"contrastive": {"width": 64, "embedding": 3}}, r"none of its 4 images has one"),
    ],
)
def test_losses_that_cannot_be_are_refused_at_the_start(corpus, tmp_path, given, words):
    values = run_dict()
    values["stages"][0]["mix"][0]["losses"] = given
    with pytest.raises(ConfigError, match=words):
        trainer(corpus, tmp_path, from_dict(TrainConfig, values))


def test_a_rate_of_no_weight_is_refused_at_the_start(corpus, tmp_path):
    config = run_config(optim={"lr_scale": {"encodr": 0.1}})
    with pytest.raises(ConfigError, match=r"scales the rate of 'encodr'.*choose of \['decoder', "):
        trainer(corpus, tmp_path, config)


def test_a_loss_that_the_model_gives_nothing_for_is_one_sentence(corpus, tmp_path):
    values = run_dict()
    values["stages"][0]["losses"] = {"rmse": 1.0, "commitment": 1.0}
    run = trainer(corpus, tmp_path, from_dict(TrainConfig, values))
    with pytest.raises(
        ConfigError, match=r"of images \(pixels \[2, 3, 1, 32, 32\]\).*'commitment'"
    ):
        run.run()


@pytest.mark.parametrize("start", ["/no/such", "tiny-3d"])
def test_weights_that_cannot_begin_a_run_are_named(corpus, tmp_path, start):
    with pytest.raises(ConfigError, match=f"start_from={start}: "):
        trainer(corpus, tmp_path, run_config(start_from=start))


def test_weights_that_no_loss_asks_for_stop_no_process(corpus, tmp_path):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        values = run_dict(model={**SMALL, "quantizer": VQ})
        values["stages"][0]["losses"] = {"rmse": 1.0}  # and none for the codebook
        values["stages"] = values["stages"][:1]
        run = trainer(corpus, tmp_path, from_dict(TrainConfig, values))
        run.network = spread(Network(run.model), [], World(0, 2, torch.device("cpu")), shard=False)
        for number in range(2):
            run.train_step([run.sampler[number]])
    finally:
        torch.distributed.destroy_process_group()


def test_files_may_lie_anywhere(tmp_path):
    odd = tmp_path / "it's ${odd} \\ photos"
    odd.mkdir()
    config = read_config(["curriculum=smoke", f"data={odd}", "validation={}"])
    assert config.data["folder"].path == str(odd)


def test_settings_may_stand_before_and_behind_options():
    args = build_parser().parse_args(["train", "a=1", "-o", "x", "b=2", "-q", "c=3"])
    assert args.settings == ["a=1", "b=2", "c=3"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "a=1", "--outt", "b=2"])


# what a run validates on


def test_a_tar_is_validated_on_as_a_folder_is(tmp_path):
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        tar.add(__file__, "b.png")
    wanted = {"data": {"path": str(tmp_path / "a.tar")}, "kind": "images", "size": [1, 16, 16]}
    config = run_config(validation={"a": wanted, "none": {**wanted, "kind": "videos"}})
    validator = Validator(config, tmp_path, torch.device("cpu"))
    assert [clip.shape for clip in validator.sets["a"]] == [(3, 1, 16, 16)]
    notes = "\n".join(validator.notes)
    assert f"passed over {tmp_path}/a.tar/b.png" in notes
    assert f"no validation on none: {tmp_path}/a.tar holds no videos" in notes


def test_no_meshes_to_validate_on_is_said(tmp_path):
    wanted = {"data": {"path": str(tmp_path)}, "kind": "meshes", "size": [1, 1, 1]}
    config = run_config(validation={"a": wanted}, model={"preset": "tiny-3d"})
    validator = Validator(config, tmp_path, torch.device("cpu"))
    assert validator.notes == [f"no validation on a: {tmp_path} holds no meshes"]
    assert not validator.shapes


# files


def test_numbers_of_a_caption_that_are_none_are_a_broken_file(tmp_path):
    assert read_embedding([1.0, 2.0]).tolist() == [1.0, 2.0]
    (tmp_path / "x.npy").write_bytes(b"PK\x03\x04 not an archive")
    for source in ([None, 2.0], ["a"], FileItem(str(tmp_path / "x.npy"))):
        with pytest.raises(SampleError, match="is no array of numbers"):
            read_embedding(source)


@pytest.mark.parametrize(("side", "frames"), [(16, 1), (1, 1), (1, 2)])
def test_a_pan_that_leaves_a_small_picture_sees_its_edge(side, frames):
    image = np.full((side, side, 3), 9, np.uint8)
    for seed in range(200):
        clip = pan(np.random.default_rng(seed), image, frames, (32, 32))
        assert clip.shape == (frames, 32, 32, 3)
        assert (clip == 9).all()


def test_first_weights_need_no_more_than_some_clips_of_a_batch(corpus, tmp_path):
    values = run_dict(4)
    values["stages"][1]["mix"] = [{"kind": "images", "batch": 100, "sizes": [[1, 8, 8]]}]
    run = trainer(corpus, tmp_path, from_dict(TrainConfig, values))
    clips = list(run.models._clips(9))
    assert [len(x) for x in clips] == [2, 2, 64, 64]
    whole = run.sampler[2].tensors["pixels"]
    assert torch.equal(clips[2], to_float(whole[:64], torch.float32))


def test_hidden_folders_are_not_searched(tmp_path):
    for folder in (".thumbnails", "one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("A.JPG", "b.png"):
            Image.new("RGB", (9, 9)).save(tmp_path / folder / name)
    seen = [str(tmp_path / label / name) for label in ("one", "two") for name in ("A.JPG", "b.png")]
    assert [i.name for i in find_items(DatasetConfig(path=str(tmp_path)))["images"]] == seen
    assert media_of(str(tmp_path)) == seen
    assert [path for path, _ in labelled(str(tmp_path))] == seen


# disks and folders


@contextmanager
def disk_of(size):
    """Files cannot grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_leaves_those_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, {"x": torch.zeros(10)})
    with disk_of(100_000), pytest.raises(OSError, match="File too large") as caught:
        checkpoints.save(2, {"x": torch.zeros(1_000_000)})
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]


def test_a_full_disk_stops_a_run_in_a_sentence(corpus, tmp_path):
    run = trainer(corpus, tmp_path, run_config(4))
    run.save()
    with disk_of(100_000), pytest.raises(TrainingError, match=r"free some space.*goes on from the"):
        run.run()
    assert run.checkpoints.steps() == [0]


def test_what_a_kill_leaves_behind_is_removed_by_whichever_process_is_first(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    halves = [
        tmp_path / "checkpoints" / ".step-0000005.pt.77.tmp",
        tmp_path / ".weights.safetensors.77.tmp",
    ]
    for half in halves:
        half.write_bytes(b"half")
    found = {folder: list(folder.glob(".*.tmp")) for folder in (checkpoints.folder, tmp_path)}
    checkpoints.load()
    assert not any(half.exists() for half in halves)
    monkeypatch.setattr(Path, "glob", lambda folder, _: found[folder])  # as the other one saw it
    assert checkpoints.load() is None


def test_a_log_that_a_kill_left_empty_gets_its_columns(corpus, tmp_path):
    (tmp_path / "log.csv").write_bytes(b"")
    trainer(corpus, tmp_path, run_config(3)).run()
    assert len(losses(tmp_path)) == 3


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, {"x": torch.zeros(1000)})
    path = checkpoints.path(1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"step-0000001\.pt is damaged .*remove it to go on"):
        checkpoints.load()


def _hold(folder, held, done):
    with alone_in(folder):
        held.set()
        done.wait(30)


def test_two_runs_do_not_share_a_folder(tmp_path):
    fork = multiprocessing.get_context("fork")
    held, done = fork.Event(), fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(30)
    wanted = rf"in use by another run \(process {other.pid} on "
    with pytest.raises(ConfigError, match=wanted), alone_in(tmp_path):
        pass
    done.set()
    other.join(30)
    with alone_in(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="is a file; choose a folder"),
        alone_in(tmp_path / "file"),
    ):
        pass


# stopping and telling


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_as_if_it_had_not(corpus, tmp_path):
    trainer(corpus, tmp_path / "whole", run_config(6)).run()
    seen = []
    run = trainer(
        corpus, tmp_path / "parts", run_config(6), on_step=seen.append, stop=lambda: len(seen) > 3
    )
    run.run()
    assert run.step == 4
    assert run.checkpoints.steps()[0] == 4
    trainer(corpus, tmp_path / "parts", run_config(6)).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_time_left_is_told_once_steps_are_warm_and_by_their_usual_length():
    clock = _Clock(run_config(1000))
    seconds, told = 0.0, []
    for step in range(60):
        kind = "videos" if step % 4 == 3 else "images"
        seconds += 90.0 if step in (0, 1, 30) else 5.0 if kind == "videos" else 1.0
        told.append(clock.left({"step": step, "seconds": seconds, "kind": kind}))
    assert all(left is None for left in told[:FEW])
    assert told[59] == pytest.approx((1000 - 60) * 2.0, rel=0.05)  # a quarter of 5 s, the rest of 1
    limited = _Clock(run_config(1000, seconds=100.0))
    for step in range(20):
        left = limited.left({"step": step, "seconds": 1.0 + step, "kind": "images"})
    assert left == 80.0
