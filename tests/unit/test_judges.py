"""Judges of decoded clips, on stand-ins for their networks; the real ones: test_judges_real."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from omnitok.checkpoint import CheckpointError
from omnitok.losses.trunk import NETWORK_KEY
from omnitok.metrics.mobile_net import MobileNet
from tools import judge_faces, judge_labels
from tools.judge_efficientnet import EFFICIENTNET, load_efficientnet
from tools.judge_faces import SameFace
from tools.judge_labels import EfficientNetLabel, MobileNetLabel
from tools.judge_text import LOOKS, ReadText
from tools.judges import Absent, Once, assemble


def grey(*levels: int) -> torch.Tensor:
    """One frame of each level, 32 pixels square."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)


def test_a_judge_that_cannot_be_had_keeps_its_place_and_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("OMNITOK_FEATURES", str(tmp_path))
    for module in ("rapidocr_onnxruntime", "dlib"):
        monkeypatch.setitem(sys.modules, module, None)
    kinds = (MobileNetLabel, EfficientNetLabel, ReadText, SameFace)
    judges = assemble(kinds, "cpu")
    advice = [*["python -m tools.feature_nets"] * 2, *["pip install 'omnitok[judge]'"] * 2]
    for kind, judge, what in zip(kinds, judges, advice, strict=True):
        assert isinstance(judge, Absent)
        assert (judge.name, judge.columns, judge.empty) == (kind.name, kind.columns, "-")
        assert what in judge.why
        assert judge.compare(grey(1), grey(1)) == {}
    keys = [column.key for judge in judges for column in judge.columns]
    assert len(set(keys)) == len(keys) == 5


def test_faces_need_the_weights_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", SimpleNamespace())
    monkeypatch.setattr(judge_faces, "find_spec", lambda name: None)
    (judge,) = assemble([SameFace], "cpu")
    assert isinstance(judge, Absent)
    assert "face_recognition_models is not installed; pip install" in judge.why


def test_a_clip_is_looked_at_once_while_it_is_the_same():
    looked = []
    see = Once(lambda frames: looked.append(frames) or len(looked))
    a, b = grey(1), grey(1)
    assert [see(a), see(a), see(b), see(b), see(a)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("kind", "load"),
    [(MobileNetLabel, "load_mobilenet"), (EfficientNetLabel, "load_efficientnet")],
)
def test_labels_that_stay_are_counted(monkeypatch, kind, load):
    class Brightness(torch.nn.Module):
        def forward(self, x_NCHW):
            return x_NCHW.mean((1, 2, 3))[:, None]

        def classify(self, features_ND):
            return torch.cat([-features_ND, features_ND], dim=1)  # dark, bright

    monkeypatch.setattr(judge_labels, load, lambda path: Brightness())
    judge = kind("cpu")
    full, compact = grey(*[10, 10, 200, 200] * 10), grey(*[10, 200, 200, 250] * 10)
    assert judge.compare(full, compact) == {judge.columns[0].key: 0.75}


def random_efficientnet() -> dict[str, torch.Tensor]:
    random, tensors = torch.Generator().manual_seed(0), {}
    for key, shape in EFFICIENTNET.shapes().items():
        x = torch.randn(shape, generator=random)
        if len(shape) > 1:
            tensors[key] = x * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            tensors[key] = 0.1 * x + float(key.endswith((".weight", "running_var")))
    return tensors


