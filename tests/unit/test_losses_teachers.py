"""Image encoders to distill from and text encoders for captions, as transformers saves them."""

import json

import pytest
import torch
from torch.nn import functional as F

from omnitok import losses
from omnitok.checkpoint import CheckpointError
from omnitok.losses.teachers import ImageEncoder, TextEncoder


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


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of five words in a folder."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3, "dog": 4}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path_factory.mktemp("words")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(path)
    return path


def encoder_of(words, path, model):
    model.save_pretrained(path)
    for file in words.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return TextEncoder(path)


SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "vocab_size": 5}


def test_captions_are_read_as_a_paired_model_was_trained_to(words, tmp_path):
    import transformers

    torch.manual_seed(0)
    text = {**SHAPE, "max_position_embeddings": 6, "projection_size": 12, "pad_token_id": 0}
    image = {**SHAPE, "image_size": 32, "patch_size": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=image)
    model = transformers.SiglipModel(config).eval()
    encoder = encoder_of(words, tmp_path, model)
    ids = torch.tensor([[2, 3, 4, 0, 0, 0], [4, 4, 4, 4, 4, 4]])
    with torch.no_grad():
        wanted = model.text_model(input_ids=ids).pooler_output
    torch.testing.assert_close(encoder(["a red dog", "dog " * 9]), wanted)
    assert encoder.width == 12


def test_captions_of_any_length_are_means_over_words_in_another_model(words, tmp_path):
    import transformers

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SHAPE)).eval()
    encoder = encoder_of(words, tmp_path, model)
    both = encoder(["a red dog", "dog"])
    torch.testing.assert_close(both[1:], encoder(["dog"]))
    torch.testing.assert_close(both[:1], encoder(["a red dog"]))
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[2, 3, 4]])).last_hidden_state.mean(1)
    torch.testing.assert_close(both[:1], wanted)


def test_a_contrast_with_captions_needs_an_encoder_or_embeddings():
    shape = {"contrastive": {"width": 5, "embedding": 3}}
    tokens, pixels = torch.randn(2, 7, 5), torch.zeros(2, 3, 1, 8, 8)
    given = losses.LossInputs(
        recon=pixels, target=pixels, features=tokens, captions=["a dog", "no dog"]
    )
    with pytest.raises(ValueError, match=r"captions are text.* give the loss `texts`"):
        losses.build(shape)(given)
    vectors = {"a dog": [1.0, 0.0, 0.0], "no dog": [0.0, 1.0, 0.0]}
    torch.manual_seed(0)
    read = losses.build(shape, reader=lambda texts: torch.tensor([vectors[t] for t in texts]))
    found = read(given).total
    given.captions, given.text = None, torch.eye(3)[:2]
    torch.testing.assert_close(read(given).total, found)
    given.text = torch.eye(4)[:2]
    with pytest.raises(ValueError, match=r"embeddings of 4 numbers.*embedding=3"):
        read(given)
