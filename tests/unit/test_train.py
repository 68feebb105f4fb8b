"""The trainer: it learns, resumes exactly, goes from stage to stage, and stops where it must."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import (  # noqa: F401 - corpus is a fixture
    FSQ,
    LOSSES,
    VQ,
    corpus,
    losses,
    run_config,
    run_dict,
)

import omnitok
from omnitok.checkpoint import load_checkpoint
from omnitok.metrics.validation import clip_psnr
from omnitok.model import Autoencoder
from omnitok.train.config import ConfigError, OptimConfig, TrainConfig, from_dict
from omnitok.train.log import read_log
from omnitok.train.loop import Hooks, Trainer, TrainingError
from omnitok.train.optim import Average, learning_rate
from omnitok.train.sampler import Sampler, load

# ruff: noqa: F811 - tests take the fixture by its name


IMAGES = {"kind": "images", "batch": 2, "sizes": [[5, 32, 32]]}


def trainer(corpus, out, config=None, **hooks):
    return Trainer(config or run_config(), out, {"small": corpus}, hooks=Hooks(**hooks))


def stop_after(out, corpus, steps, config=None):
    """A run that is killed after some steps: nothing of the last ones is saved."""
    run = trainer(corpus, out, config)
    batches = load(run.sampler, run.sampler.first_of(run.step))
    while run.step < steps:
        stage = run.config.stage_at(run.step)[1]
        run.train_step([next(batches) for _ in range(stage.accumulate)])
        run._pending[-1][0].update(waited=0.0, seconds=0.0)
        run._after_step(late=False)
    return run


def test_training_lowers_the_loss(corpus, tmp_path):
    trainer(corpus, tmp_path, run_config(120, optim={"lr": 1e-3, "warmup": 5})).run()
    rows = read_log(tmp_path / "log.csv")
    for kind in ("images", "videos"):
        curve = [float(row["loss"]) for row in rows if row["kind"] == kind]
        third = len(curve) // 3
        assert np.mean(curve[-third:]) < 0.95 * np.mean(curve[:third])


def test_a_resumed_run_equals_an_uninterrupted_one(corpus, tmp_path):
    trainer(corpus, tmp_path / "whole").run()
    stop_after(tmp_path / "parts", corpus, 7)
    again = trainer(corpus, tmp_path / "parts")
    assert again.step == 5
    again.waited = 3.0  # seconds
    again.run()
    assert trainer(corpus, tmp_path / "parts").waited > 3.0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


def test_a_run_killed_in_a_checkpoint_goes_on_from_the_one_before(corpus, tmp_path):
    stop_after(tmp_path, corpus, 6)
    half = tmp_path / "checkpoints" / ".step-0000010.pt.77.tmp"
    half.write_bytes(b"half")
    with open(tmp_path / "log.csv", "a") as file:
        file.write("7,0.")
    run = trainer(corpus, tmp_path)
    assert run.step == 5
    run.run()
    assert not half.exists()
    with open(tmp_path / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(12))


def test_the_last_checkpoints_and_the_best_stay(corpus, tmp_path):
    scores = iter([3.0, 5.0, 4.0, 1.0])
    seen = []

    def validate(model, step):
        seen.append(step)
        return {"psnr": next(scores)}

    config = run_config(8, save_every=2, eval_every=2, keep=2)
    run = trainer(corpus, tmp_path, config, validate=validate)
    run.run()
    assert seen == [2, 4, 6, 8]
    assert run.checkpoints.steps() == [8, 6]
    assert run.best == 5.0
    best, last = (omnitok.load(tmp_path / f"{n}.safetensors") for n in ("best", "weights"))
    assert best.weights_sha256 != last.weights_sha256


def test_a_run_whose_time_is_up_is_scored_where_it_ends(corpus, tmp_path):
    seen = []

    def validate(model, step):
        seen.append(step)
        return {"psnr": 3.0}

    config = run_config(8, eval_every=100, seconds=1e-9)
    trainer(corpus, tmp_path, config, validate=validate).run()
    assert seen == [1]
    assert float(read_log(tmp_path / "log.csv")[-1]["psnr"]) == 3.0
    trainer(corpus, tmp_path, config, validate=validate).run()
    assert seen == [1]


def test_weights_of_a_run_are_weights_for_everything(corpus, tmp_path):
    trainer(corpus, tmp_path, run_config(4)).run()
    tok = omnitok.load(tmp_path / "weights.safetensors")
    frames = torch.zeros(6, 3, 20, 31, dtype=torch.uint8)
    assert tok.detokenize(tok.tokenize(frames)).shape == frames.shape


def discrete(steps=20, switch=10, quantizer=FSQ):
    """Continuous, then discrete."""
    values = run_dict(steps)
    mix = values["stages"][1]["mix"]
    values["stages"] = [
        {"name": "continuous", "steps": switch, "mix": mix, "losses": LOSSES},
        {"name": "discrete", "steps": steps - switch, "mix": mix, "quantizer": quantizer},
    ]
    return from_dict(TrainConfig, values)


def test_a_stage_may_bring_a_new_bottleneck_and_the_loss_does_not_jump(corpus, tmp_path):
    fine = {"kind": "fsq", "dim": 16, "levels": [31] * 8, "num_codebooks": 2}  # as many channels
    run = stop_after(tmp_path, corpus, 10, discrete(quantizer=fine))
    clips = list(run.models._clips(8))
    before = run.model.eval()
    run.model.train()
    fitted = run.models.fresh(1)
    run.models._move(before, fitted, 1)
    fresh = Autoencoder(fitted.config)
    kept = {n: t for n, t in before.state_dict().items() if "latent" not in n}
    fresh.load_state_dict({**fresh.state_dict(), **kept})
    psnr = {
        name: torch.cat([clip_psnr(model.eval()(c).recon, c) for c in clips]).mean()
        for name, model in (("before", before), ("fitted", fitted), ("fresh", fresh))
    }
    assert psnr["fitted"] > psnr["fresh"] + 3
    assert psnr["fitted"] > psnr["before"] - 1


@pytest.mark.parametrize(("quantizer", "size"), [(FSQ, 64000), (VQ, 32)])
def test_stages_resume_on_both_sides_of_a_change(corpus, tmp_path, quantizer, size):
    config = discrete(12, 5, quantizer)
    trainer(corpus, tmp_path / "whole", config).run()
    for stop in (5, 6, 10):
        out = tmp_path / str(stop)
        stop_after(out, corpus, stop, config)
        again = trainer(corpus, out, config)
        again.run()
        assert losses(out) == losses(tmp_path / "whole")
    trainer(corpus, tmp_path / "saved", replace(config, save_every=3)).run()
    assert losses(tmp_path / "saved") == losses(tmp_path / "whole")
    assert omnitok.load(tmp_path / "whole/weights.safetensors").codebook_size == size


def test_what_is_frozen_stays_as_it_was(corpus, tmp_path):
    values = run_dict(4)
    values["stages"][1]["freeze"] = ["encoder", "embed"]
    run = stop_after(tmp_path, corpus, 2, from_dict(TrainConfig, values))
    before = {n: p.clone() for n, p in run.model.state_dict().items()}
    run.run()
    changed = {n for n, p in run.model.state_dict().items() if not torch.equal(before[n], p)}
    assert changed
    assert not [n for n in changed if n.startswith(("encoder", "embed"))]


def test_a_frozen_name_that_is_none_is_refused(corpus, tmp_path):
    values = run_dict()
    values["stages"][0]["freeze"] = ["encodr"]
    with pytest.raises(ConfigError, match="encodr"):
        trainer(corpus, tmp_path, from_dict(TrainConfig, values))


def test_accumulated_batches_take_turns(corpus, tmp_path):
    values = run_dict(6)
    stage = values["stages"][1]
    stage |= {"accumulate": 2, "order": "cycle", "mix": [stage["mix"][0], stage["mix"][2]]}
    config = from_dict(TrainConfig, values)
    sampler = Sampler(config, {"small": corpus})
    kinds = [sampler.source_of(n).kind for n in range(sampler.first_of(2), len(sampler))]
    assert kinds == ["images", "videos"] * 4
    run = trainer(corpus, tmp_path, config)
    run.run()
    assert len(losses(tmp_path)) == 6


def test_losses_of_a_source_replace_those_of_the_stage(corpus, tmp_path):
    values = run_dict(8)
    values["stages"][1]["mix"][2]["losses"] = {"l1": 2.0}
    seen = []
    run = trainer(corpus, tmp_path, from_dict(TrainConfig, values), on_step=seen.append)
    run.run()
    videos = [row for row in seen if row["kind"] == "videos"]
    assert videos
    assert all(row["loss"] == pytest.approx(2 * row["l1"]) for row in videos)
    assert all("rmse" in row for row in seen if row["kind"] != "videos")


def test_an_adversary_learns_and_is_resumed(corpus, tmp_path):
    values = run_dict(8)
    values["save_every"] = 4
    values["stages"][1]["losses"] = {
        "l1": 1.0,
        "gan2d": {"weight": 0.1, "width": 8, "depth": 1},
    }
    config = from_dict(TrainConfig, values)
    whole = trainer(corpus, tmp_path / "whole", config)
    before = whole.objectives.discriminators()[0].clone()
    whole.run()
    assert not torch.equal(before, whole.objectives.discriminators()[0])
    stop_after(tmp_path / "parts", corpus, 6, config)
    trainer(corpus, tmp_path / "parts", config).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_batches_of_one_update_are_averaged_for_an_adversary_too(corpus, tmp_path, monkeypatch):
    norms = []
    for parts in (1, 3):
        values = run_dict(4)
        values["stages"][0] |= {"accumulate": parts, "losses": {"gan2d": {"width": 8, "depth": 1}}}
        run = trainer(corpus, tmp_path / str(parts), from_dict(TrainConfig, values))
        players = run.objectives.discriminators()
        monkeypatch.setattr(run, "_update", lambda clip, rate: torch.zeros(()))
        run.train_step([run.sampler[0]] * parts)
        norms.append(float(torch.stack([player.grad.norm() for player in players]).norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.3)  # each part has its own noise


def test_another_config_in_the_same_folder_is_refused_by_its_difference(corpus, tmp_path):
    trainer(corpus, tmp_path).save()
    with pytest.raises(ConfigError, match=r"seed: 0, now 3"):
        trainer(corpus, tmp_path, run_config(seed=3))
    values = run_dict()
    values["stages"][1]["mix"] = [*values["stages"][1]["mix"][:2], {**IMAGES, "weight": 2}]
    with pytest.raises(ConfigError, match=r"\(stages\.1\.mix\.2\.kind: 'videos', now 'images'; "):
        trainer(corpus, tmp_path, from_dict(TrainConfig, values))
    trainer(corpus, tmp_path, run_config(save_every=3, workers=1))  # these may change


def test_a_loss_that_is_not_finite_stops_with_the_good_state_kept(corpus, tmp_path):
    run = trainer(corpus, tmp_path)
    run.save()
    with torch.no_grad():
        run.model.head.bias.fill_(float("nan"))
        run.model.head_first.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"images#\d.*last good checkpoint"):
        run.run()
    state = torch.load(run.checkpoints.path(0), weights_only=True)
    assert all(t.isfinite().all() for t in state["model"].values())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."), "lower batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower batch"),
    ],
)
def test_running_out_of_memory_says_what_to_lower(corpus, tmp_path, monkeypatch, error, words):
    run = trainer(corpus, tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr(run, "train_step", fail)
    with pytest.raises(TrainingError, match=words):
        run.run()


class _Deadly:
    """A file whose reading kills the process."""

    name, weight = "deadly", 1.0

    def sample(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_sentence(corpus, tmp_path):
    run = trainer(corpus, tmp_path, run_config(workers=1))
    for pool, _ in run.sampler._pools.values():
        pool[:] = [_Deadly()] * len(pool)
    with pytest.raises(TrainingError, match="prepares batches died"):
        run.run()


def test_a_full_disk_leaves_the_checkpoint_before(corpus, tmp_path, monkeypatch):
    run = trainer(corpus, tmp_path, run_config(4))
    run.save()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    run.step = 3
    with pytest.raises(OSError, match="No space"):
        run.save()
    assert run.checkpoints.steps() == [0]
    assert not list(run.checkpoints.folder.glob(".*"))


def test_another_architecture_trains_by_the_same_trainer(corpus, tmp_path):
    values = run_dict(6)
    values["model"] = {
        "system": "omnitokenizer",
        "name": "small",
        "patch": [4, 8, 8],
        "width": 32,
        "heads": 2,
        "head_width": 16,
        "mlp_hidden": 32,
        "encoder": "tw",
        "decoder": "tt",
        "temporal_depth": 1,
        "window": 2,
        "quantizer": {"kind": "vq", "dim": 4, "codebook_size": 64, "l2": True, "ema": True},
    }
    values["stages"][0]["losses"] = {"l1": 4.0, "commitment": 0.25}
    values["stages"][1] |= {"losses": LOSSES, "quantizer": {"kind": "kl", "dim": 4}}
    run = trainer(corpus, tmp_path, from_dict(TrainConfig, values))
    assert run.model.quantizer.codebook.shape == (1, 64, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as validation computes
        assert run.averaged()(torch.zeros(1, 3, 5, 32, 32)).recon.isfinite().all()
    run.run()
    assert not hasattr(run.model.quantizer, "codebook")
    tok = omnitok.load(tmp_path / "weights.safetensors")
    frames = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    assert tok.detokenize(tok.tokenize(frames)).shape == frames.shape


def test_a_run_may_start_from_weights(corpus, tmp_path):
    trainer(corpus, tmp_path / "a", run_config(4)).run()
    start = tmp_path / "a/weights.safetensors"
    config = run_config(4, start_from=str(start))
    run = trainer(corpus, tmp_path / "b", config)
    assert torch.equal(run.model.head.weight, load_checkpoint(start)[0].head.weight)


def test_weights_of_another_shape_are_refused(corpus, tmp_path):
    trainer(corpus, tmp_path / "a", run_config(2 + 1)).run()
    start = str(tmp_path / "a/weights.safetensors")
    config = run_config(4, start_from=start, model={"preset": "tiny"})
    with pytest.raises(ValueError, match="do not fit"):
        trainer(corpus, tmp_path / "b", config)


@pytest.mark.parametrize("schedule", ["trapezoid", "cosine", "constant"])
def test_the_rate_rises_and_falls(schedule):
    optim = OptimConfig(lr=1, min_lr=0.1, warmup=10, decay_from=0.5, schedule=schedule)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] <= 1
    assert max(rates) > 0.97
    assert rates[99] == pytest.approx({"constant": 1}.get(schedule, 0.1), abs=0.03)


def test_the_average_follows_at_its_rate():
    model = torch.nn.Linear(2, 2, bias=False)
    average = Average(model, 0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    average.update(model)
    assert torch.allclose(average.values["weight"], start + 0.1)
