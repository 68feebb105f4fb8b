import dataclasses
import errno
import hashlib
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from token_samples import LATENTS, assert_same, make_info, make_tokens

from omnitok.token_stream import TokenWriter
from omnitok.tokens import (
    Tokens,
    TokensError,
    frames_of_groups,
    group_frames,
    num_groups,
)


def test_the_first_frame_of_a_causal_clip_is_a_group_of_its_own():
    assert [num_groups(T, 4) for T in (0, 1, 2, 5, 6, 9)] == [0, 1, 2, 2, 3, 3]
    assert [num_groups(T, 4, causal=False) for T in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert group_frames(7, 4) == [0, 1, 5, 7]
    assert group_frames(7, 4, causal=False) == [0, 4, 7]
    assert group_frames(0, 4) == [0]
    assert frames_of_groups(1, 3, 7, 4) == (1, 7)
    assert frames_of_groups(3, 3, 7, 4) == (7, 7)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("patch_t", [1, 3, 4])
def test_groups_cut_every_clip_into_whole_groups_and_one_short_one(patch_t, causal):
    for T in range(1, 30):
        lengths = torch.tensor(group_frames(T, patch_t, causal)).diff().tolist()
        assert len(lengths) == num_groups(T, patch_t, causal)
        assert sum(lengths) == T
        assert lengths[1:-1] == [patch_t] * len(lengths[1:-1])
        assert 1 <= lengths[-1] <= patch_t
        assert lengths[0] == (1 if causal else min(T, patch_t))


def test_bits_and_compression_are_those_counted_by_hand():
    tokens = make_tokens(make_info(codebook_size=1024, num_codebooks=2), T=9)
    assert tokens.grid == (3, 2, 3)
    assert tokens.num_tokens == 18
    assert tokens.bits_per_token == 20
    assert tokens.bits_per_pixel == pytest.approx(360 / (9 * 15 * 17))
    assert tokens.compression == pytest.approx(9 * 15 * 17 * 3 / (360 / 8))
    assert make_tokens(LATENTS).bits_per_token == 96
    assert make_tokens(T=0).bits_per_pixel == 0
    assert make_tokens(T=0).compression == math.inf


@pytest.mark.parametrize(
    ("size", "dtype", "bytes_per_code"),
    [
        (1, "uint16", 2),
        (2**16, "uint16", 2),
        (2**16 + 1, "int32", 4),
        (2**31, "int32", 4),
        (2**31 + 1, "uint8", 4),
        (2**36, "uint8", 5),
        (2**63, "uint8", 8),
    ],
)
@pytest.mark.parametrize("books", [1, 3])
def test_codes_of_any_codebook_come_back_to_the_bit(tmp_path, size, dtype, bytes_per_code, books):
    tokens = make_tokens(make_info(codebook_size=size, num_codebooks=books))
    tokens.codes.view(-1)[0], tokens.codes.view(-1)[-1] = 0, size - 1
    tokens.save(tmp_path / "a.safetensors")
    assert_same(Tokens.load(tmp_path / "a.safetensors"), tokens)
    stored = load_file(tmp_path / "a.safetensors")["codes"]
    assert str(stored.dtype) == f"torch.{dtype}"
    assert stored.nbytes == tokens.codes.numel() * bytes_per_code


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_come_back_in_their_own_type_to_the_bit(tmp_path, dtype):
    tokens = make_tokens(LATENTS)
    tokens.latents[0, 0, 0] = torch.tensor([-0.0, 1e-40, torch.finfo(dtype).max])
    tokens = dataclasses.replace(tokens, latents=tokens.latents.to(dtype))
    tokens.save(tmp_path / "a.safetensors")
    assert_same(Tokens.load(tmp_path / "a.safetensors"), tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"T": 0},
        {"T": 1},
        {"pts": None},
        {"T": 0, "pts": None},
        {"source": None, "preprocess": None, "compute": None},
        {"info": make_info(causal=False, levels=[10, 10, 10], index_order="first fastest")},
    ],
)
def test_any_clip_comes_back_with_all_its_facts(tmp_path, changes):
    tokens = make_tokens(**changes)
    tokens.save(tmp_path / "a.safetensors")
    assert_same(Tokens.load(tmp_path / "a.safetensors"), tokens)


def test_strided_codes_are_saved_in_reading_order(tmp_path):
    tokens = make_tokens()
    turned = dataclasses.replace(
        tokens, codes=tokens.codes.transpose(1, 2).contiguous().transpose(1, 2)
    )
    turned.save(tmp_path / "a.safetensors")
    assert_same(Tokens.load(tmp_path / "a.safetensors"), tokens)


def test_any_safetensors_library_reads_the_file_and_may_save_it_again(tmp_path):
    tokens = make_tokens()
    tokens.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"codes", "grid", "offsets", "pts", "pts_offsets"}
    facts = json.loads(metadata["omnitok"])
    assert facts["format"] == "omnitok-tokens"
    assert facts["tokenizer"]["weights_sha256"] == "ab" * 32
    assert facts["clips"][0]["source"]["fps"] == "30000/1001"
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", metadata)
    assert_same(Tokens.load(tmp_path / "b.safetensors"), tokens)


