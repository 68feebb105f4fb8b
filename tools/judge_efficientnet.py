"""EfficientNet-Lite0, trained on ImageNet: the second classifier of `omnitok eval-compress`.

Sources: Tan and Le 2019, arXiv:1905.11946, table 1; the lite form has no squeeze-and-excitation
and clips activations at 6. Weights come from a file that `python -m tools.feature_nets` makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omnitok.metrics.mobile_net import (
    WIDTH,
    Convolution,
    MobileNet,
    MobileNetConfig,
    load_network,
)

_STAGES = (  # kernel, expansion, channels, repeats, stride of the first
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)


def _convolutions() -> Iterator[Convolution]:
    """All of them, in order."""
    yield Convolution("_conv_stem", "_bn0", (32, 3, 3, 3), 2)
    before, number = 32, 0
    for kernel, expansion, width, repeats, first in _STAGES:
        for repeat in range(repeats):
            at, inner, wider = f"_blocks.{number}", before * expansion, expansion > 1
            if wider:
                shape = (inner, before, 1, 1)
                yield Convolution(f"{at}._expand_conv", f"{at}._bn0", shape, starts=True)
            shape, stride = (inner, 1, kernel, kernel), 1 if repeat else first
            names = f"{at}._depthwise_conv", f"{at}._bn1"
            yield Convolution(*names, shape, stride, starts=not wider)
            shape = (width, inner, 1, 1)
            yield Convolution(f"{at}._project_conv", f"{at}._bn2", shape, ends=True)
            before, number = width, number + 1
    yield Convolution("_conv_head", "_bn1", (WIDTH, before, 1, 1))


EFFICIENTNET = MobileNetConfig(
    name="efficientnet-lite0",
    convolutions=tuple(_convolutions()),
    classes="_fc",
    epsilon=1e-3,
    mean=(0.498,) * 3,
    std=(0.502,) * 3,
    centred=False,
)


def load_efficientnet(path: str | Path) -> MobileNet:
    """See `omnitok.metrics.mobile_net.load_network`."""
    return load_network(path, EFFICIENTNET)
