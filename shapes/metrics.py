"""How close two shapes are.

Distances are in the units of what is compared; figures of this project are of shapes in the box
from -1 to 1 (longest side 1.9), so that a threshold of 0.02 is about one hundredth of the longest
side.

Shape suffixes: M points, A axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shapes.extras import load_mesh_package

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Distances:
    """Distances from each of two clouds to the other.

    Attributes:
        accuracy: [M] from each found point to the nearest true one.
        completeness: [M'] from each true point to the nearest found one.
        normal_accuracy: [M] absolute cosines between the normals there, or None.
        normal_completeness: [M'] the same the other way, or None.
    """

    accuracy: Floats
    completeness: Floats
    normal_accuracy: Floats | None = None
    normal_completeness: Floats | None = None

    @property
    def chamfer_l1(self) -> float:
        """Half the sum of the two mean distances (Mescheder et al. 2019, arXiv:1812.03828)."""
        return 0.5 * float(self.accuracy.mean() + self.completeness.mean())

    @property
    def chamfer_l2(self) -> float:
        """Half the sum of the two mean squared distances."""
        return 0.5 * float(np.square(self.accuracy).mean() + np.square(self.completeness).mean())

    @property
    def chamfer_sum(self) -> float:
        """The sum of the two mean distances, without the half (3DShape2VecSet)."""
        return 2 * self.chamfer_l1

    @property
    def normal_consistency(self) -> float:
        """Mean of the two mean absolute cosines; blind to surfaces that are inside out."""
        if self.normal_accuracy is None or self.normal_completeness is None:
            raise ValueError("normal consistency needs the normals of both clouds")
        return 0.5 * float(self.normal_accuracy.mean() + self.normal_completeness.mean())

    def precision(self, threshold: float) -> float:
        """Share of the found points within `threshold` of a true one."""
        return float((self.accuracy <= threshold).mean())

    def recall(self, threshold: float) -> float:
        """Share of the true points within `threshold` of a found one."""
        return float((self.completeness <= threshold).mean())

    def f_score(self, threshold: float) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        precision, recall = self.precision(threshold), self.recall(threshold)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def distances(
    found: Floats,
    true: Floats,
    found_normals: Floats | None = None,
    true_normals: Floats | None = None,
) -> Distances:
    """Distances between two clouds [M, 3], each with unit normals or without."""
    spatial = load_mesh_package("scipy.spatial")
    accuracy, there = spatial.cKDTree(true).query(found, workers=-1)
    completeness, here = spatial.cKDTree(found).query(true, workers=-1)
    if found_normals is None or true_normals is None:
        return Distances(accuracy, completeness)
    return Distances(
        accuracy,
        completeness,
        np.abs(np.einsum("ma,ma->m", found_normals, true_normals[there])),
        np.abs(np.einsum("ma,ma->m", true_normals, found_normals[here])),
    )


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """[...] intersection over union of occupancies [..., M], inside from one half on.

    1 where both are empty.
    """
    inside_a, inside_b = np.asarray(a) >= 0.5, np.asarray(b) >= 0.5
    union = (inside_a | inside_b).sum(axis=-1)
    both = (inside_a & inside_b).sum(axis=-1)
    return np.where(union > 0, both / np.maximum(union, 1), 1.0)
