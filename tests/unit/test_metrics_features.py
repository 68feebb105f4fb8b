"""Features of a trained network, the distances between sets of them, and the linear probe."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_networks import save_network

from omnitok.checkpoint import CheckpointError
from omnitok.losses.trunk import NETWORK_KEY
from omnitok.metrics import distance
from omnitok.metrics.distance import Samples, TooFewError, frechet_distance, kernel_distance
from omnitok.metrics.features import clip_features, cut, load_mobilenet
from omnitok.metrics.probe import accuracy, pool_latents, split
from tools.feature_nets import SHA256, folder

DATA = Path(os.environ.get("OMNITOK_DATA") or Path(__file__).parents[3] / "shared/data")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory):
    return load_mobilenet(save_network(tmp_path_factory.mktemp("networks"), "mobilenet-v2"))


def test_the_network_knows_what_is_in_a_picture():
    path = folder() / "mobilenet-v2.safetensors"
    if not path.exists():
        pytest.skip("there are no networks; run: python -m tools.feature_nets")
    mobilenet = load_mobilenet(path)
    assert mobilenet.sha256 == SHA256["mobilenet-v2"]
    for name, label, odds in (
        ("skimage_coffee", 967, 0.993),
        ("gradio_lion", 291, 0.986),
        ("gradio_cheetah1", 293, 0.997),
    ):
        picture = DATA / "image" / f"{name}.jpg"
        if not picture.exists():
            pytest.skip(f"there is no {picture}")
        with Image.open(picture) as image:
            scale = 256 / min(image.size)
            image = image.convert("RGB").resize([round(n * scale) for n in image.size], 2)
        left, top = ((n - 224) // 2 for n in image.size)
        pixels = np.array(image.crop((left, top, left + 224, top + 224)))
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        found = mobilenet.classify(mobilenet(x)).softmax(-1)[0]
        assert int(found.argmax()) == label
        assert float(found.max()) == pytest.approx(odds, abs=0.002)


def test_a_file_that_is_no_such_network_is_refused(tmp_path):
    other, short = tmp_path / "other.safetensors", tmp_path / "short.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    save_file({"a": torch.zeros(1)}, short, {NETWORK_KEY: "mobilenet-v2"})
    for path, why in (
        (other, "holds network None, expected 'mobilenet-v2'"),
        (short, "does not hold the tensors"),
    ):
        with pytest.raises(CheckpointError, match=why):
            load_mobilenet(path)


def test_crops_lie_on_a_grid_and_cover_the_frame():
    frames = torch.arange(64 * 96).reshape(1, 1, 64, 96).expand(2, 3, -1, -1).to(torch.uint8)
    whole = cut(frames, 1)
    assert whole.shape == (1, 2, 3, 224, 224)
    nine = cut(frames, 9)
    assert nine.shape == (9, 2, 3, 128, 128)
    assert nine.abs().max() <= 1
    large = torch.randint(0, 256, (1, 3, 256, 300), dtype=torch.uint8)
    corners = cut(large, 4)
    for crop, (y, x) in zip(corners, [(0, 0), (0, 172), (128, 0), (128, 172)], strict=True):
        wanted = large[:, :, y : y + 128, x : x + 128].float() / 127.5 - 1
        assert torch.equal(crop, wanted)


def test_features_of_clips_are_means_and_mean_changes(network):
    frames = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    pictures, clips = clip_features(network, frames, 4)
    assert pictures.shape == (12, 1280)
    assert clips.shape == (4, 2560)
    first = pictures[:3]
    torch.testing.assert_close(clips[0, :1280], first.mean(0))
    change = ((first[1] - first[0]).abs() + (first[2] - first[1]).abs()) / 2
    torch.testing.assert_close(clips[0, 1280:], change)
    _, still = clip_features(network, frames[:1], 1)
    assert still[0, 1280:].abs().max() == 0


def samples(x: torch.Tensor, parts: int = 1) -> Samples:
    found = Samples()
    for part in x.tensor_split(parts):
        found.add(part)
    return found


def test_a_frechet_distance_of_known_gaussians():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=random).double()
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # exactly white
    scale, shift = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, -2.0]).double()
    # commuting covariances: the squared distance of means and of standard deviations
    moved = samples(x * scale + shift, parts=7)
    assert frechet_distance(samples(x), moved) == pytest.approx(5 + 0 + 1 + 4, rel=1e-9)
    assert frechet_distance(samples(x), samples(x)) == pytest.approx(0, abs=1e-9)
    a, b = x @ torch.randn(2, 3, 3, generator=random).double()
    products = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real
    wanted = a.T.cov().trace() + b.T.cov().trace() - 2 * products.sqrt().sum()
    assert frechet_distance(samples(a), samples(b)) == pytest.approx(float(wanted), rel=1e-6)


def test_too_few_samples_for_a_covariance_are_refused():
    with pytest.raises(TooFewError, match=r"5 samples are too few for a covariance of 3 features"):
        frechet_distance(samples(torch.zeros(5, 3)), samples(torch.zeros(6, 3)))
    with pytest.raises(TooFewError, match="1 samples"):
        kernel_distance(samples(torch.zeros(1, 3)), samples(torch.zeros(1, 3)))


def test_a_kernel_distance_is_that_of_its_definition():
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()

    def kernel(x, y):
        return float((x @ y / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    wanted = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs) / 20
    wanted -= 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 20
    assert kernel_distance(samples(a), samples(b)) == pytest.approx(wanted)
    assert kernel_distance(samples(a), samples(a)) == pytest.approx(0, abs=1e-12)


def test_a_kernel_distance_of_many_samples_is_small_for_the_same_and_large_for_others():
    random = torch.Generator().manual_seed(0)
    a, b, far = torch.randn(3, 2500, 8, generator=random)
    assert abs(kernel_distance(samples(a), samples(b))) < 0.02
    assert kernel_distance(samples(a), samples(far + 1)) > 1


def test_samples_are_thinned_evenly_and_alike_however_they_come(monkeypatch):
    monkeypatch.setattr(distance, "KEPT", 10)
    x = torch.arange(37.0)[:, None]
    for parts in (1, 5, 37):
        found = samples(x, parts)
        assert found.count == 37
        assert found.kept[:, 0].tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
        mean, covariance = found.gaussian()
        torch.testing.assert_close(mean, x.double().mean(0))
        torch.testing.assert_close(covariance, x.double().T.cov()[None, None])


def test_a_linear_probe_finds_what_is_linear_and_only_guesses_the_rest():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=random)
    linear, not_linear = (x[:, 0] > x[:, 1]).long(), (x[:, 0] * x[:, 1] > 0).long()
    parts = x[:300], x[300:]
    found = [accuracy(parts[0], y[:300], parts[1], y[300:]) for y in (linear, not_linear)]
    assert found[0] > 0.95
    assert 0.3 < found[1] < 0.7


def test_a_split_tests_some_of_every_class_and_trains_on_the_others():
    labels = [0] * 8 + [1] * 4 + [2]
    train, test = split(labels, 0.25, seed=0)
    assert sorted(train + test) == list(range(13))
    assert [labels[n] for n in test] == [0, 0, 1]
    assert split(labels, 0.25, seed=0) == (train, test)
    assert split(labels, 0.25, seed=1) != (train, test)


def test_pooled_latents_have_one_length_for_clips_of_any_size():
    for size in ((1, 1, 1), (3, 9, 5)):
        assert pool_latents(torch.randn(7, *size)).shape == (7 * 16 + 7,)
    z = torch.zeros(1, 1, 4, 4)
    z[0, 0, 0, 0] = 2
    pooled = pool_latents(z)
    assert pooled[0] == 2
    assert pooled[1:16].abs().max() == 0
