"""Reading, repairing, and telling inside from outside."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from shapes import ShapesError, read, write
from shapes.inside import Inside
from shapes.mesh import Mesh
from shapes.rays import Scene
from shapes.sample import draw_queries, into_box, out_of_box, placement_of, sample_surface
from shapes.solid import repair, winding_numbers
from tests.shape_samples import box, mirrored, of_trimesh, shoe, sphere

RNG = np.random.default_rng(0)


def look(mesh: Mesh):
    """The mesh in the box, repaired, its surface and its inside."""
    mesh = into_box(mesh, placement_of(mesh))
    solid = None if mesh.is_cloud else repair(mesh)
    surface = sample_surface(mesh, solid, 20_000)
    return mesh, solid, surface, Inside(solid, surface)


def sure_points(solid, surface, count=800):
    """Points that are not within rounding of the surface, and whether they are inside."""
    points = draw_queries(surface, count).points
    winding = winding_numbers(solid.triangles, points)
    return points, winding > 0.5


def test_a_sphere_is_inside_where_its_radius_says_so():
    _, solid, _, inside = look(sphere(4))
    points = RNG.uniform(-1, 1, (5000, 3))
    radius = np.linalg.norm(points, axis=1)
    far = np.abs(radius - 0.95) > 0.01
    assert inside.kind == "closed"
    assert solid.notes == ()
    np.testing.assert_array_equal(inside(points)[far], radius[far] < 0.95)


def test_the_grid_of_a_closed_shape_says_what_its_points_say():
    *_, inside = look(shoe())
    cells = 24
    centres = (np.arange(cells) + 0.5) / cells * 2 - 1
    lattice = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1)
    assert (inside.grid(cells) == inside(lattice.reshape(-1, 3)).reshape((cells,) * 3)).all()


def test_faces_that_look_inwards_are_turned():
    for turned in (slice(None), np.arange(0, 1280, 3)):
        mesh = sphere(3)
        faces = mesh.faces.copy()
        faces[turned] = faces[turned, ::-1]
        solid = repair(replace(mesh, faces=faces))
        assert solid.closed
        assert trimesh.Trimesh(solid.vertices, solid.faces).volume > 4
        surface = sample_surface(replace(mesh, faces=faces), solid, 500)
        assert (np.einsum("ma,ma->m", surface.points, surface.normals) > 0.9).all()


def test_parts_that_overlap_are_one_and_a_cavity_stays_empty():
    parts = [trimesh.creation.icosphere(3, 1.0), trimesh.creation.icosphere(3, 0.5)]
    parts[1].apply_translation([0.9, 0, 0])
    union = of_trimesh(trimesh.util.concatenate(parts))
    _, solid, surface, inside = look(union)
    points, truth = sure_points(solid, surface)
    np.testing.assert_array_equal(inside(points), truth)
    shell = [trimesh.creation.icosphere(3, 1.0), trimesh.creation.icosphere(3, 0.5)]
    shell[1].invert()
    *_, inside = look(of_trimesh(trimesh.util.concatenate(shell)))
    np.testing.assert_array_equal(inside(np.array([[0, 0, 0], [0.7, 0, 0]])), [False, True])


def test_a_mesh_with_holes_is_inside_where_it_surrounds():
    mesh = sphere(3)
    holed = replace(mesh, faces=mesh.faces[np.argsort(mesh.vertices[mesh.faces][:, 0, 1])[50:]])
    _, solid, surface, inside = look(holed)
    assert not solid.closed
    assert "not closed" in solid.notes[-1]
    points, truth = sure_points(solid, surface)
    assert inside.kind == "open"
    assert (inside(points) == truth).mean() > 0.99


def test_a_sheet_becomes_a_plate():
    square = Mesh(
        np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]]), np.array([[0, 1, 2], [0, 2, 3]])
    )
    *_, inside = look(square)
    assert inside.kind == "sheet"
    np.testing.assert_array_equal(inside(np.array([[0, 0, 0.01], [0, 0, 0.1]])), [True, False])


def test_points_alone_are_told_apart_too():
    cloud = Mesh(trimesh.creation.icosphere(5).vertices.view(np.ndarray))
    *_, inside = look(cloud)
    points = RNG.uniform(-1, 1, (3000, 3))
    radius = np.linalg.norm(points, axis=1)
    far = np.abs(radius - 0.95) > 0.03
    assert (inside(points)[far] == (radius[far] < 0.95)).mean() > 0.99


def test_rays_are_the_same_without_open3d(monkeypatch):
    solid = repair(shoe())
    with_it = Scene(solid.vertices, solid.faces)

    def absent():
        raise ImportError

    monkeypatch.setattr("shapes.rays.load_open3d", absent)
    without = Scene(solid.vertices, solid.faces)
    points = RNG.uniform(-0.2, 1.1, (300, 3))
    direction = np.array([0.36, 0.48, 0.8])
    np.testing.assert_array_equal(
        with_it.crossings(points, direction), without.crossings(points, direction)
    )
    one, two = (s.first_hits(points, np.tile(direction, (300, 1))) for s in (with_it, without))
    np.testing.assert_allclose(one.distance, two.distance, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e7])
def test_place_and_scale_come_back(scale):
    mesh = box()
    moved = replace(mesh, vertices=mesh.vertices * scale + 3 * scale)
    place = placement_of(moved)
    boxed = into_box(moved, place)
    assert np.abs(boxed.vertices).max() == pytest.approx(0.95)
    back = out_of_box(boxed, place)
    np.testing.assert_allclose(back.vertices, moved.vertices, atol=1e-9 * scale)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl", ".glb"])
def test_files_keep_faces_and_colours(suffix, tmp_path):
    mesh = sphere(2)
    mesh = replace(mesh, colors=RNG.integers(0, 256, mesh.vertices.shape).astype(np.uint8))
    write(tmp_path / f"a{suffix}", mesh)
    back = read(tmp_path / f"a{suffix}")
    assert len(back.faces) == len(mesh.faces)
    np.testing.assert_allclose(back.vertices[back.faces], mesh.vertices[mesh.faces], atol=1e-6)
    if suffix != ".stl":
        want, found = mesh.colors[mesh.faces].astype(int), back.colors[back.faces].astype(int)
        assert np.abs(want - found).max() <= 1


def test_points_are_read_from_xyz_and_npz(tmp_path):
    points = RNG.normal(size=(50, 3))
    np.savetxt(tmp_path / "a.xyz", points)
    np.savez(tmp_path / "b.npz", points=points, normals=points)
    assert read(tmp_path / "a.xyz").is_cloud
    np.testing.assert_allclose(read(tmp_path / "a.xyz").vertices, points)
    np.testing.assert_allclose(read(tmp_path / "b.npz").normals, points)


def broken_files():
    spot = "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n"
    nowhere = "v nan 0 0\nv 0 0 0\nv 1 1 1\nf 1 2 3\n"
    far = "v 0 0 0\nv 0 0 1\nv 1 1 1\nf 1 2 9\n"
    return {"a.obj": b"", "b.ply": b"ply\nformat", "c.obj": spot.encode(), "d.txt": b"1 2 3"} | {
        "e.obj": nowhere.encode(),
        "f.obj": far.encode(),
        "g.xyz": b"1 2 3 4\n",
        "h.npz": b"PK",
    }


@pytest.mark.parametrize("name", broken_files())
def test_what_cannot_be_read_is_refused_in_a_sentence(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(ShapesError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_mirrored_shoe_is_another_shoe():
    *_, inside = look(shoe())
    *_, other = look(mirrored(shoe()))
    assert (inside.grid(24) != other.grid(24)).mean() > 0.02


def test_a_missing_texture_is_no_colour(tmp_path):
    lines = ["v 0 0 0", "v 1 0 0", "v 0 1 1", "vt 0 0", "vt 1 0", "vt 0 1", "f 1/1 2/2 3/3"]
    (tmp_path / "a.obj").write_text("\n".join(lines) + "\n")
    assert not read(tmp_path / "a.obj").has_colors
