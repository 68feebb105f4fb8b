"""The table of presets."""

from __future__ import annotations

import pytest
import torch

from omnitok.config import TokenizerConfig
from omnitok.model import Autoencoder
from omnitok.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("tiny", 5.7),
        ("tiny-kl", 5.7),
        ("small", 32),
        ("base", 143),
        ("large", 450),
        ("so400m", 831),
    ],
)
def test_a_preset_has_the_size_it_says(name, millions):
    with torch.device("meta"):
        model = Autoencoder(preset(name))
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_called_what_its_config_says(name):
    assert preset(name).name == name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_made_anew_for_each_caller(name):
    preset(name).encoder.lookback = 99
    assert preset(name).encoder.lookback < 99


def test_every_fourth_layer_of_the_mixed_presets_sees_the_whole_frame():
    for name in ("small", "base", "large"):
        layers = preset(name).encoder.layers
        assert [n for n, kind in enumerate(layers) if kind == "global"] == [
            *range(3, len(layers), 4)
        ]


def test_an_unknown_key_of_a_config_is_named():
    values = preset("tiny").to_dict()
    values["encoder"]["depht"] = 3
    with pytest.raises(ValueError, match=r"'encoder' has unknown keys \['depht'\]"):
        TokenizerConfig.from_dict(values)
