"""Pictures of shapes without a screen, and the voxels that AToken takes."""

from dataclasses import replace

import numpy as np
import torch

from omnitok.interop.atoken_gaussians import GaussianConfig, GaussianDecoder, gaussian_stack
from shapes.mesh import Mesh
from shapes.render import camera_at, render
from shapes.sample import into_box, placement_of
from shapes.splats import read, write
from shapes.views import sphere_of_cameras, splats_of, voxelise
from tests.shape_samples import box, shoe, sphere


def boxed(mesh):
    return into_box(mesh, placement_of(mesh))


def test_a_turntable_shows_a_box_from_its_sides():
    pictures = render(boxed(box(0.8, 0.4, 0.2)), views=4, size=64)
    assert pictures.shape == (4, 64, 64, 3)
    assert pictures.dtype == np.uint8
    width = [np.flatnonzero((p < 250).any(axis=(0, 2))) for p in pictures]
    widths = [np.ptp(w) for w in width]
    assert widths[0] == widths[2]
    assert widths[0] > 2 * widths[1]  # 0.8 against 0.2
    np.testing.assert_array_equal(render(boxed(box()), 2, 32), render(boxed(box()), 2, 32))


def test_a_picture_is_not_mirrored():
    mesh = boxed(shoe())
    right = mesh.vertices[:, 0] > 0.3  # the toe stands out to the right
    colors = np.where(right[:, None], [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    picture = render(replace(mesh, colors=colors), views=1, size=64)[0].astype(int)
    red = picture[..., 0] - picture[..., 2] > 60
    blue = picture[..., 2] - picture[..., 0] > 60
    assert np.nonzero(red)[1].mean() > np.nonzero(blue)[1].mean()


def test_a_cloud_has_a_picture_too():
    picture = render(Mesh(boxed(sphere(4)).vertices), views=1, size=64)[0]
    assert 0.2 < (picture < 250).any(axis=-1).mean() < 0.8


def test_cameras_look_at_the_middle_from_all_sides():
    eyes = np.stack([camera.eye for camera in sphere_of_cameras(24)])
    np.testing.assert_allclose(eyes.mean(axis=0), 0, atol=0.2)
    camera = camera_at(np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(camera.right, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(camera.up, [0, 1, 0], atol=1e-12)


def test_voxels_lie_on_the_surface_and_have_its_colours():
    mesh = sphere(4)
    half = np.where(mesh.vertices[:, :1] > 0, [255, 0, 0], [0, 255, 0]).astype(np.uint8)
    voxels = voxelise(replace(mesh, colors=half, vertices=mesh.vertices * 3 + 1), views=8)
    centres = (voxels.coords[:, 1:].numpy() + 0.5) / 64 - 0.5
    radius = np.linalg.norm(centres, axis=1)
    assert np.abs(radius - 0.5).max() < 2 / 64
    assert len(centres) > 5000
    assert voxels.pixels.shape == (len(centres), 768)
    red = voxels.pixels.view(-1, 256, 3).mean(dim=1)
    right = torch.from_numpy(centres[:, 0] > 0.25)
    assert (red[right, 0] > red[right, 1]).float().mean() > 0.9


class OneToOne:
    """Stands for AToken: voxels come back as they are."""

    codebook_size = None

    def encode_voxels(self, pixels, coords):
        return pixels

    def decode_voxels(self, z, coords):
        return z


def test_splats_come_back_in_the_place_of_the_mesh(tmp_path):
    config = GaussianConfig(stack=gaussian_stack(48, 2, 2, 64, 8), num_gaussians=4)
    torch.manual_seed(0)
    decoder = GaussianDecoder(config).requires_grad_(False)
    mesh = replace(sphere(3), vertices=sphere(3).vertices * 3 + 10)
    splats = splats_of(OneToOne(), decoder, voxelise(mesh, views=6))
    np.testing.assert_allclose(splats.xyz.mean(axis=0), 10, atol=0.3)
    assert np.abs(np.linalg.norm(splats.xyz - 10, axis=1) - 3).max() < 0.4
    write(tmp_path / "a.ply", splats)
    np.testing.assert_array_equal(read(tmp_path / "a.ply").xyz, splats.xyz)
