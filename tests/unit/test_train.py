"""The trainer: it learns, it resumes exactly, it starts where PCA ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from omnitok.metrics.transform_code import TransformCode, lloyd_max
from omnitok.metrics.validation import clip_psnr
from omnitok.model import Autoencoder
from omnitok.nn.patch import patchify, unpatchify
from omnitok.pixels import to_float
from omnitok.presets import preset
from omnitok.train.config import OptimConfig, SourceConfig, StageConfig, TrainConfig
from omnitok.train.loop import Trainer, start_from_other
from omnitok.train.optim import rate_factor
from omnitok.train.pca import PCA, split_patches, start_as_pca
from video.datasets import ClipSampler, Corpus


def smooth(rng, frames, height, width):
    """Pictures with low frequencies that drift: something to learn."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(frames)[:, None, None]
    waves = [
        np.sin(x * rng.uniform(0.02, 0.3) + y * rng.uniform(0.02, 0.3) + t * 0.3 + c)
        for c in range(3)
    ]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for kind, frames in (("images", 1), ("videos", 12)):
        index, flat, offset = [], [], 0
        for n in range(4):
            item = smooth(rng, frames, 48, 56 + n)
            index.append({"offset": offset, "frames": frames, "height": 48, "width": 56 + n})
            flat.append(item.tobytes())
            offset += item.size
        (root / f"{kind}.bin").write_bytes(b"".join(flat))
        (root / f"{kind}.json").write_text(json.dumps(index))
    return Corpus(root)


def config(steps=12, **changes) -> TrainConfig:
    mix = [
        SourceConfig(kind=kind, weight=1, batch=2, frames=frames, size=32)
        for kind, frames in (("images", 1), ("pans", 5), ("videos", 5))
    ]
    return TrainConfig(
        preset="tiny-kl",
        stages=[
            StageConfig(name="images", steps=2, mix=mix[:1]),
            StageConfig(name="all", steps=steps - 2, mix=mix),
        ],
        loss_weights={"kl": 1e-6},
        optim=OptimConfig(warmup=2),
        save_every=5,
        **changes,
    )


def losses(out):
    rows = (out / "log.csv").read_text().splitlines()[1:]
    return [row.split(",")[2] for row in rows]


def test_batches_depend_on_the_seed_and_the_step_alone(corpus):
    a, b = ClipSampler(corpus, config()), ClipSampler(corpus, config())
    ahead = [a.batch(step) for step in range(6)]
    assert all(torch.equal(ahead[step], b.draw(step)) for step in reversed(range(6)))
    assert not torch.equal(ahead[0], ClipSampler(corpus, config(seed=1)).draw(0))
    assert all(x.dtype == torch.uint8 and x.shape[1] == 3 for x in ahead)


def test_training_lowers_the_loss(corpus, tmp_path):
    trainer = Trainer(config(30), tmp_path, ClipSampler(corpus, config(30)))
    clip = to_float(
        torch.from_numpy(np.array(corpus.videos[0][:5])).permute(3, 0, 1, 2)[None], torch.float32
    )
    before = float((trainer.model(clip).recon - clip).detach().square().mean())
    trainer.run()
    after = trainer.averaged()(clip).recon.detach()
    assert float((after - clip).square().mean()) < before


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(corpus, tmp_path):
    Trainer(config(), tmp_path / "whole", ClipSampler(corpus, config())).run()
    part = Trainer(config(), tmp_path / "parts", ClipSampler(corpus, config()))
    while part.step < 7:
        part._log({"step": part.step, **part.train_step()})
    part.save()
    again = Trainer(config(), tmp_path / "parts", ClipSampler(corpus, config()))
    assert again.step == 7
    again.run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert parts.read_bytes() == whole.read_bytes()


def test_a_killed_run_logs_every_step_once(corpus, tmp_path):
    trainer = Trainer(config(), tmp_path, ClipSampler(corpus, config()))
    while trainer.step < 7:  # saved at step 5, killed while logging step 7
        trainer._log({"step": trainer.step, **trainer.train_step()})
        if trainer.step == 5:
            trainer.save()
    with open(tmp_path / "log.csv", "a") as file:
        file.write("7,0.")
    Trainer(config(), tmp_path, ClipSampler(corpus, config())).run()
    rows = (tmp_path / "log.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(12))


def test_another_config_in_the_same_folder_is_refused(corpus, tmp_path):
    Trainer(config(), tmp_path, ClipSampler(corpus, config())).save()
    with pytest.raises(ValueError, match="another config"):
        Trainer(config(seed=3), tmp_path, ClipSampler(corpus, config()))


def test_a_step_that_is_not_finite_stops_with_the_good_state_kept(corpus, tmp_path):
    trainer = Trainer(config(), tmp_path, ClipSampler(corpus, config()))
    trainer.run(0)
    with torch.no_grad():
        trainer.model.head.bias.fill_(float("nan"))
        trainer.model.head_first.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="last good state"):
        trainer.train_step()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(t.isfinite().all() for t in state["model"].values())


def test_a_fresh_model_is_the_pca_of_the_data(corpus):
    sampler = ClipSampler(corpus, config())
    clips = [to_float(sampler.draw(step), torch.float32) for step in range(2, 12)]
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


def test_a_discrete_model_takes_over_a_continuous_one():
    start, model = Autoencoder(preset("tiny-kl")), Autoencoder(preset("tiny"))
    start_from_other(model, start)
    assert torch.equal(model.encoder.blocks[0].mlp.up.weight, start.encoder.blocks[0].mlp.up.weight)
    assert torch.equal(model.to_latent.weight[:6], start.to_latent.weight[:6])


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


def test_the_rate_rises_and_falls():
    optim = OptimConfig(warmup=10, decay_from=0.5)
    rates = [rate_factor(step, 100, optim) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1
    assert rates[99] == pytest.approx(0.02)
