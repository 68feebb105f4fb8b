"""Judges with their real networks on real pictures, where both are there."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import video
from omnitok.checkpoint import hash_weights, read_tensors
from tools.feature_nets import SHA256, folder
from tools.judge_efficientnet import load_efficientnet
from tools.judge_faces import SameFace
from tools.judge_text import ReadText
from tools.judges import AbsentError

DATA = Path(os.environ.get("OMNITOK_DATA") or Path(__file__).parents[3] / "shared/data")


def frames_of(name: str, every: int = 1) -> torch.Tensor:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return video.read(path).frames[::every]


def made(kind):
    try:
        return kind("cpu")
    except AbsentError as error:
        pytest.skip(str(error))


def blurred(frames: torch.Tensor, pixels: int) -> torch.Tensor:
    small = F.interpolate(frames.float(), scale_factor=1 / pixels, mode="area")
    return F.interpolate(small, frames.shape[2:], mode="bilinear").round().to(torch.uint8)


def test_efficientnet_knows_what_is_in_a_picture():
    path = folder() / "efficientnet-lite0.safetensors"
    if not path.exists():
        pytest.skip("there are no networks; run: python -m tools.feature_nets")
    assert hash_weights(read_tensors(path)[1]) == SHA256["efficientnet-lite0"]
    network = load_efficientnet(path)
    for name, label in (("skimage_coffee", 967), ("gradio_lion", 291), ("gradio_cheetah1", 293)):
        x = frames_of(f"image/{name}.jpg") / 127.5 - 1
        side = min(x.shape[2:])
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = F.interpolate(x[..., top : top + side, left : left + side], 224, mode="area")
        found = network.classify(network(x)).softmax(-1)[0]
        assert int(found.argmax()) == label
        assert float(found.max()) > 0.5


def test_text_of_a_sign_is_read_and_lost_in_blur():
    judge = made(ReadText)
    sign = frames_of("image_text/opencv_scenetext01.jpg")
    (words,) = judge._words(sign)
    assert {"notice", "double", "parking", "prohibited"} <= set(words)
    assert judge.compare(sign, sign) == {"words_kept": 1}
    assert judge.compare(sign, blurred(sign, 20)) == {"words_kept": 0}
    tree = frames_of("video/tree_wind.mp4", every=30)
    assert judge.compare(tree, tree) == {}


def test_a_face_is_known_again_and_is_not_that_of_others():
    judge = made(SameFace)
    a, b = frames_of("video/webcam_face.mp4", every=20)[[0, -1]].split(1)
    same = judge.compare(a, b)
    assert same["same_face"] == 1
    assert same["face_distance"] < 0.45
    assert judge.compare(a, a) == {"face_distance": 0, "same_face": 1}
    other = frames_of("image/skimage_astronaut.jpg")[..., 20:220, 120:320]
    other = F.interpolate(other.float(), a.shape[2:], mode="bilinear").to(torch.uint8)
    assert judge.compare(a, other)["face_distance"] > 0.6
    gone = judge.compare(a, torch.full_like(a, 128))
    assert gone["same_face"] == 0
    tree = frames_of("video/tree_wind.mp4", every=30)
    assert judge.compare(tree, tree) == {}
    pixel = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    assert judge.compare(pixel, pixel) == {}
