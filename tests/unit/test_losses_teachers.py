"""Distillation from an image encoder that transformers saved."""

import json

import pytest
import torch
from torch.nn import functional as F

from omnitok import losses
from omnitok.checkpoint import CheckpointError
from omnitok.losses.teachers import ImageEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.SiglipVisionConfig(
        **shape, num_attention_heads=2, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder")
    transformers.SiglipVisionModel(config).save_pretrained(path)
    facts = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (path / "preprocessor_config.json").write_text(json.dumps(facts))
    return path


def test_an_encoder_sees_pictures_as_it_was_trained_to(folder):
    from transformers import SiglipVisionModel

    teacher = ImageEncoder(folder)
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    scaled = F.interpolate(x, (32, 32), mode="bilinear", antialias=True) * 2
    with torch.no_grad():
        wanted = SiglipVisionModel.from_pretrained(folder)(pixel_values=scaled).pooler_output
    torch.testing.assert_close(teacher(x), wanted)
    assert teacher.width == 16
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_a_tokenizer_is_pulled_towards_the_encoder(folder):
    config = {"distill": {"width": 5, "embedding": 16, "kind": "cosine"}}
    distill = losses.build(config, teacher=ImageEncoder(folder))
    tokens = torch.randn(2, 7, 5, requires_grad=True)
    target = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    result = distill(losses.LossInputs(recon=target, target=target, features=tokens))
    result.total.backward()
    assert 0 < float(result.terms["distill"]) < 2
    assert tokens.grad.abs().sum() > 0
    assert {name.split(".")[1] for name in distill.state_dict()} == {"distill"}


def test_a_folder_without_a_model_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="holds no model for transformers"):
        ImageEncoder(tmp_path)
