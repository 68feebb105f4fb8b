"""AToken's way through the commands: a mesh to tokens of voxels, and on to Gaussian splats."""

import json
from dataclasses import replace

import numpy as np
import pytest

import omnitok
import shapes
from omnitok.token_layout import TokenFile
from shapes import splats, voxel_tokens
from shapes.views import splats_of, voxelise
from tests.parity.atoken_goldens import FOLDER, read
from tests.published_files import atoken_state, gaussian_state, save
from tests.shape_samples import box, sphere
from tools.cli import main

SIDES = (0.8, 0.2, 0.1)
PLACE = np.array([5.0, -2.0, 1.0])


@pytest.fixture(scope="module")
def mesh():
    mesh = replace(box(*SIDES), vertices=box(*SIDES).vertices * 10 + PLACE)
    return replace(mesh, colors=np.full(mesh.vertices.shape, 90, np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mesh):
    """The mesh, a decoder of Gaussians and an AToken of random weights."""
    folder = tmp_path_factory.mktemp("voxels")
    shapes.write(folder / "beam.glb", mesh)
    save(folder / "gaussians.pt", gaussian_state())
    save(folder / "random.pt", atoken_state())
    return folder


@pytest.fixture(scope="module")
def tokens(folder):
    """Tokens by random weights."""
    words = ["tokenize", folder / "beam.glb", "-o", folder / "random.omni.safetensors"]
    assert main([str(w) for w in (*words, "--model", folder / "random.pt", "-q")]) == 0
    return folder / "random.omni.safetensors"


def run(capsys, *words):
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(("golden", "name"), [("cont_p8", "soc.pt"), ("disc_p8", "so-d.pt")])
def test_a_mesh_becomes_tokens_of_voxels_and_splats(golden, name, folder, mesh, tmp_path, capsys):
    recorded = FOLDER / f"{golden}.safetensors"
    if not recorded.exists():
        pytest.skip(f"no recorded data at {FOLDER}; set OMNITOK_GOLDEN to the folder with it")
    weights = save(tmp_path / name, read(recorded).weights())
    tokens = tmp_path / "beam.omni.safetensors"
    words = ("tokenize", folder / "beam.glb", "-o", tokens, "--model", weights)
    status, _, err = run(capsys, *words)
    assert status == 0, err
    assert "12 faces" in err
    assert "kept" in run(capsys, *words)[2]

    status, out, _ = run(capsys, "inspect", tokens)
    assert status == 0
    kind = "latents" if golden.startswith("cont") else "codes"
    assert f"{kind}, one for each voxel of the surface (64 x 64 x 64 in all)" in out
    assert "decode to Gaussian splats" in out
    assert "longest side 8, middle at (5, -2, 1), with colours" in out
    facts = json.loads(run(capsys, "inspect", tokens, "--json")[1])
    tok = omnitok.load(weights)
    assert facts["source"]["kind"] == "voxels"
    assert (facts["source"]["uri"], facts["source"]["codec"]) == ("beam.glb", "glb")
    assert facts["weights_sha256"] == tok.weights_sha256
    assert facts["kind"] == kind
    assert facts["num_tokens"] < 64**3 / 20

    target = tmp_path / "beam.ply"
    gaussians = folder / "gaussians.pt"
    words = ("decode", tokens, "-o", target, "--model", weights, "--gaussians", gaussians)
    status, _, err = run(capsys, *words)
    assert status == 0, err
    found = splats.read(target)
    assert len(found.xyz) == 4 * facts["num_tokens"]
    assert f"{len(found.xyz):,} Gaussians" in err
    low, high = found.xyz.min(axis=0) - PLACE, found.xyz.max(axis=0) - PLACE
    voxel = 8 / 64
    np.testing.assert_allclose(high, np.array(SIDES) * 5, atol=2 * voxel)
    np.testing.assert_allclose(low, np.array(SIDES) * -5, atol=2 * voxel)
    whole = splats_of(tok, omnitok.load(gaussians), voxelise(mesh, patch=8))
    np.testing.assert_allclose(found.opacity, whole.opacity, atol=1e-4)
    assert "kept" in run(capsys, *words)[2]


def test_splats_are_written_as_ply_alone(folder, tokens, tmp_path, capsys):
    words = ("decode", tokens, "--model", folder / "none", "--gaussians", folder / "none")
    for suffix in ("glb", "obj", "stl"):
        status, _, err = run(capsys, *words, "-o", tmp_path / f"a.{suffix}")
        assert status == 3
        assert f"a.{suffix} is no name for Gaussian splats" in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_voxels_cannot_become_is_one_sentence(folder, tokens, tmp_path, capsys):
    random = folder / "random.pt"
    status, _, err = run(capsys, "compare", folder / "beam.glb", tokens, "--model", random)
    assert (status, "not a mesh" in err, "bug" in err) == (3, True, False)
    words = ("decode", tokens, "-o", tmp_path / "a.ply", "--model", random, "--gaussians", random)
    status, _, err = run(capsys, *words)
    assert (status, "not of a decoder of Gaussians" in err) == (2, True)
    small = gaussian_state()
    small["input_layer.weight"] = small["input_layer.weight"][:, :48].clone()
    words = (*words[:-1], save(tmp_path / "small.pt", small))
    status, _, err = run(capsys, *words)
    assert (status, "takes voxels of 48 values" in err) == (3, True)
    np.savetxt(tmp_path / "cloud.xyz", sphere(2).vertices)
    status, _, err = run(capsys, "tokenize", tmp_path / "cloud.xyz", "--model", random)
    assert (status, "points without faces" in err) == (3, True)
    shapes.write(tmp_path / "mesh.ply", sphere(2))
    words = ("decode", tokens, "-o", tmp_path / "mesh.ply", "--model", random)
    status, _, err = run(capsys, *words, "--gaussians", folder / "gaussians.pt")
    assert (status, "mesh.ply" in err, "bug" in err) == (3, True, False)


def test_a_file_of_voxels_says_where_they_are(folder, tokens):
    tok = omnitok.load(folder / "random.pt")
    loaded = voxel_tokens.VoxelTokens.load(tokens, tok)
    voxels = voxelise(shapes.read(folder / "beam.glb"), patch=8)
    np.testing.assert_array_equal(loaded.coords, voxels.coords)
    np.testing.assert_allclose(loaded.data, tok.encode_voxels(voxels.pixels, voxels.coords))
    with TokenFile(tokens) as file:
        assert file.layout.placement == voxels.placement
    loaded.save(folder / "again.omni.safetensors")
    assert (folder / "again.omni.safetensors").read_bytes() == tokens.read_bytes()
