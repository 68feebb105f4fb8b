"""Metrics of shapes and published ways of reading planes, against what their code gave."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnitok.planes import projections, sample_planes
from shapes.metrics import distances, iou
from shapes.triplane import DIRECT3D, EG3D, TRIPOSR, ConvONet

CONVONET_AXES = {"xz": (0, 2), "xy": (0, 1), "yz": (1, 2)}


@pytest.fixture
def metrics(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "flexible" / "geometry_metrics.safetensors")


@pytest.fixture
def sampling(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "flexible" / "triplane_sampling.safetensors")


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a).float(), b.float(), atol=2e-5, rtol=1e-4)


def test_metrics_of_two_clouds_are_the_published_ones(metrics):
    clouds = [metrics[f"{a}/{b}"].numpy() for b in ("points", "normals") for a in ("pred", "gt")]
    ours = distances(*clouds)
    theirs = {k.removeprefix("convonet/"): v[0] for k, v in metrics.items()}
    close(ours.accuracy.mean(), theirs["accuracy"])
    close((ours.accuracy**2).mean(), theirs["accuracy2"])
    close(ours.completeness.mean(), theirs["completeness"])
    close((ours.completeness**2).mean(), theirs["completeness2"])
    close(ours.chamfer_l1, theirs["chamfer-L1"])
    close(ours.chamfer_l2, theirs["chamfer-L2"])
    close(ours.normal_consistency, theirs["normals"])
    close(ours.normal_accuracy.mean(), theirs["normals_accuracy"])
    close(ours.normal_completeness.mean(), theirs["normals_completeness"])
    for name, threshold in (("f-score", 0.01), ("f-score-15", 0.015), ("f-score-20", 0.02)):
        close(ours.f_score(threshold), torch.nan_to_num(theirs[name]))
    close(ours.chamfer_sum, theirs["vecset/cd_sum_of_means"])
    for threshold in (0.01, 0.02, 0.05):
        close(ours.f_score(threshold), theirs[f"fscore/tau{threshold}"])
        close(ours.precision(threshold), theirs[f"fscore/precision{threshold}"])
        close(ours.recall(threshold), theirs[f"fscore/recall{threshold}"])


def test_iou_of_occupancies_is_the_published_one(metrics):
    close(iou(metrics["iou/a"].numpy(), metrics["iou/b"].numpy()), metrics["iou/value"])


@pytest.mark.parametrize(("name", "convention"), [("eg3d", EG3D), ("direct3d", DIRECT3D)])
def test_planes_are_read_as_published(name, convention, sampling):
    points = sampling["points"]
    places = convention.places(points).flip(-1)  # theirs: column, row
    torch.testing.assert_close(places, sampling[f"{name}/projections"], atol=1e-6, rtol=0)
    close(convention.sample(sampling["planes"], points), sampling[f"{name}/features"])


def test_planes_are_read_as_by_triposr(sampling):
    close(TRIPOSR.sample(sampling["planes"], sampling["points"]), sampling["triposr/features"])


def test_planes_are_filled_and_read_as_by_convonet(sampling):
    net, points = ConvONet(), sampling["convonet/points"]
    total = 0
    for name, axes in CONVONET_AXES.items():
        recorded = {
            key.removeprefix(f"convonet/{name}/"): value
            for key, value in sampling.items()
            if key.startswith(f"convonet/{name}/")
        }
        close(net.places(points, axes), recorded["coords01"])
        assert net.cells(points, axes, 8).equal(recorded["cell_index"].long())
        plane = net.scatter(sampling["convonet/point_features"], points, axes, 8)
        close(plane, recorded["plane"])
        close(net.sample(plane, points, axes), recorded["sampled"])
        total = total + net.sample(plane, points, axes)
    close(total, sampling["convonet/sampled_sum"])


def test_our_planes_say_at_the_centre_of_a_cell_what_was_written_there():
    side = 8
    planes = torch.randn(1, 3, 5, side, side)
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    i, j, k = 1, 6, 3
    point = torch.stack([centres[i], centres[j], centres[k]])[None, None]
    read = sample_planes(planes, projections(point))[0, :, 0]
    for plane, (row, column) in enumerate([(i, j), (i, k), (j, k)]):
        torch.testing.assert_close(read[plane], planes[0, plane, :, row, column])
