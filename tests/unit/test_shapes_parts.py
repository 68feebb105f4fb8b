"""Parts made by rule are closed, thin and the same for the same seed."""

import numpy as np
import pytest

from shapes.parts import random_part
from shapes.solid import repair


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_closed_and_fill_less_than_their_box(seed):
    mesh = random_part(seed, 48)
    solid = repair(mesh)
    assert solid.closed
    assert mesh.has_colors
    volume = (
        np.einsum(
            "fi,fi->", solid.triangles[:, 0], np.cross(*solid.triangles[:, 1:].swapaxes(0, 1))
        )
        / 6
    )
    box = np.prod(np.ptp(mesh.vertices, axis=0))
    assert 0 < volume < 0.9 * box
    np.testing.assert_array_equal(random_part(seed, 48).vertices, mesh.vertices)
