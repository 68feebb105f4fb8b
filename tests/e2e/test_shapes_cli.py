"""3D assets through the commands: tokenize, inspect, decode, compare."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import shapes
from omnitok.checkpoint import save_checkpoint
from omnitok.hub import shipped
from tests.shape_samples import box, shape_tokenizer, sphere
from tools.cli import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(path, shape_tokenizer().model)
    return str(path)


def run(capsys, *words):
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_coloured_mesh_goes_there_and_back(weights, tmp_path, capsys):
    mesh = replace(sphere(), vertices=sphere().vertices * 40 + [0, 500, 0])
    mesh = replace(mesh, colors=np.full(mesh.vertices.shape, 90, np.uint8))
    source = tmp_path / "ball.glb"
    shapes.write(source, mesh)
    status, _, err = run(capsys, "tokenize", source, "--model", weights)
    assert (status, err.count("192 tokens")) == (0, 1)
    tokens = tmp_path / "ball.omni.safetensors"
    status, out, _ = run(capsys, "inspect", tokens)
    assert status == 0
    assert "3 planes x 8 x 8 = 192 latents" in out
    assert "longest side 80, middle at (0, 500, 0), with colours" in out
    for suffix in ("ply", "obj", "stl", "glb"):
        target = tmp_path / f"back.{suffix}"
        words = ("decode", tokens, "-o", target, "--resolution", 40, "--model", weights)
        assert run(capsys, *words)[0] == 0
        back = shapes.read(target)
        assert back.has_colors == (suffix != "stl")
        np.testing.assert_allclose(np.abs(back.vertices - [0, 500, 0]).max(), 40, atol=2)
    status, out, _ = run(
        capsys, "compare", source, target, "--json", "--png", tmp_path / "sheet.png"
    )
    scores = json.loads(out)
    assert status == 0
    assert scores["iou"] > 0.9
    assert scores["f_score_0.02"] > scores["f_score_0.01"] > 0.3
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    status, out, _ = run(capsys, "compare", source, tokens, "--model", weights)
    assert status == 0
    assert "IoU" in out


def test_points_without_faces_are_taken(weights, tmp_path, capsys):
    np.savetxt(tmp_path / "ball.xyz", sphere(4).vertices)
    assert run(capsys, "tokenize", tmp_path / "ball.xyz", "--model", weights)[0] == 0
    assert run(capsys, "decode", tmp_path / "ball.omni.safetensors", "--model", weights)[0] == 0
    back = shapes.read(tmp_path / "ball.decoded.ply")
    radius = np.linalg.norm(back.vertices, axis=1)
    assert abs(radius.mean() - 1) < 0.05
    assert not back.has_colors


def test_weights_without_a_3d_stage_fail_in_a_sentence(tmp_path, capsys):
    shapes.write(tmp_path / "box.ply", box())
    status, _, err = run(capsys, "tokenize", tmp_path / "box.ply", "--model", "tiny-kl")
    assert status == 3
    assert "carry no 3D stage" in err
    assert "bug" not in err


def test_a_bad_mesh_fails_and_the_others_are_done(weights, tmp_path, capsys):
    shapes.write(tmp_path / "good.ply", box())
    (tmp_path / "bad.ply").write_text("ply\nnothing\n")
    status, _, err = run(capsys, "tokenize", tmp_path, "--model", weights)
    assert status == 3
    assert "bad.ply" in err
    assert (tmp_path / "good.omni.safetensors").exists()
    assert run(capsys, "tokenize", tmp_path / "good.ply", "--dry-run")[0] == 0


def test_a_shape_is_not_compared_with_a_picture(tmp_path, capsys, clips):
    shapes.write(tmp_path / "box.ply", box())
    (tmp_path / "a.png").write_bytes(b"")
    status, _, err = run(capsys, "compare", tmp_path / "box.ply", tmp_path / "a.png")
    assert status == 3
    assert "no 3D asset" in err


def data_folder() -> Path:
    return Path(os.environ.get("OMNITOK_DATA") or Path(__file__).parents[3] / "shared/data")


@pytest.mark.skipif("tiny-3d" not in shipped(), reason="no weights of tiny-3d in the package")
def test_the_weights_of_the_package_keep_a_bunny(tmp_path, capsys):
    bunny = data_folder() / "mesh" / "bunny" / "bunny.ply"
    if not bunny.exists():
        pytest.skip(f"no mesh at {bunny}; set OMNITOK_DATA to the folder that holds the data")
    tokens = tmp_path / "bunny.omni.safetensors"
    assert run(capsys, "tokenize", bunny, "-o", tokens)[0] == 0
    status, out, _ = run(capsys, "compare", bunny, tokens, "--json")
    scores = json.loads(out)
    assert status == 0
    assert scores["iou"] > 0.93
    assert scores["f_score_0.02"] > 0.9
