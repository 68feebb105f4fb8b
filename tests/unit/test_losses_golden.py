"""Losses and distances against recorded outputs of OmniTokenizer's training and evaluation."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnitok import losses
from omnitok.losses.adversarial import discriminator_loss
from omnitok.losses.discriminator import PatchDiscriminator
from omnitok.losses.perceptual import lpips
from omnitok.losses.sharing import Draws
from omnitok.losses.trunk import Trunk, shapes
from omnitok.metrics.distance import Samples, frechet_distance
from tools.commands.eval_data import fit
from tools.commands.protocol import Protocol

GOLDEN = Path(os.environ.get("OMNITOK_GOLDEN") or Path(__file__).parents[3] / "shared/golden")


@pytest.fixture(scope="module")
def pieces():
    path = GOLDEN / "omnitokenizer" / "training_pieces.safetensors"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return load_file(path)


def own_name(name: str) -> str:
    """Of a tensor of a published discriminator, whose middle stages begin with a blur."""
    if name == "noise.weight":
        return "noise.strength"
    stage, part, rest = name.removeprefix("model").split(".", 2)
    return f"stages.{stage}.{int(part) - (stage in '12')}.{rest}"


@pytest.mark.parametrize("axes", [2, 3])
def test_discriminators_equal_the_published_ones(pieces, axes, monkeypatch):
    part = f"d{axes}/"
    noise = pieces[part + "noise"]
    monkeypatch.setattr(Draws, "normal", lambda *_: noise)
    discriminator = PatchDiscriminator(axes, width=2)
    weights = {k.removeprefix(part + "sd/"): v for k, v in pieces.items() if part + "sd/" in k}
    discriminator.load_state_dict({own_name(k): v for k, v in weights.items()})
    for mode in ("eval", "train"):
        discriminator.train(mode == "train")
        features = discriminator(pieces[part + "in"])
        assert len(features) == 5
        for number, feature in enumerate(features):
            wanted = pieces[f"{part}{mode}/feat{number}"]
            torch.testing.assert_close(feature, wanted, atol=2e-5, rtol=1e-5)
    state = discriminator.state_dict()
    after = {k: v for k, v in pieces.items() if k.startswith(part + "after_train/")}
    assert after
    for name, wanted in after.items():
        torch.testing.assert_close(state[own_name(name.split("/")[-1])], wanted)


def test_the_logit_laplace_loss_equals_the_published_one(pieces):
    x, y = (pieces[f"loss/{name}"][:, :, None] * 2 for name in "xy")
    loss = losses.build({"logit_laplace": 1.0})(losses.LossInputs(recon=x, target=y)).total
    torch.testing.assert_close(loss, pieces["loss/logits_laplace"][0])


def test_adversarial_losses_equal_the_published_ones(pieces):
    real, fake = pieces["loss/real"], pieces["loss/fake"]
    for kind in ("hinge", "vanilla"):
        wanted = pieces[f"loss/{kind}_d"].squeeze()
        torch.testing.assert_close(discriminator_loss(real, fake, kind), wanted)


def test_lpips_equals_the_published_one_on_drawn_weights(pieces):
    random = torch.Generator().manual_seed(81)
    tensors = {}
    for name, shape in shapes("lpips-vgg").items():
        if name.endswith("weight"):
            scale = (2 / (9 * shape[1])) ** 0.5
            tensors[name] = torch.randn(shape, generator=random) * scale
        elif name.endswith("bias"):
            tensors[name] = 0.05 * torch.randn(shape, generator=random)
        else:
            tensors[name] = pieces[f"lpips/lin{name[-1]}"]
    drawn = sum(v.double().sum() for k, v in tensors.items() if k.endswith("weight"))
    if abs(float(drawn) - float(pieces["lpips/weight_checksum"])) > 1e-3:
        pytest.skip("this version of torch draws other numbers")
    trunk = Trunk("lpips-vgg", tensors)
    # published code feeds pixels in [-0.5, 0.5]
    x, y = (pieces[f"lpips/{name}_u8"] / 255 - 0.5 for name in "xy")
    found = lpips(trunk, trunk(x), trunk(y))
    torch.testing.assert_close(found, pieces["lpips/out"].flatten(), atol=1e-6, rtol=1e-4)


def test_a_frechet_distance_equals_published_ones(pieces):
    sets = Samples(), Samples()
    for samples, name in zip(sets, ("x1", "x2"), strict=True):
        samples.add(pieces[f"frechet/{name}"])
    found = frechet_distance(*sets)
    assert found == pytest.approx(float(pieces["frechet/fid_style"]), rel=1e-6)
    assert found == pytest.approx(float(pieces["frechet/fvd_style"]), rel=2e-5)


def test_pictures_are_stretched_as_published(pieces):
    frames = pieces["prep/image_u8_hwc"].permute(2, 0, 1)[None]
    found = fit(frames, Protocol(name="a", size=64, resize="stretch", scaling="bicubic"))
    wanted = ((pieces["prep/image_64"] + 0.5) * 255).round()
    difference = (found[0].float() - wanted).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02
