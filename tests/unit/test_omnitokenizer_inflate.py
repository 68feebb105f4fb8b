"""An OmniTokenizer that has seen images alone goes on to clips."""

import pytest
import torch
from small_networks import save_network
from small_runs import corpus, run_dict, write_corpus  # noqa: F401 - a fixture

import omnitok
from omnitok.checkpoint import CheckpointError
from omnitok.interop.omnitokenizer_config import OmniTokenizerConfig
from omnitok.interop.omnitokenizer_inflate import MOVING, inflate
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from omnitok.train.config import INFLATIONS, ConfigError, TrainConfig, from_dict
from omnitok.train.loop import Trainer
from omnitok.train.transition import move_over
from tests.omnitokenizer_files import save_omnitokenizer
from tools.cli import main

# ruff: noqa: F811 - tests take the fixture by its name

SHAPE = {
    "name": "small",
    "patch": [4, 4, 4],
    "width": 24,
    "heads": 2,
    "head_width": 8,
    "mlp_hidden": 64,
    "encoder": "tw",
    "decoder": "tt",
    "temporal_depth": 2,
    "window": 4,
    "quantizer": {
        "kind": "vq",
        "dim": 8,
        "codebook_size": 32,
        "ema": True,
        "ema_eps": 1e-7,
        "ema_restart": False,
    },
}
LOSSES = {"l1": 4.0, "commitment": 0.25}


def network(**changes) -> OmniTokenizerNet:
    """Random weights, none of them zero or one."""
    model = OmniTokenizerNet(OmniTokenizerConfig.from_dict({**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=0.2)
    return model


def run_of(how: str | None = "average", **changes) -> dict:
    values = run_dict(4, model={"system": "omnitokenizer", **SHAPE}, autocast=False, **changes)
    for stage in values["stages"]:
        stage["losses"] = LOSSES
    values["stages"][1]["inflate"] = how
    return values


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5


@torch.no_grad()
def recon(model: OmniTokenizerNet, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x).recon


def same_images(a: OmniTokenizerNet, b: OmniTokenizerNet) -> None:
    torch.testing.assert_close(recon(a, pictures()), recon(b, pictures()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", INFLATIONS)
def test_a_stage_of_clips_grows_out_of_images_without_changing_them(corpus, tmp_path, how):
    run = Trainer(from_dict(TrainConfig, run_of(how)), tmp_path, {"": corpus})
    new, kept = run.models.grow(run.model, 1, run.start)
    torch.testing.assert_close(
        recon(new, pictures()), recon(run.model, pictures()), atol=1e-5, rtol=0
    )
    inflated = [name for name, _ in new.named_parameters() if name.startswith(MOVING)]
    assert inflated
    assert kept == {name for name, _ in new.named_parameters()} - set(inflated)
    run.run()
    assert run.step == 4
    clip = torch.rand(1, 3, 5, 32, 32) - 0.5
    new.train()(clip).recon.square().mean().backward()
    assert all(new.get_parameter(name).grad.abs().sum() > 0 for name in inflated)


def test_a_clip_that_stands_still_is_what_still_inflation_is_exact_for():
    torch.manual_seed(0)
    model = network()
    inflate(model, "still")
    still = pictures().expand(-1, -1, 5, -1, -1)
    first, group = model.encoder.patches(still).unbind(1)
    torch.testing.assert_close(group, first)
    with torch.no_grad():
        decoder, tokens = model.decoder, torch.randn(1, 2, 4, 4, 24)
        decoder.temporal = decoder.spatial = torch.nn.Identity()
        frames = decoder(tokens[:, :1].expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(frames, frames[:, :, :1].expand_as(frames))


@pytest.mark.parametrize("flavour", [{"temporal_patch_size": 2}, {"temporal_patch_size": 4}])
def test_published_weights_of_images_become_a_model_for_clips(corpus, tmp_path, flavour):
    path = save_omnitokenizer(tmp_path / "images.ckpt", **flavour)
    values = run_of(start_from=str(path))
    values["stages"] = values["stages"][1:]
    run = Trainer(from_dict(TrainConfig, values), tmp_path / "run", {"": corpus})
    before = omnitok.load(path).model
    same_images(run.model, before)
    with pytest.raises(CheckpointError, match="do not fit"):
        move_over(before, network(patch=[8, 4, 4]), [])


def test_positions_that_change_are_told_and_those_that_stay_keep_the_images():
    torch.manual_seed(0)
    old = network(position="rel", patch=[2, 4, 4])
    with pytest.warns(UserWarning, match="'rel, fused' to 'rope'"):
        move_over(old, network(), [], "average")
    kept = network(position="rel")
    move_over(old, kept, [], "average")
    same_images(kept, old)


def test_what_cannot_be_inflated_is_one_sentence(corpus, tmp_path):
    with pytest.raises(ConfigError, match="inflate='middle' is unknown"):
        from_dict(TrainConfig, run_of("middle"))
    values = run_of()
    values["stages"] = values["stages"][1:]
    with pytest.raises(ConfigError, match="but nothing has"):
        from_dict(TrainConfig, values)
    values = run_dict(4, start_from=str(save_omnitokenizer(tmp_path / "a.ckpt")))
    with pytest.raises(ConfigError, match="of a OmniTokenizerNet"):
        Trainer(from_dict(TrainConfig, values), tmp_path / "b", {"": corpus})


def test_a_dry_run_of_the_published_recipe_tells_of_it(tmp_path, capsys):
    network = save_network(tmp_path, "lpips-alex")
    settings = [f"model.{name}={SHAPE[name]}" for name in ("width", "head_width", "temporal_depth")]
    for part, frames in (("0.mix.0", 1), ("1.mix.0", 5), ("1.mix.1", 1), ("2.mix.0", 5)):
        settings += [f"stages.{part}.batch=1", f"stages.{part}.sizes=[[{frames},64,64]]"]
    for part in ("0", "1", "1.mix.1", "2", "2.mix.1"):
        settings.append(f"stages.{part}.losses.lpips.network={network}")
    settings += ["stages.2.mix.1.batch=1", "stages.2.mix.1.sizes=[[1,64,64]]", "workers=0"]
    data = f"data.corpus.path={write_corpus(tmp_path)}"
    words = ("train", "curriculum=omnitokenizer", "model=omnitokenizer", *settings, data)
    assert main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (told,) = [
        n for n, line in enumerate(lines) if "what still ones have learned, 'average'" in line
    ]
    assert lines[told - 1].startswith("stage 'images and video'")


def test_a_run_that_began_before_there_was_inflation_goes_on(corpus, tmp_path):
    run = Trainer(from_dict(TrainConfig, run_of(None)), tmp_path, {"": corpus})
    run.save()
    step, state = run.checkpoints.load()
    for stage in state["config"]["stages"]:
        del stage["inflate"]
    run._resume(step, state)
    state["config"]["stages"][1]["inflate"] = "still"
    with pytest.raises(ConfigError, match="another config"):
        run._resume(step, state)
