"""From pictures to clips: what still patches have learned holds for moving ones."""

from __future__ import annotations

import copy

import pytest
import torch
from small_runs import FSQ, corpus, losses, run_dict  # noqa: F401 - a fixture

from omnitok.model import Autoencoder
from omnitok.pixels import to_float
from omnitok.presets import preset
from omnitok.train.config import ConfigError, TrainConfig, from_dict
from omnitok.train.loop import Hooks, Trainer
from omnitok.train.network import build_model
from omnitok.train.pca import start_as_pca
from omnitok.train.sampler import Sampler
from omnitok.train.stages import StageModels
from omnitok.train.transition import CLIPS, OWN, learn_from_stills, move_over

PATCHES = torch.rand(7, 192, generator=torch.Generator().manual_seed(1)) * 2 - 1
STILL = PATCHES.repeat(1, 4)  # the same, for the four frames of a patch


def begun(clips: int = 8) -> Autoencoder:
    """A model that begins as the PCA of pictures, seen for five frames each."""
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder(preset("tiny-kl")).eval().requires_grad_(False)
    rough = torch.randn(clips, 3, 1, 40, 40, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, size=(1, 64, 64), mode="trilinear")
    start_as_pca(model, [clip[None].expand(-1, -1, 5, -1, -1) for clip in smooth])
    return model


def test_a_channel_means_the_same_in_stills_and_in_clips_that_stand_still():
    model = begun()
    rank = model.quantizer.dim
    still, first = model.embed(STILL)[:, :rank], model.embed_first(PATCHES)[:, :rank]
    torch.testing.assert_close(still, first, atol=1e-3, rtol=1e-3)
    x = torch.randn(5, model.head.in_features)
    torch.testing.assert_close(model.head(x), model.head_first(x).repeat(1, 4), atol=1e-3, rtol=0)


def test_clips_that_stand_still_gain_what_pictures_have_gained():
    start = begun()
    model = copy.deepcopy(start)
    torch.manual_seed(2)
    for layer in (model.embed_first, model.head_first):
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    learned = model.embed_first(PATCHES) - start.embed_first(PATCHES)
    x = torch.randn(5, model.head.in_features)
    shown = model.head_first(x) - start.head_first(x)
    before = copy.deepcopy(model)
    learn_from_stills(model, start.state_dict())
    torch.testing.assert_close(model.embed(STILL) - start.embed(STILL), learned, atol=1e-3, rtol=0)
    moving = torch.randn(7, 4, 192)
    moving = (moving - moving.mean(1, keepdim=True)).flatten(1)
    torch.testing.assert_close(
        model.embed(moving) - model.embed.bias, start.embed(moving) - start.embed.bias,
        atol=1e-3, rtol=0,
    )  # fmt: skip
    torch.testing.assert_close(model.head(x) - start.head(x), shown.repeat(1, 4), atol=1e-3, rtol=0)
    for name, parameter in model.named_parameters():
        if not name.startswith(CLIPS):
            assert torch.equal(parameter, before.get_parameter(name)), name


def test_a_stage_of_clips_begins_with_what_its_pictures_taught(corpus, tmp_path):  # noqa: F811
    values = run_dict(6)
    values["stages"][0]["steps"] = 4
    values["stages"][1]["inflate"] = "still"
    run = Trainer(from_dict(TrainConfig, values), tmp_path, {"": corpus})
    before = copy.deepcopy(run.model)
    for number in range(4):
        run.train_step([run.sampler[number]])
    new, kept = run.models.grow(run.model, 1, run.start)
    old = run.model.state_dict()
    grown = {name for name, value in new.state_dict().items() if not torch.equal(value, old[name])}
    assert grown == {f"{part}{kind}" for part in CLIPS for kind in ("weight", "bias")}
    assert kept == {name for name, _ in new.named_parameters()} - grown
    gain = new.head.weight - before.head.weight
    want = (new.head_first.weight - before.head_first.weight).repeat(4, 1)
    torch.testing.assert_close(gain, want)
    run.run()
    assert run.step == 8


def test_a_new_bottleneck_is_fitted_to_the_clips_that_begin(corpus, tmp_path):  # noqa: F811
    values = run_dict(4)
    values["stages"][1] |= {"inflate": "still", "quantizer": FSQ, "losses": {"rmse": 1.0}}
    run = Trainer(from_dict(TrainConfig, values), tmp_path, {"": corpus})
    with torch.no_grad():
        run.model.embed_first.weight.mul_(1.5)  # what its pictures taught
    inflated = copy.deepcopy(run.model)
    learn_from_stills(inflated, run.start)
    wanted = run.models.fresh(1)
    run.models._move(inflated, wanted, 1)
    new, kept = run.models.grow(run.model, 1, run.start)
    torch.testing.assert_close(new.state_dict(), wanted.state_dict())
    assert not any(name.startswith((*OWN, *CLIPS)) for name in kept)
    run.run()
    assert run.step == 4


def test_what_a_run_began_with_is_kept(corpus, tmp_path, monkeypatch):  # noqa: F811
    values = run_dict(5)
    values["stages"][1]["inflate"] = "still"
    config = from_dict(TrainConfig, values)
    Trainer(config, tmp_path / "whole", {"": corpus}).run()
    stops = iter([False, True])
    Trainer(config, tmp_path / "part", {"": corpus}, hooks=Hooks(stop=lambda: next(stops))).run()
    again = Trainer(config, tmp_path / "part", {"": corpus})
    assert again.step == 1
    monkeypatch.delattr(StageModels, "first")  # it would be another with other files or threads
    again.run()
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")


def test_a_new_bottleneck_does_not_hang_on_the_order_of_clips(corpus):  # noqa: F811
    config = from_dict(TrainConfig, run_dict(20))
    sampler = Sampler(config, {"": corpus})
    clips = [to_float(sampler[n].tensors["pixels"], torch.float32) for n in range(2, 12)]
    old = build_model(config.model, None)
    start_as_pca(old, clips)
    fitted = [build_model(config.model, FSQ) for _ in range(2)]
    for new, order in zip(fitted, (clips, clips[::-1]), strict=True):
        move_over(old, new, order)
    torch.testing.assert_close(fitted[0].state_dict(), fitted[1].state_dict(), atol=1e-3, rtol=1e-3)


def test_what_cannot_be_inflated_is_one_sentence(corpus, tmp_path):  # noqa: F811
    values = run_dict(4)
    values["stages"][1]["inflate"] = "average"
    with pytest.raises(ConfigError, match="only an OmniTokenizer knows; use inflate=still"):
        Trainer(from_dict(TrainConfig, values), tmp_path, {"": corpus})
    values = run_dict(4, start_from="tiny-kl", model={"preset": "tiny-kl"})
    values["stages"][0]["inflate"] = "still"
    with pytest.raises(ConfigError, match="those before it have nothing; leave inflate out"):
        Trainer(from_dict(TrainConfig, values), tmp_path, {"": corpus})
    values = run_dict(4)
    values["stages"].append({**values["stages"][1], "inflate": "still"})
    with pytest.raises(ConfigError, match="have \\['images', 'pans', 'videos'\\]"):
        Trainer(from_dict(TrainConfig, values), tmp_path, {"": corpus})
