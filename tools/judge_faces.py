"""Judges by whose face it is.

Shape suffixes: T frames, C colours, H and W pixels.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from tools.judges import PACKAGES, AbsentError, Column, Once, percent, require

SAME = 0.6  # the network was trained to keep pictures of one person closer than this
DOUBLED = 1  # times that a frame is enlarged: the detector needs faces of 80 pixels


class SameFace:
    """Distance between the largest face of a frame with all tokens and what it became.

    Identities are compared, not pixels. Where no face is found any more, what stands in its place
    is taken for one, so that a method gains nothing by losing faces.
    """

    name = "faces (dlib)"
    columns: tuple[Column, ...] = (
        Column("face_distance", "face distance", "{:.3f}".format),
        Column("same_face", f"same face (below {SAME})", percent),
    )
    empty = "no face"

    def __init__(self, device: str) -> None:
        del device  # the network has a runtime of its own
        dlib = require("dlib")
        models = find_spec("face_recognition_models")  # its code needs what Python no longer has
        if models is None or models.origin is None:
            raise AbsentError(f"face_recognition_models is not installed; {PACKAGES}")
        files = Path(models.origin).parent / "models"
        self._detect = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(files / "shape_predictor_5_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(
            str(files / "dlib_face_recognition_resnet_model_v1.dat")
        )
        self._seen = Once(self._faces)

    def compare(self, full_TCHW: Tensor, compact_TCHW: Tensor) -> dict[str, float]:
        """The mean distance and the share of faces that stay, over frames that show one."""
        distances = []
        for face, frame in zip(self._seen(full_TCHW), _pixels(compact_TCHW), strict=True):
            if face is not None:
                place, identity = face
                now = [box for box in self._detect(frame, DOUBLED) if _shared(box, place)]
                nearest = max(now, key=lambda box: _shared(box, place), default=place)
                distances.append(np.linalg.norm(identity - self._identity(frame, nearest)))
        if not distances:
            return {}
        return {
            "face_distance": fmean(map(float, distances)),
            "same_face": fmean(float(d < SAME) for d in distances),
        }

    def _faces(self, frames_TCHW: Tensor) -> list[tuple[Any, np.ndarray] | None]:
        """Place and identity of the largest face of each frame."""
        found: list[tuple[Any, np.ndarray] | None] = []
        for frame in _pixels(frames_TCHW):
            place = max(self._detect(frame, DOUBLED), key=lambda box: box.area(), default=None)
            found.append(None if place is None else (place, self._identity(frame, place)))
        return found

    def _identity(self, frame: np.ndarray, place: Any) -> np.ndarray:
        """[128] the vector that stands for a person."""
        landmarks = self._landmarks(frame, place)
        return np.array(self._network.compute_face_descriptor(frame, landmarks))


def _pixels(frames_TCHW: Tensor) -> np.ndarray:
    """[T, H, W, C] as dlib takes them."""
    return frames_TCHW.permute(0, 2, 3, 1).contiguous().numpy()


def _shared(a: Any, b: Any) -> int:
    """Pixels that two boxes share."""
    return int(a.intersect(b).area())