def test_equal_tokens_give_equal_bytes_in_any_process(tmp_path):
    code = (
        "import sys; from omnitok.tokens import Tokens;Tokens.load(sys.argv[1]).save(sys.argv[2])"
    )
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    make_tokens().save(first)
    subprocess.run(
        [sys.executable, "-c", code, first, second],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_file_has_the_bytes_it_always_had(tmp_path):
    # Changes when the format does: then VERSION changes too, and old files must still be read.
    make_tokens(codes=torch.arange(24).reshape(4, 2, 3)).save(tmp_path / "a.safetensors")
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert digest == "340c6274ef78aa2ec1f04878355e7c2b160aca79f665488dae910936ae3925d0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": None}, "either codes or latents"),
        ({"latents": torch.zeros(4, 2, 3, 3)}, "not both"),
        ({"codes": torch.zeros(4, 2, 3, dtype=torch.int32)}, "torch.int32"),
        ({"codes": torch.zeros(4, 2, dtype=torch.int64)}, r"expected int64 \[t, h, w\]"),
        ({"codes": torch.zeros(4, 2, 3, 1, dtype=torch.int64)}, "makes 1 codes a token"),
        ({"codes": torch.zeros(4, 2, 3, 2, dtype=torch.int64)}, "makes 1 codes a token"),
        ({"codes": torch.zeros(5, 2, 3, dtype=torch.int64)}, "does not fit a clip"),
        ({"codes": torch.zeros(4, 1, 3, dtype=torch.int64)}, "does not fit a clip"),
        ({"codes": torch.zeros(4, 2, 2, dtype=torch.int64)}, "does not fit a clip"),
        ({"codes": torch.zeros(0, 2, 3, dtype=torch.int64)}, "does not fit a clip"),
        ({"size": (11, 15)}, "size is"),
        ({"size": (11, 15, 0)}, "H, W in 1"),
        ({"size": (-1, 15, 17)}, "T >= 0"),
        ({"pts": torch.zeros(10).double()}, r"expected float64 \[11\]"),
        ({"pts": torch.zeros(11)}, "pts are torch.float32"),
        ({"info": LATENTS}, "makes latents"),
        ({"compute": {"x": object()}}, "cannot be written as JSON"),
    ],
)
def test_tokens_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(TokensError, match=message):
        dataclasses.replace(make_tokens(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "words"}, "kind is 'words'"),
        ({"codebook_size": None}, "codes need one"),
        ({"codebook_size": 0}, "at least 1"),
        ({"codebook_size": 2**63 + 1}, "codebook_size is 9223372036854775809"),
        ({"patch": (4, 8)}, "patch is"),
        ({"patch": (0, 8, 8)}, "each side must be in 1"),
        ({"causal": 1}, "causal is 1; expected bool"),
        ({"latent_dim": 3.0}, "latent_dim is 3.0; expected int"),
        ({"config": {"a": float("nan")}}, "cannot be written as JSON"),
        ({"config": {"a": {1}}}, "cannot be written as JSON"),
        ({"pixel_range": (0, math.inf)}, "pixel_range is"),
    ],
)
def test_tokenizer_facts_of_the_wrong_type_are_refused(changes, message):
    with pytest.raises(TokensError, match=message):
        make_info(**changes)


def test_what_cannot_be_decoded_is_not_saved(tmp_path):
    path = tmp_path / "a.safetensors"
    tokens = make_tokens()
    tokens.codes[2, 1, 0] = 1000
    with pytest.raises(TokensError, match=r"codes at \[2, 1, 0\] is 1000; expected a code in 0"):
        tokens.save(path)
    latents = make_tokens(LATENTS)
    latents.latents[3, 1, 2, 1] = math.nan
    with pytest.raises(TokensError, match=r"latents at \[3, 1, 2, 1\] is nan"):
        latents.save(path)
    with pytest.raises(TokensError, match="set info"):
        dataclasses.replace(tokens, info=None).save(path)
    with pytest.raises(TokensError, match="never decrease"):
        make_tokens(pts=torch.arange(11, 0, -1).double()).save(path)
    with pytest.raises(TokensError, match="never decrease"):
        make_tokens(pts=torch.full((11,), math.nan).double()).save(path)
    whole = make_tokens(pts=None)
    middle = dataclasses.replace(whole, codes=whole.codes[1:3], size=(8, 15, 17))
    with pytest.raises(TokensError, match=r"join the parts with Tokens\.cat"):
        middle.save(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a.safetensors"
    make_tokens().save(path)
    before = path.read_bytes()

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    wanted = TokensError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        make_tokens(seed=1).save(path)
    if wanted is TokensError:
        assert "a.safetensors: No space left" in str(caught.value)
    with pytest.raises(wanted), TokenWriter(path) as writer:
        writer.write(make_tokens(seed=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for save in (make_tokens().save, TokenWriter):
        with pytest.raises(TokensError, match=r"cannot write .*no/a\.safetensors: No such file"):
            save(tmp_path / "no" / "a.safetensors")
