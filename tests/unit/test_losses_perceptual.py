"""LPIPS and its networks: published values, and files that are not what they should be."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_networks import save_network
from torch.nn import functional as F

from omnitok import losses
from omnitok.checkpoint import CheckpointError
from omnitok.losses import LossInputs
from omnitok.losses.perceptual import gram_distance, lpips
from omnitok.losses.trunk import NETWORK_KEY, TRUNKS, Trunk, load_trunk, shapes
from tools import feature_nets
from tools.corpus_fetch import FetchError

DATA = Path(os.environ.get("OMNITOK_DATA") or Path(__file__).parents[3] / "shared/data")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_network(tmp_path_factory.mktemp("networks"), "lpips-alex"))


def picture(name: str) -> torch.Tensor:
    path = DATA / "image" / f"{name}.jpg"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    pixels = np.array(Image.open(path).convert("RGB"))[:256, :256]
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_equals_published_values(kind):
    path = feature_nets.folder() / f"lpips-{kind}.safetensors"
    if not path.exists():
        pytest.skip("there are no networks; run: python -m tools.feature_nets")
    trunk = load_trunk(path)
    assert trunk.sha256 == feature_nets.SHA256[f"lpips-{kind}"]
    for name, alex, vgg in (
        ("skimage_chelsea", 0.7576, 0.7033),
        ("opencv_fruits", 0.5185, 0.6085),
        ("sklearn_china", 0.4616, 0.5267),
    ):
        x = picture(name)
        y = F.interpolate(F.avg_pool2d(x, 8), scale_factor=8)
        distance = lpips(trunk, trunk(x), trunk(y))
        assert distance.item() == pytest.approx({"alex": alex, "vgg": vgg}[kind], abs=6e-5)


def test_pictures_are_as_far_from_themselves_as_they_should_be(network):
    trunk = load_trunk(network)
    a, b = torch.rand(2, 3, 3, 64, 80) * 2 - 1
    there, back = lpips(trunk, trunk(a), trunk(b)), lpips(trunk, trunk(b), trunk(a))
    assert there.shape == (3,)
    assert (there > 0).all()
    torch.testing.assert_close(there, back)
    assert lpips(trunk, trunk(a), trunk(a)).abs().max() == 0
    assert gram_distance(trunk(a), trunk(a)).abs().max() == 0


def test_networks_have_the_published_layers():
    sizes = {
        "lpips-alex": [(64, 15, 15), (192, 7, 7), (384, 3, 3), (256, 3, 3), (256, 3, 3)],
        "lpips-vgg": [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)],
    }
    for name, wanted in sizes.items():
        tensors = {key: torch.zeros(shape) for key, shape in shapes(name).items()}
        maps = Trunk(name, tensors)(torch.zeros(1, 3, 64, 64))
        assert [tuple(x.shape[1:]) for x in maps] == wanted
    assert set(sizes) == set(TRUNKS)


def test_perceptual_losses_train_the_reconstruction_alone_in_float32(network):
    torch.manual_seed(0)
    both = losses.build(
        {"lpips": {"network": network, "frames": None}, "gram": {"network": network, "frames": 2}}
    )
    assert not list(both.parameters())
    assert not both.state_dict()
    target = torch.rand(1, 3, 3, 64, 64) * 2 - 1
    recon = (target + 0.1 * torch.randn_like(target)).requires_grad_()
    whole = both(LossInputs(recon=recon, target=target))
    whole.total.backward()
    assert recon.grad.isfinite().all()
    assert recon.grad.abs().sum() > 0
    trunk = load_trunk(network)
    frames = [x[0].transpose(0, 1) for x in (recon, target)]
    torch.testing.assert_close(
        whole.terms["lpips"], lpips(trunk, trunk(frames[0]), trunk(frames[1])).mean().detach()
    )
    with torch.autocast("cpu", torch.bfloat16):
        again = both(LossInputs(recon=recon.bfloat16(), target=target))
    assert again.terms["lpips"].dtype == torch.float32
    torch.testing.assert_close(again.terms["lpips"], whole.terms["lpips"], rtol=0.05, atol=0)


def test_fast_convolutions_give_nearly_the_same_loss_and_gradient(network):
    target = torch.rand(2, 3, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients, values = [], []
    for fast in (False, True):
        recon = (0.9 * target).requires_grad_()
        loss = losses.build({"lpips": {"network": network, "fast": fast}})
        total = loss(LossInputs(recon=recon, target=target)).total
        total.backward()
        gradients.append(recon.grad.flatten())
        values.append(total.detach())
    assert values[1].dtype == torch.float32
    assert values[0] != values[1]
    torch.testing.assert_close(values[1], values[0], rtol=0.05, atol=0)
    assert F.cosine_similarity(*gradients, dim=0) > 0.9


def test_equal_frames_give_no_gradient_that_is_not_finite(network):
    both = losses.build({"lpips": {"network": network}, "gram": {"network": network}})
    recon = torch.zeros(1, 3, 1, 64, 64, requires_grad=True)
    both(LossInputs(recon=recon, target=torch.zeros(1, 3, 1, 64, 64))).total.backward()
    assert recon.grad.isfinite().all()


def test_losses_on_one_network_compute_its_features_once(network, monkeypatch):
    calls = []
    forward = Trunk.forward
    monkeypatch.setattr(Trunk, "forward", lambda self, *x: calls.append(1) or forward(self, *x))
    both = losses.build({"lpips": {"network": network}, "gram": {"network": network}})
    both(LossInputs(recon=torch.zeros(1, 3, 1, 64, 64), target=torch.ones(1, 3, 1, 64, 64)))
    assert len(calls) == 2


def test_files_that_are_no_network_are_refused_in_a_sentence(network, tmp_path):
    other, short = tmp_path / "other.safetensors", tmp_path / "short.safetensors"
    save_file({"a": torch.zeros(1)}, other, {NETWORK_KEY: "resnet"})
    save_file({"a": torch.zeros(1)}, short, {NETWORK_KEY: "lpips-vgg"})
    for path, why in (
        (other, "holds network 'resnet'"),
        (short, "does not hold the tensors of lpips-vgg"),
        (tmp_path / "absent", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=why):
            load_trunk(path)
    with pytest.raises(ValueError, match="62x40 pixels are too small for lpips-alex"):
        load_trunk(network)(torch.zeros(1, 3, 40, 62))


def test_pickles_are_read_as_arrays_or_not_at_all(tmp_path):
    arrays = {"AlexNet_0": {"Conv_0": {"bias": np.arange(3, dtype=np.float32)}}}
    read = feature_nets.read_arrays(pickle.dumps(arrays, protocol=4))
    assert read["AlexNet_0"]["Conv_0"]["bias"].tolist() == [0, 1, 2]

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    with pytest.raises(FetchError, match="system, which is no array"):
        feature_nets.read_arrays(pickle.dumps({"a": Evil()}))
    assert not (tmp_path / "ran").exists()
    for data in (b"", b"\x80\x04nonsense", pickle.dumps([1])):
        with pytest.raises(FetchError):
            feature_nets.read_arrays(data)


def test_the_place_of_the_networks_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("OMNITOK_FEATURES", str(tmp_path))
    assert feature_nets.folder() == tmp_path
    monkeypatch.delenv("OMNITOK_FEATURES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert feature_nets.folder() == tmp_path / "cache/omnitok/features"
