"""The tokenizer's face: shapes, bottlenecks, dtypes, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitok import Tokenizer, Tokens, TokensError
from omnitok.model import Autoencoder
from omnitok.quantize.base import QuantizerConfig
from tests.small_models import noise, small_model, small_tokenizer

BOTTLENECKS = {
    "fsq": QuantizerConfig(kind="fsq", dim=6, levels=(8, 5, 5), num_codebooks=2),
    "vq": QuantizerConfig(kind="vq", dim=8, codebook_size=64),
    "vq-l2": QuantizerConfig(kind="vq", dim=8, codebook_size=64, num_codebooks=2, l2=True),
    "lfq": QuantizerConfig(kind="lfq", dim=12),
    "bsq": QuantizerConfig(kind="bsq", dim=12, num_codebooks=3),
}


def pixels(frames: torch.Tensor) -> torch.Tensor:
    return frames.transpose(0, 1)[None] / 127.5 - 1


def tokenizer_with(quantizer: QuantizerConfig) -> Tokenizer:
    torch.manual_seed(0)
    model = Autoencoder(replace(small_model("small").config, quantizer=quantizer))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return Tokenizer(model, "0" * 64)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_every_bottleneck_decodes_to_what_training_saw(kind, tmp_path):
    tok = tokenizer_with(BOTTLENECKS[kind])
    frames = noise(6, 20, 30)
    seen = tok.model(pixels(frames))
    codes = tok.quantize(tok.encode(pixels(frames)))
    assert torch.equal(codes.flatten(2, 3), seen.quantized.codes)
    assert len(codes.unique()) > 4
    z = tok.dequantize(codes)
    assert torch.equal(z.permute(0, 2, 3, 4, 1).flatten(2, 3), seen.quantized.z_q)
    decoded = tok.decode(z, size=(6, 20, 30))
    assert (decoded - seen.recon).abs().max() <= 1e-5 * seen.recon.abs().max()
    tokens = tok.tokenize(frames)
    assert torch.equal(tokens.codes, codes[0])
    tokens.save(tmp_path / "a.safetensors")
    again = Tokens.load(tmp_path / "a.safetensors", tokenizer=tok)
    assert torch.equal(tok.detokenize(again), tok.reconstruct(frames))


def test_lists_keep_their_order_and_sizes():
    tok = small_tokenizer("small")
    clips = [noise(5, 9, 20), noise(1, 30, 8), noise(2, 1, 1)]
    tokens = tok.tokenize(clips)
    assert [t.size for t in tokens] == [(5, 9, 20), (1, 30, 8), (2, 1, 1)]
    assert [x.shape for x in tok.detokenize(tokens)] == [clip.shape for clip in clips]
    latents = tok.encode([pixels(clip)[0] for clip in clips])
    for z, t in zip(latents, tokens, strict=True):
        assert torch.equal(z.permute(1, 2, 3, 0), t.latents)


def test_latents_of_kl_are_the_mean_and_draw_no_noise():
    tok = small_tokenizer("tiny-kl")
    x = pixels(noise(5, 16, 16))
    z = tok.encode(x)
    assert z.shape == (1, 16, 2, 2, 2)
    mean = tok.model.encode_groups(x)[..., :16]
    assert torch.allclose(z.permute(0, 2, 3, 4, 1).flatten(2, 3), mean, atol=1e-5)


def test_half_precision_gives_and_takes_its_own_dtype():
    tok = Tokenizer(small_model("small").bfloat16(), "0" * 64)
    tokens = tok.tokenize(noise(5, 16, 16))
    assert tokens.latents.dtype == torch.bfloat16
    assert tok.compute["dtype"] == "bfloat16"
    assert tok.detokenize(tokens).shape == (5, 3, 16, 16)


def test_double_precision_latents_are_stored_in_single():
    tok = small_tokenizer("small")
    wanted = tok.tokenize(noise(3, 8, 8)).latents
    tok.model.double()
    latents = tok.tokenize(noise(3, 8, 8)).latents
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, wanted, rtol=1e-4, atol=1e-4)


def test_a_part_without_frames_decodes_to_none():
    tok = small_tokenizer("small")
    with tok.stream() as stream:
        stream.push(noise(1, 9, 8))
        part = stream.push(noise(1, 9, 8))
    assert tok.detokenize(part).shape == (0, 3, 9, 8)


def test_decode_without_a_size_gives_whole_patches():
    tok = small_tokenizer("small")
    assert tok.decode(torch.zeros(2, 16, 3, 2, 1)).shape == (2, 3, 9, 16, 8)


def test_tokens_say_who_made_them():
    tok = small_tokenizer("tiny", seed=3)
    info = tok.tokenize(noise(1, 8, 8)).info
    assert (info.name, info.weights_sha256) == ("tiny", f"{3:064x}")
    assert (info.codebook_size, info.levels) == (64000, (8, 8, 8, 5, 5, 5))
    assert tok.num_parameters == sum(p.numel() for p in tok.model.parameters())


@pytest.mark.parametrize(
    ("frames", "word"),
    [
        (torch.zeros(3, 3, 8, 8), "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\[3, 8, 8\]"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), r"\[3, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\[0, 3, 8, 8\]"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), r"\[2, 3, 0, 8\]"),
    ],
)
def test_frames_of_a_wrong_type_or_shape_are_refused(frames, word):
    with pytest.raises(ValueError, match=word):
        small_tokenizer("small").tokenize(frames)


@pytest.mark.parametrize("frames", ["clip.mp4", np.zeros((2, 3, 8, 8), np.uint8), None])
def test_what_is_no_tensor_is_refused(frames):
    for call in (small_tokenizer("small").tokenize, small_tokenizer("small").encode):
        with pytest.raises(TypeError, match=type(frames).__name__):
            call(frames)


def test_latents_and_codes_of_a_wrong_shape_are_refused():
    tok = small_tokenizer("tiny")
    with pytest.raises(ValueError, match=r"\[1, 3, 8, 8\]"):
        tok.encode(torch.zeros(1, 3, 8, 8))
    for call in (tok.quantize, tok.decode):
        with pytest.raises(ValueError, match=r"expected \[B, 6, t, h, w\]"):
            call(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(ValueError, match=r"expected int64 \[B, t, h, w\]"):
        tok.dequantize(torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs a grid of"):
        tok.decode(torch.zeros(1, 6, 1, 2, 2), size=(1, 17, 16))
    for size in ((16, 16), (0, 16, 16)):
        with pytest.raises(ValueError, match=r"expected \(T, H, W\)"):
            tok.decode(torch.zeros(1, 6, 1, 2, 2), size=size)


def test_a_continuous_tokenizer_has_no_codes():
    with pytest.raises(TypeError, match="is continuous"):
        small_tokenizer("tiny-kl").quantize(torch.zeros(1, 16, 1, 2, 2))


def test_tokens_of_other_weights_or_kinds_are_refused():
    tokens = small_tokenizer("tiny").tokenize(noise(1, 8, 8))
    with pytest.raises(ValueError, match="load the tokenizer that made them"):
        small_tokenizer("tiny", seed=1).detokenize(tokens)
    with pytest.raises(ValueError, match="the tokens hold codes"):
        small_tokenizer("tiny-kl").detokenize(tokens)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"codebook_size": 2**20}, {"codes": torch.full((2, 1, 1), 2**19)}),
        ({"num_codebooks": 2}, {"codes": torch.zeros(2, 1, 1, 2, dtype=torch.int64)}),
        ({"patch": (8, 8, 8)}, {"codes": torch.zeros(2, 1, 1, dtype=torch.int64), "T": 9}),
        ({"causal": False}, {"codes": torch.zeros(2, 1, 1, dtype=torch.int64), "T": 8}),
        ({}, {"codes": torch.zeros(2, 2, 1, dtype=torch.int64)}),
        ({"kind": "latents", "codebook_size": None}, {"latents": torch.zeros(2, 1, 1, 6)}),
    ],
)
def test_tokens_that_claim_what_their_weights_do_not_make_are_refused(changes, tokens):
    tok = small_tokenizer("tiny")
    size = (tokens.pop("T", 5), 8, 8)
    tokens = Tokens(**tokens, size=size, info=replace(tok.info, **changes))
    with pytest.raises(TokensError):
        tok.detokenize(tokens)


def test_latents_with_other_channels_are_refused():
    tok = small_tokenizer("tiny-kl")
    for info in (None, replace(tok.info, latent_dim=8)):
        tokens = Tokens(latents=torch.zeros(1, 1, 1, 8), size=(1, 8, 8), info=info)
        with pytest.raises(TokensError, match="makes 16 channels"):
            tok.detokenize(tokens)


def test_codes_out_of_range_are_refused():
    tok = small_tokenizer("tiny")
    for code in (64000, -1):
        tokens = Tokens(codes=torch.full((1, 1, 1), code), size=(1, 8, 8))
        with pytest.raises(TokensError, match=r"expected a code in 0\.\.63999"):
            tok.detokenize(tokens)


def test_parts_that_do_not_follow_each_other_are_refused():
    tok = small_tokenizer("small")
    short, whole = tok.tokenize(noise(7, 8, 8)), tok.tokenize(noise(5, 8, 8))
    with pytest.raises(ValueError, match="cannot follow 3 groups"):
        list(tok.stream_decode([short, whole]))
    middle = Tokens(latents=whole.latents[1:], size=(4, 8, 8), info=whole.info)
    with pytest.raises(ValueError, match="cannot follow 0 groups"):
        list(tok.stream_decode([middle]))
    with pytest.raises(ValueError, match="cannot follow 3 groups"):
        list(tok.stream_decode([short, middle]))
    with pytest.raises(ValueError, match="follows one of"):
        list(tok.stream_decode([whole, tok.tokenize(noise(4, 9, 8))]))


def test_a_stream_refuses_what_does_not_belong_to_it():
    tok = small_tokenizer("small")
    with tok.stream() as stream:
        with pytest.raises(ValueError, match="got no frames"):
            stream.finish()
        stream.push(noise(2, 8, 8))
        with pytest.raises(ValueError, match="start a new stream"):
            stream.push(noise(1, 9, 8))
        stream.finish()
        with pytest.raises(RuntimeError, match="is finished"):
            stream.push(noise(1, 8, 8))


def test_a_stream_keeps_its_own_copy_of_waiting_frames():
    tok, clip = small_tokenizer("small"), noise(5, 8, 8)
    want = tok.tokenize(clip).latents
    buffer = clip[:3].clone()
    with tok.stream() as stream:
        parts = [stream.push(buffer)]
        buffer.zero_()
        parts += [stream.push(clip[3:]), stream.finish()]
    assert torch.equal(Tokens.cat(parts).latents, want)
