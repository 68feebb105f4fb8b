"""3D assets beside pictures in one run: drawn, joined, resumed."""

from __future__ import annotations

import pytest
from small_runs import FSQ, SMALL, corpus, losses, run_dict  # noqa: F401 - a fixture

from omnitok.config import PlanesConfig
from omnitok.train.config import ConfigError, TrainConfig, from_dict
from omnitok.train.log import read_log
from omnitok.train.loop import Trainer, TrainingError
from shapes.items import find_shapes
from shapes.mesh import write
from shapes.procedural import random_shape

# ruff: noqa: F811 - tests take the fixture by its name

PLANES = {"side": 2, "cells": 4, "fine": 4, "bins": 8, "features": 8, "hidden": 8}
FIELD = {"inside": 1.0, "color": 0.3, "kl": 1e-6}


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    """Three meshes and a broken one."""
    root = tmp_path_factory.mktemp("meshes")
    for seed in range(3):
        write(root / f"{seed}.ply", random_shape(seed, lattice_points=24))
    (root / "broken.ply").write_bytes(b"ply\nnothing")
    return root


def joint(quantizer=None):
    """Pictures, then pictures and meshes, then those discrete."""
    values = run_dict(10)
    values["model"] = {**SMALL, "planes": PLANES}
    mesh = {"kind": "meshes", "batch": 2, "sizes": [[64, 16, 1]], "losses": FIELD}
    pixels = values["stages"][1]["mix"][2]
    values["stages"][1] |= {"steps": 5, "mix": [pixels, mesh], "order": "cycle"}
    discrete = {"inside": 1.0, "color": 0.3}
    values["stages"].append(
        {
            "name": "discrete",
            "steps": 3,
            "mix": [pixels, mesh | {"losses": discrete}],
            "losses": {"rmse": 1.0},
            "quantizer": FSQ,
            "order": "cycle",
        }
    )
    return from_dict(TrainConfig, values)


def test_meshes_join_a_run_and_it_resumes_exactly(corpus, meshes, tmp_path):
    items = {"small": {**corpus, "meshes": find_shapes(meshes, PlanesConfig(**PLANES))}}
    run = Trainer(joint(), tmp_path / "whole", items)
    fresh = run.model.planes.embed.weight.clone()
    run.run()
    rows = read_log(tmp_path / "whole/log.csv")
    kinds = [row["kind"] for row in rows]
    assert kinds[2:] == ["videos", "meshes"] * 2 + ["videos"] + ["videos", "meshes", "videos"]
    field = [row["inside"] for row in rows if row["kind"] == "meshes"]
    assert field[0] < 0.7  # starts as principal components, not as noise
    assert not fresh.equal(run.model.planes.embed.weight)
    assert {str(meshes / "broken.ply")} >= set(run.broken)
    part = Trainer(joint(), tmp_path / "part", items)
    part.run(0.0)
    Trainer(joint(), tmp_path / "part", items).run()
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")


def test_meshes_alone_train_a_tokenizer_and_keep_its_quantizer(meshes, tmp_path):
    values = run_dict(4)
    mesh = {"kind": "meshes", "batch": 2, "sizes": [[64, 16, 1]], "losses": FIELD}
    values["model"] = {**SMALL, "planes": PLANES}
    for stage in values["stages"]:
        stage["mix"] = [mesh]
    items = {"small": {"meshes": find_shapes(meshes, PlanesConfig(**PLANES))}}
    run = Trainer(from_dict(TrainConfig, values), tmp_path / "run", items)
    run.run()
    assert float(read_log(tmp_path / "run/log.csv")[0]["inside"]) < 0.7
    values["stages"][1] |= {"quantizer": FSQ, "mix": [mesh | {"losses": {"inside": 1.0}}]}
    run = Trainer(from_dict(TrainConfig, values), tmp_path / "other", items)
    with pytest.raises(TrainingError, match="no later batch has any; add some to the mix"):
        run.run()


def test_meshes_without_a_3d_stage_are_refused(corpus, meshes, tmp_path):
    values = run_dict()
    values["stages"][1]["mix"].append(
        {"kind": "meshes", "batch": 2, "sizes": [[64, 16, 1]], "losses": FIELD}
    )
    items = {"small": {**corpus, "meshes": find_shapes(meshes, PlanesConfig(**PLANES))}}
    with pytest.raises(ConfigError, match="3D stage"):
        Trainer(from_dict(TrainConfig, values), tmp_path, items)
