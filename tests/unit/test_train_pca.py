"""Where training starts: at the principal components of the data; and the codes it has to beat."""

from __future__ import annotations

import pytest
import torch
from small_runs import corpus, run_config  # noqa: F401 - a fixture

from omnitok.metrics.transform_code import TransformCode, lloyd_max
from omnitok.metrics.validation import clip_psnr
from omnitok.model import Autoencoder
from omnitok.nn.patch import patchify, unpatchify
from omnitok.pixels import to_float
from omnitok.presets import preset
from omnitok.train.network import build_model
from omnitok.train.pca import PCA, split_patches, start_as_pca
from omnitok.train.sampler import Sampler


def test_a_fresh_model_is_the_pca_of_the_data(corpus):  # noqa: F811
    sampler = Sampler(run_config(), {"small": corpus})
    batches = [sampler[number].tensors["pixels"] for number in range(2, 12)]
    clips = [to_float(pixels, torch.float32) for pixels in batches]
    still, moving = split_patches(clips, (4, 8, 8))
    model = Autoencoder(preset("tiny-kl")).eval()
    start_as_pca(model, clips)
    x = next(clip for clip in clips if clip.shape[2] == 5)
    grid = (x.shape[3] // 8, x.shape[4] // 8)
    parts = []
    for pca, cut, patch in (
        (PCA.fit(still), x[:, :, :1], (1, 8, 8)),
        (PCA.fit(moving), x[:, :, 1:], (4, 8, 8)),
    ):
        coefficients = pca.project(patchify(cut, patch), 16)
        parts.append(unpatchify(pca.reconstruct(coefficients), patch, grid))
    want = clip_psnr(torch.cat(parts, dim=2), x)
    with torch.no_grad():
        got = clip_psnr(model(x).recon, x)
    assert (got - want).abs().max() < 0.1


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ((4, 8, 8), (7, 30, 41)),
        ((1, 8, 8), (3, 32, 32)),
        ((1, 2, 2), (2, 9, 8)),
        ((4, 2, 2), (5, 8, 8)),
    ],
)
def test_clips_and_patches_may_have_any_size(patch, size):
    small = {"width": 64, "heads": 1, "layers": ["local"], "mlp_hidden": 64}
    changes = {"preset": "tiny-kl", "patch": list(patch), "encoder": small, "decoder": small}
    model = build_model(changes, None).eval().requires_grad_(False)
    torch.manual_seed(0)
    rough = torch.randn(4, 3, 1, 4, 4).clamp(-1, 1)
    clips = [torch.nn.functional.interpolate(x[None], size, mode="trilinear") for x in rough]
    start_as_pca(model, clips)
    assert clip_psnr(model(clips[0]).recon, clips[0]).min() > 20


def test_clips_of_one_colour_give_finite_weights():
    model = Autoencoder(preset("tiny-kl")).requires_grad_(False)
    start_as_pca(model, [torch.zeros(2, 3, 5, 16, 16)])
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_first_weights_are_made_on_the_device_of_the_model():
    model = Autoencoder(preset("tiny-kl")).requires_grad_(False).to("meta")
    # tensors without values: mixing devices, or asking for a value, raises
    start_as_pca(model, [torch.zeros(2, 3, 5, 16, 16, device="meta")])


def test_more_bits_bring_a_transform_code_closer():
    torch.manual_seed(0)
    x = torch.randn(4000, 12) * torch.arange(12, 0, -1) ** 2
    pca = PCA.fit([x])
    errors = [
        float((TransformCode.fit(pca, x, bits).reconstruct(x) - x).square().mean())
        for bits in (2, 6, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.3 * errors[0]


def test_lloyd_max_finds_the_optimal_quantizer_of_a_gaussian():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Max 1960, Quantizing for minimum distortion, table 1: N = 4
    assert torch.allclose(
        lloyd_max(x, 4), torch.tensor([-1.510, -0.4528, 0.4528, 1.510]).double(), atol=0.02
    )
