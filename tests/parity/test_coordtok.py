"""CoordTok: planes, patches and loss equal to those of the published code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnitok.interop.coordtok import AXES, CoordTok, CoordTokConfig, patch_loss

SMALL = CoordTokConfig(
    size=(8, 32, 32),
    patch=(2, 8),
    planes=(8, 8, 8),
    plane_patch=(4, 4),
    channels=4,
    width=36,
    heads=3,
    depths=(1, 2, 2),
)


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def recorded():
    from tests.parity.conftest import golden_folder

    path = Path(golden_folder()) / "flexible" / "coordtok.safetensors"
    if not path.exists():
        pytest.skip(f"no recorded data at {path}; set OMNITOK_GOLDEN to the folder that holds it")
    return load_file(path)


@pytest.fixture(scope="module")
def net(recorded):
    model = CoordTok(SMALL)
    state = {k.removeprefix("state/"): v for k, v in recorded.items() if k.startswith("state/")}
    model.load_state_dict(state)
    return model.requires_grad_(False)


def planes_of(recorded, name):
    return {plane: recorded[f"{name}/z_{plane}"] for plane in AXES}


def test_planes_are_the_published_ones(net, recorded):
    planes = net.encode(recorded["video"])
    for name, plane in planes_of(recorded, "full").items():
        close(planes[name], plane)


def test_short_clips_are_weighted_as_published(net, recorded):
    frames = recorded["short/n_frames"].flatten()
    video = recorded["video"].clone()
    planes = net.encode(video, frames)
    for name, plane in planes_of(recorded, "short").items():
        close(planes[name], plane)


def test_patches_are_the_published_ones(net, recorded):
    planes = planes_of(recorded, "full")
    close(net.grid().expand(2, -1, -1), recorded["full/coords"])
    close(net.decode(planes, recorded["full/coords"]), recorded["full/patches"])
    index = recorded["sub/index"].long()
    close(net.decode(planes, recorded["full/coords"][:, index]), recorded["sub/patches"])
    close(net.read(planes, recorded["cont/coords"]), recorded["cont/embedding"])
    close(net.decode(planes, recorded["cont/coords"]), recorded["cont/patches"])


def test_the_loss_is_the_published_one(recorded):
    close(
        patch_loss(recorded["sub/patches"], recorded["loss/targets"])[None], recorded["loss/value"]
    )


def test_a_whole_clip_is_made_of_its_patches(net, recorded):
    clip = net.decode_clip(planes_of(recorded, "full"))
    assert clip.shape == recorded["video"].shape
    close(net.patches_of(clip), recorded["full/patches"])


def test_it_learns_a_long_clip_from_a_few_random_patches():
    torch.manual_seed(0)
    config = CoordTokConfig(
        size=(64, 32, 32),
        patch=(16, 16),
        planes=(8, 8, 16),
        plane_patch=(4, 4),
        channels=4,
        width=48,
        heads=4,
        depths=(1, 1, 1),
    )
    model, generator = CoordTok(config), torch.Generator().manual_seed(1)
    t, x, y = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in config.size), indexing="ij")
    clip = torch.stack([t, x, (3 * (x + t)).sin() * y], dim=-1)[None]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = model.loss(clip, 48, generator)  # of 1,024 patches
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        error = (model.decode_clip(model.encode(clip)) - clip).square().mean()
    assert error < 0.4 * clip.square().mean()
    assert losses[-1] < 0.5 * losses[0]