def test_efficientnet_is_the_plain_reading_of_its_table():
    tensors = random_efficientnet()

    def layer(x, conv, norm, stride=1):
        weight = tensors[f"{conv}.weight"]
        less, more = (weight.shape[-1] - stride) // 2, (weight.shape[-1] - stride + 1) // 2
        x = F.pad(x, (less, more, less, more))
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{norm}.{name}"] for name in names), eps=1e-3)

    frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x = layer((frames - 0.498) / 0.502, "_conv_stem", "_bn0", 2).clamp(0, 6)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    joined = [2, 4, 6, 7, 9, 10, 12, 13, 14]
    for number, stride in enumerate(strides):
        at, start = f"_blocks.{number}", x
        if number:
            x = layer(x, f"{at}._expand_conv", f"{at}._bn0").clamp(0, 6)
        x = layer(x, f"{at}._depthwise_conv", f"{at}._bn1", stride).clamp(0, 6)
        x = layer(x, f"{at}._project_conv", f"{at}._bn2")
        x = x + start if number in joined else x
    features = layer(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    network = MobileNet(EFFICIENTNET, tensors)
    found = network(2 * frames - 1)
    assert (found - features).norm() < 1e-4 * features.norm()
    wanted = F.linear(found, tensors["_fc.weight"], tensors["_fc.bias"])
    torch.testing.assert_close(network.classify(found), wanted)


def test_a_file_that_is_no_efficientnet_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for name, why in ((None, "network None"), ("efficientnet-lite0", "not hold the tensors")):
        save_file({"a": torch.zeros(1)}, path, {NETWORK_KEY: name} if name else None)
        with pytest.raises(CheckpointError, match=why):
            load_efficientnet(path)
    save_file(random_efficientnet(), path, {NETWORK_KEY: "efficientnet-lite0"})
    assert isinstance(load_efficientnet(path), MobileNet)


@pytest.fixture
def reader(monkeypatch):
    """A judge whose reader looks words up by the level of blue, and the levels it was shown."""
    texts = {1: ["No parking", "no dogs"], 2: ["NO PARKING"], 3: ["no no no"], 4: None}
    shown = []

    def read(frame):
        assert frame.shape == (32, 32, 3)
        shown.append(int(frame[0, 0, 0]))
        lines = texts[shown[-1]]
        return lines and [[None, line, 0.9] for line in lines], None

    package = SimpleNamespace(RapidOCR=lambda intra_op_num_threads: read)
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", package)
    return ReadText("cpu"), shown


def blue(*levels: int) -> torch.Tensor:
    frames = torch.zeros(len(levels), 3, 32, 32, dtype=torch.uint8)
    frames[:, 2] = grey(*levels)[:, 0]
    return frames


@pytest.mark.parametrize(
    ("full", "compact", "kept"),
    [(1, 1, 1), (1, 2, 2 / 4), (1, 3, 2 / 4), (2, 1, 1), (3, 2, 1 / 3), (1, 4, 0)],
)
def test_words_that_stay_are_counted_as_often_as_they_stand_there(reader, full, compact, kept):
    judge, _ = reader
    assert judge.compare(blue(full), blue(compact)) == {"words_kept": pytest.approx(kept)}


def test_some_frames_are_read_and_those_of_the_full_clip_once(reader):
    judge, shown = reader
    full = blue(1, *[9] * 7, 2, *[9] * 7, 4)
    for compact, kept in ((full, 1), (blue(*[4] * 17), 0)):
        assert judge.compare(full, compact) == {"words_kept": kept}
    assert shown == [1, 2, 4, 1, 2, 4, 4, 4, 4]
    assert LOOKS == 3


def test_a_clip_without_text_says_so_and_its_compact_one_is_not_read(reader):
    judge, shown = reader
    assert judge.compare(blue(4, 4), blue(1, 1)) == {}
    assert shown == [4, 4]


class Box(tuple):
    """Left and right of a face that is as high as the frame."""

    def area(self):
        return 32 * max(0, self[1] - self[0])

    def intersect(self, other):
        return Box((max(self[0], other[0]), min(self[1], other[1])))


@pytest.fixture
def faces(monkeypatch):
    """A judge to whom a face is a run of bright columns, and its identity the brightness."""

    def detect(frame, doubled):
        bright = np.flatnonzero(np.diff(frame[0, :, 0] >= 100, prepend=False, append=False))
        return [Box(map(int, pair)) for pair in bright.reshape(-1, 2)]

    def identity(frame, place):
        return [frame[0, place[0], 0] / 100, 0.0]

    dlib = SimpleNamespace(
        get_frontal_face_detector=lambda: detect,
        shape_predictor=lambda path: lambda frame, place: place,
        face_recognition_model_v1=lambda path: SimpleNamespace(compute_face_descriptor=identity),
    )
    monkeypatch.setitem(sys.modules, "dlib", dlib)
    monkeypatch.setattr(judge_faces, "find_spec", lambda name: SimpleNamespace(origin="a/b.py"))
    return SameFace("cpu")


def people(*frames: dict[tuple[int, int], int]) -> torch.Tensor:
    """Frames with faces: columns and brightness of each."""
    clip = torch.zeros(len(frames), 3, 32, 32, dtype=torch.uint8)
    for frame, shown in zip(clip, frames, strict=True):
        for (left, right), level in shown.items():
            frame[..., left:right] = level
    return clip


def test_the_largest_face_is_followed_to_where_it_is_now(faces):
    full = people({(2, 6): 250, (10, 20): 100}, {}, {(10, 20): 100})
    compact = people({(2, 6): 250, (12, 24): 140}, {(2, 6): 100}, {(8, 11): 250, (12, 18): 180})
    found = faces.compare(full, compact)
    assert found == {"face_distance": pytest.approx(0.6), "same_face": 0.5}


def test_a_face_that_is_lost_is_compared_with_what_stands_in_its_place(faces):
    full, compact = people({(10, 20): 100}), people({(10, 20): 30, (22, 30): 100})
    assert faces.compare(full, compact) == {"face_distance": pytest.approx(0.7), "same_face": 0}


def test_a_clip_without_a_face_says_so(faces):
    assert faces.compare(people({}), people({(10, 20): 100})) == {}
