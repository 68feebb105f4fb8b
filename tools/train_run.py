"""What a training run needs from outside: its files, and scores and pictures on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitok.config import PlanesConfig
from omnitok.metrics.validation import clip_psnr
from omnitok.model import Autoencoder
from omnitok.pixels import to_float, to_uint8
from omnitok.train.config import ConfigError, DatasetConfig, TrainConfig, ValidationConfig
from omnitok.train.network import Model, Network, build_model
from omnitok.train.sampler import Item, SampleError
from shapes.datasets import Prepared
from shapes.items import find_shapes
from video import VideoError, write
from video.data.crops import centre_clip
from video.data.datasets import find_items

SHOWN = 4  # clips of each set that pictures are kept of
QUERIES = 10_000  # of a shape


def find_data(config: TrainConfig) -> dict[str, Mapping[str, Sequence[Item]]]:
    """The files of every dataset of a run, by name and kind."""
    planes = _planes_of(config)
    return {name: _find_all(dataset, planes) for name, dataset in config.data.items()}


def _planes_of(config: TrainConfig) -> PlanesConfig | None:
    with torch.device("meta"):
        return getattr(build_model(config.model, None).config, "planes", None)


def _find_all(dataset: DatasetConfig, planes: PlanesConfig | None) -> dict[str, Sequence[Item]]:
    """Pictures and videos of a dataset, and meshes if the model takes them."""
    meshes: list[Any] = []
    if planes is not None and Path(dataset.path).is_dir():
        meshes = find_shapes(Path(dataset.path), planes)
    try:
        found: dict[str, Sequence[Item]] = dict[str, Any](find_items(dataset))
    except ConfigError:
        if not meshes:
            raise
        found = {}
    return {**found, "meshes": meshes} if meshes else found


class Validator:
    """Scores a model on held-out clips, and keeps pictures and side-by-side clips.

    Args:
        config: The run.
        out: Its folder; pictures go to `pictures/`.
        device: Where to compute.

    Attributes:
        notes: Sets that hold no files, and files that could not be read.
    """

    def __init__(self, config: TrainConfig, out: Path, device: torch.device) -> None:
        self.folder, self.device = out / "pictures", device
        self.notes: list[str] = []
        self.sets: dict[str, list[Tensor]] = {}
        self.shapes: dict[str, list[Prepared]] = {}
        planes = _planes_of(config)
        for name, wanted in config.validation.items():
            if wanted.kind != "meshes":
                if clips := self._read(name, wanted):
                    self.sets[name] = clips
            elif planes is not None and (shapes := self._read_shapes(name, wanted, planes)):
                self.shapes[name] = shapes

    def _read_shapes(
        self, name: str, wanted: ValidationConfig, planes: PlanesConfig
    ) -> list[Prepared]:
        shapes = []
        for item in find_shapes(Path(wanted.data.path), planes)[: wanted.count]:
            try:
                shapes.append(item.shape())
            except SampleError as error:
                self.notes.append(f"validation {name}: passed over {item.name}: {error}")
        if not shapes:
            self.notes.append(f"no validation on {name}: {wanted.data.path} holds no meshes")
        return shapes

    def _read(self, name: str, wanted: ValidationConfig) -> list[Tensor]:
        try:
            items = find_items(wanted.data)[wanted.kind]
        except ConfigError as error:
            self.notes.append(f"no validation on {name}: {error}")
            return []
        frames, side, _ = wanted.size
        clips = []
        for item in items[: wanted.count]:
            try:
                with item.here() as file:
                    numbers = torch.arange(min(frames, file.num_frames())).numpy()
                    clips.append(centre_clip(file.frames(numbers), frames, side))
            except (VideoError, OSError) as error:
                self.notes.append(f"validation {name}: passed over {item.name}: {error}")
        if not clips:
            self.notes.append(f"no validation on {name}: {wanted.data.path} holds no {wanted.kind}")
        return clips

    @torch.no_grad()
    def __call__(self, model: Model, step: int) -> dict[str, float]:
        """Mean PSNR of every set, and IoU of shapes, in bfloat16 as training computes."""
        network, scores = Network(model), dict[str, float]()
        for name, shapes in self.shapes.items():
            assert isinstance(model, Autoencoder)
            values = [self._iou(model, shape) for shape in shapes]
            scores[f"iou_{name}"] = round(sum(values) / len(values), 4)
        for name, clips in self.sets.items():
            values = []
            for n, clip in enumerate(clips):
                x = to_float(clip[None].to(self.device), torch.float32)
                with torch.autocast(self.device.type, torch.bfloat16):
                    recon = network(x)[0].recon.float()
                values.append(float(clip_psnr(recon, x)))
                if n < SHOWN:
                    self._draw(f"{name}-{n}", step, clip, to_uint8(recon[0]).cpu())
            scores[f"psnr_{name}"] = round(sum(values) / len(values), 3)
        return scores

    def _iou(self, model: Autoencoder, shape: Prepared) -> float:
        """Of the field at points spread evenly over the box."""
        assert model.planes is not None
        even = torch.nonzero(shape.weights == 1)[:QUERIES, 0]
        raster = shape.raster.planes()[None].to(self.device)
        points = shape.points[even].float()[None].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            z = model.quantizer(model.encode_planes(raster)).z_q
            field, _ = model.planes.field_at(model.decode_planes(z), points)
        found, truth = field[0].cpu() > 0, shape.inside[even]
        return float((found & truth).sum() / (found | truth).sum().clamp_min(1))

    def _draw(self, name: str, step: int, clip: Tensor, recon: Tensor) -> None:
        pair = torch.cat([clip, recon], dim=3).transpose(0, 1)
        suffix = "png" if len(pair) == 1 else "mp4"
        folder = self.folder / f"step-{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{name}.{suffix}", pair)
