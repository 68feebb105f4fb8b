"""Judges by label: two classifiers, trained apart from each other.

Shape suffixes: T frames, C colours, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from omnitok.checkpoint import CheckpointError
from omnitok.metrics.features import cut, load_mobilenet
from omnitok.metrics.mobile_net import MobileNet
from tools.feature_nets import folder
from tools.judge_efficientnet import load_efficientnet
from tools.judges import AbsentError, Column, Once, percent

AT_ONCE = 32  # frames


class SameLabel:
    """Share of frames that a classifier gives the same label as with all tokens.

    Args:
        load: Reads the classifier's file.
        file: Its name in the folder of `tools.feature_nets`.
        device: Where the classifier computes.
    """

    columns: tuple[Column, ...]
    empty = "no label"  # never shown: a classifier always finds one

    def __init__(self, load: Callable[[Path], MobileNet], file: str, device: str) -> None:
        try:
            network = load(folder() / file)
        except CheckpointError as error:
            raise AbsentError(f"{error}; python -m tools.feature_nets fetches it") from error
        self._network, self._device = network.to(device), device
        self._seen = Once(self._labels)

    def compare(self, full_TCHW: Tensor, compact_TCHW: Tensor) -> dict[str, float]:
        """The share of labels that stay."""
        same_T = self._seen(full_TCHW) == self._labels(compact_TCHW)
        return {self.columns[0].key: float(same_T.float().mean())}

    @torch.no_grad()
    def _labels(self, frames_TCHW: Tensor) -> Tensor:
        """[T] the class of each frame."""
        parts = [cut(part, 1)[0].to(self._device) for part in torch.split(frames_TCHW, AT_ONCE)]
        return torch.cat([self._network.classify(self._network(x)).argmax(-1) for x in parts])


class MobileNetLabel(SameLabel):
    """By MobileNetV2."""

    name = "MobileNetV2"
    columns: tuple[Column, ...] = (Column("same_label", "same label (MobileNetV2)", percent),)

    def __init__(self, device: str) -> None:
        super().__init__(load_mobilenet, "mobilenet-v2.safetensors", device)


class EfficientNetLabel(SameLabel):
    """By EfficientNet-Lite0."""

    name = "EfficientNet-Lite0"
    columns: tuple[Column, ...] = (
        Column("same_label_efficientnet", "same label (EfficientNet-Lite0)", percent),
    )

    def __init__(self, device: str) -> None:
        super().__init__(load_efficientnet, "efficientnet-lite0.safetensors", device)
