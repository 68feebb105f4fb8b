"""One shape of a training set: how a random part of its field is drawn.

Shape suffixes: see `omnitok.planes`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from omnitok.config import PlanesConfig
from omnitok.train.config import SourceConfig
from omnitok.train.sampler import SampleError
from shapes.datasets import Prepared, draw, prepared
from shapes.extras import ShapesError
from shapes.mesh import read

SUFFIXES = (".ply", ".obj", ".stl", ".glb", ".gltf", ".off")


class ShapeItem:
    """A mesh file, prepared when it is first drawn and kept; or a prepared shape.

    Args:
        path: A mesh, or what `Prepared.save` wrote.
        config: How shapes enter the model.
        cache: Folder for what is prepared.
    """

    weight = 1.0

    def __init__(self, path: Path, config: PlanesConfig, cache: Path) -> None:
        self.name, self._path, self._config, self._cache = str(path), path, config, cache
        self._shape: Prepared | None = None

    def sample(
        self, rng: np.random.Generator, source: SourceConfig, size: tuple[int, int, int]
    ) -> dict[str, Tensor]:
        """Tensors of a `PlaneBatch`; `size` is (queries, points of the surface, 1)."""
        return vars(draw(self.shape(), size[0], size[1], rng, turn=True))

    def shape(self) -> Prepared:
        """The prepared shape.

        Raises:
            SampleError: There is none to be had from the file.
        """
        if self._shape is None:
            try:
                self._shape = self._load()
            except (ShapesError, OSError) as error:
                raise SampleError(str(error)) from error
        return self._shape

    def _load(self) -> Prepared:
        if self._path.suffix == ".safetensors":
            return Prepared.load(self._path)
        return prepared(read(self._path), self._config, self._cache)


def find_shapes(root: Path, config: PlanesConfig) -> list[ShapeItem]:
    """The shapes of a folder: those that its `shapes.json` lists, or all meshes in it."""
    index = root / "shapes.json"
    if index.exists():
        files = [root / entry["file"] for entry in json.loads(index.read_text())]
    else:
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [ShapeItem(path, config, root / ".omnitok-prepared") for path in files]
