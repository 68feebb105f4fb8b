"""3D assets to tokens and back: turned, mirrored or misplaced results are caught here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

import shapes
from omnitok import Tokens, TokensError
from omnitok.planes import PlaneBatch, sample_profiles
from omnitok.train.config import SourceConfig
from shapes import ShapesError
from shapes.compare import compare_meshes
from shapes.datasets import Prepared, prepare, prepared, turned
from shapes.extract import best_level, lattice, marching_cubes
from shapes.items import ShapeItem
from shapes.procedural import random_shape
from shapes.raster import rasterize
from tests.shape_samples import PLANES, box, mirrored, shape_tokenizer, shoe, sphere
from tests.small_models import small_tokenizer
from tests.unit.test_shapes_inside import look

RES = 64


def decode(mesh, kind="kl"):
    tok = shape_tokenizer(kind)
    return shapes.detokenize(tok, shapes.tokenize(tok, mesh), RES)


@pytest.mark.parametrize("mesh", [box(), shoe(), mirrored(shoe())], ids=["box", "left", "right"])
def test_what_comes_back_is_the_same_way_round(mesh):
    back = decode(mesh)
    same = compare_meshes(mesh, back, 20_000)
    solid = trimesh.Trimesh(back.vertices, back.faces, process=False)
    assert solid.is_watertight
    assert solid.volume > 0
    assert same.iou > 0.85
    assert same.distances.f_score(0.05) > 0.95
    swapped = replace(back, vertices=back.vertices[:, [1, 0, 2]], faces=back.faces[:, ::-1])
    assert compare_meshes(mesh, swapped, 20_000).iou < 0.8
    if len(mesh.vertices) > 8:  # a box is its own mirror image
        assert compare_meshes(mesh, mirrored(back), 20_000).iou < 0.8


@pytest.mark.parametrize(("scale", "offset"), [(1e-5, 0.0), (1.0, 7.0), (1e4, -3e5)])
def test_position_and_scale_are_kept(scale, offset):
    plain = decode(box())
    moved = decode(replace(box(), vertices=box().vertices * scale + offset))
    error = np.abs((moved.vertices - offset) / scale - plain.vertices).max()
    assert error < 1e-4 * 0.8


@pytest.mark.parametrize("kind", ["kl", "fsq"])
def test_a_token_file_decodes_to_the_same_mesh(kind, tmp_path):
    tok = shape_tokenizer(kind)
    tokens = shapes.tokenize(tok, shoe())
    assert tokens.grid == (1, 24, 8)
    tokens.save(tmp_path / "a.safetensors")
    again = Tokens.load(tmp_path / "a.safetensors", tokenizer=tok)
    assert again.placement == tokens.placement
    assert torch.equal(again.data, tokens.data)
    one, two = (shapes.detokenize(tok, t, 48).vertices for t in (tokens, again))
    np.testing.assert_array_equal(one, two)
    assert shapes.tokenize(tok, shoe()).data.equal(tokens.data)


def test_the_surface_lies_where_the_field_overlaps_the_shape_most():
    x = torch.linspace(-1, 1, 32)
    thin = (x.abs() < 0.1).float().expand(32, 32, 32)
    share = thin.unflatten(0, (16, 2)).unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((1, 3, 5))
    field = (2 - 40 * x.abs()).expand(32, 32, 32)  # above 0 on half of it
    level = best_level(field, share)
    assert -2.5 <= level <= -1.5
    assert best_level(field - level, share) == 0.0


def test_a_level_decides_what_decodes_and_is_kept_in_the_file(tmp_path):
    tok = shape_tokenizer("kl")
    tokens = shapes.tokenize(tok, sphere())
    places = {}
    for level in (-1.0, 1.0):
        tokens.placement = replace(tokens.placement, level=level)
        tokens.save(tmp_path / f"{level}.safetensors")
        again = Tokens.load(tmp_path / f"{level}.safetensors", tokenizer=tok)
        assert again.placement.level == level
        places[level] = np.abs(shapes.detokenize(tok, again, RES).vertices).max()
    assert places[-1.0] > places[1.0]


def test_colours_come_back_only_where_there_were_some():
    assert decode(sphere()).colors is None
    colored = replace(sphere(), colors=np.full(sphere().vertices.shape, 200, np.uint8))
    assert decode(colored).colors.shape == decode(colored).vertices.shape


def test_weights_without_a_3d_stage_say_so():
    with pytest.raises(ShapesError, match="no 3D stage"):
        shapes.tokenize(small_tokenizer("tiny"), box())
    with pytest.raises(ValueError, match="no 3D stage"):
        small_tokenizer("tiny").model.encode_planes(torch.zeros(1))


def test_tokens_of_shapes_and_of_frames_are_not_mixed_up():
    tok = shape_tokenizer()
    with pytest.raises(ValueError, match=r"shapes\.detokenize"):
        tok.detokenize(shapes.tokenize(tok, box()))
    frames = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ShapesError, match="picture or a clip"):
        shapes.detokenize(tok, tok.tokenize(frames))


def test_a_placement_that_makes_no_sense_is_refused():
    tokens = shapes.tokenize(shape_tokenizer(), box())
    for scale in (0.0, -1.0, float("nan"), "1"):
        with pytest.raises(TokensError):
            replace(tokens, placement=replace(tokens.placement, scale=scale))


def test_the_field_on_a_lattice_is_that_at_its_points():
    parts = shape_tokenizer().model.planes
    planes = torch.randn(1, 3, PLANES.features + PLANES.bins, 32, 32)
    on = parts.field_on_lattice(planes[0], torch.linspace(-1, 1, 11))
    at, _ = parts.field_at(planes, lattice(11)[None])
    torch.testing.assert_close(on, at.view(11, 11, 11), atol=1e-5, rtol=1e-5)


def test_profiles_are_read_along_the_axis_that_a_plane_leaves_out():
    cells = 4
    profiles = torch.randn(1, 3, cells, cells, cells)
    centres = (torch.arange(cells) + 0.5) / cells * 2 - 1
    x, y, z = 1, 3, 0
    point = torch.stack([centres[x], centres[y], centres[z]])[None, None]
    read = sample_profiles(profiles, point)[0, :, 0]
    wanted = [profiles[0, 0, z, x, y], profiles[0, 1, y, x, z], profiles[0, 2, x, y, z]]
    torch.testing.assert_close(read, torch.stack(wanted))


def test_marching_cubes_of_a_ball_is_a_ball_also_at_the_border_of_the_box():
    points = lattice(48).numpy()
    field = 0.7 - np.linalg.norm(points - [0.1, 0.2, 0.0], axis=1)
    mesh = marching_cubes(field.reshape(48, 48, 48))
    distance = np.linalg.norm(mesh.vertices - [0.1, 0.2, 0.0], axis=1)
    np.testing.assert_allclose(distance, 0.7, atol=0.002)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).volume == pytest.approx(1.437, abs=0.01)
    cut = marching_cubes(field.reshape(48, 48, 48) + 0.5)
    assert trimesh.Trimesh(cut.vertices, cut.faces).is_watertight
    assert marching_cubes(np.full((8, 8, 8), -1.0)) is None


def test_training_data_is_kept_and_drawn_by_step(tmp_path):
    shape = random_shape(0)
    once = prepared(shape, PLANES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = prepared(shape, PLANES, tmp_path)
    assert again.points.equal(once.points)
    path = next(tmp_path.iterdir())
    item = ShapeItem(path, PLANES, tmp_path)
    source = SourceConfig(kind="meshes", sizes=[(64, 16, 1)], batch=1)
    one, two, other = (
        item.sample(np.random.default_rng(seed), source, (64, 16, 1)) for seed in (5, 5, 6)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not one["points"].equal(other["points"])
    assert one["raster"].shape == (3, PLANES.channels, 32, 32)
    batch = PlaneBatch(**{name: torch.stack([one[name], other[name]]) for name in one})
    result = shape_tokenizer().model.forward_planes(batch)
    assert set(result.losses) == {"inside", "overlap", "color", "roughness"}
    path.write_bytes(b"x")
    with pytest.raises(ShapesError, match="prepare it again"):
        Prepared.load(path)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_turned_raster_is_the_raster_of_the_turned_shape(order):
    _, solid, surface, inside = look(shoe())
    signs = np.array([-1.0, 1.0, -1.0])

    def turn(x):
        return x[:, order] * signs

    before = rasterize(inside, surface, PLANES)
    after = turned(before, torch.tensor(order), torch.from_numpy(signs)).planes()
    faces = solid.faces if np.linalg.det(np.eye(3)[list(order)]) > 0 else solid.faces[:, ::-1]
    moved = look(replace(shoe(), vertices=turn(solid.vertices), faces=faces))[3]
    seen = replace(surface, points=turn(surface.points), normals=turn(surface.normals))
    wanted = rasterize(moved, seen, PLANES).planes()
    assert (after - wanted).abs().mean() < 0.01


def test_a_step_of_training_lowers_the_loss():
    tok = shape_tokenizer()
    torch.manual_seed(0)
    model = type(tok.model)(tok.config)
    shape = prepare(shoe(), PLANES)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    points = shape.points[:2000].float()[None]
    losses = []
    for _ in range(12):
        field, _ = model.planes.field_at(
            model.decode_planes(
                model.quantizer(model.encode_planes(shape.raster.planes()[None])).z_q
            ),
            points,
        )
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            field, shape.inside[:2000].float()[None]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
