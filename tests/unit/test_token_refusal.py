import json
import math
import os
import struct

import pytest
import torch
from safetensors.torch import load_file
from token_samples import LATENTS, assert_same, make_tokens, reseal

from omnitok import token_file, token_layout
from omnitok.token_facts import parse_json
from omnitok.token_stream import TokenReader
from omnitok.tokens import Tokens, TokensError


class OtherTokenizer:
    weights_sha256 = "cd" * 32


def test_tokens_of_other_weights_are_refused_unless_forced(tmp_path):
    path = tmp_path / "a.safetensors"
    tokens = make_tokens()
    tokens.save(path)
    for who in ({"tokenizer": OtherTokenizer()}, {"weights_sha256": "cd" * 32}):
        with pytest.raises(TokensError, match=r"a\.safetensors was made by 'test' with weights"):
            Tokens.load(path, **who)
        with pytest.raises(TokensError, match="pass force"):
            TokenReader(path, **who)
        assert_same(Tokens.load(path, **who, force=True), tokens)
    assert_same(Tokens.load(path, weights_sha256="ab" * 32), tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.full((24,), 1000, dtype=torch.uint16)}, r"\[0, 0, 0\] is 1000; expected"),
        ({"codes": torch.zeros(23, dtype=torch.uint16)}, "damaged: it holds"),
        ({"codes": torch.zeros(24, dtype=torch.int32)}, "damaged: it holds"),
        ({"codes": None}, "damaged: it holds"),
        ({"latents": torch.zeros(24, 3)}, "damaged: it holds"),
        ({"grid": torch.tensor([[4, 3, 2]])}, "does not fit"),
        ({"grid": torch.tensor([[5, 2, 3]])}, "does not fit"),
        ({"grid": torch.tensor([[-4, -2, 3]])}, "does not fit"),
        ({"grid": torch.tensor([[4, 2**62, 2**62]])}, "does not fit"),
        ({"grid": torch.tensor([[4, 2, 3], [4, 2, 3]])}, r"it holds 'grid' of shape \[2, 3\]"),
        ({"grid": torch.tensor([[4.0, 2.0, 3.0]])}, "grid is"),
        ({"grid": None}, "lack"),
        ({"offsets": torch.tensor([0, 23])}, "do not fit its facts"),
        ({"offsets": torch.tensor([0, 24], dtype=torch.int32)}, "do not fit its facts"),
        ({"offsets": torch.tensor([0, 24, 24])}, r"it holds 'offsets' of shape \[3\]"),
        ({"offsets": None}, "do not fit its facts"),
        ({"pts": torch.zeros(10).double()}, r"expected float64 \[11\]"),
        ({"pts": torch.zeros(11)}, "pts are torch.float32"),
        ({"pts": torch.full((11,), math.inf).double()}, "never decrease"),
        ({"pts": None}, "do not fit its facts"),
        ({"pts_offsets": torch.tensor([0, 12])}, "do not fit its facts"),
        ({"pts_offsets": None}, "do not fit its facts"),
        ({"more": torch.zeros(1)}, r"it holds 'more' of shape \[1\]"),
    ],
)
def test_tensors_that_contradict_the_facts_are_refused(tmp_path, changes, message):
    path = tmp_path / "a.safetensors"
    make_tokens().save(path)
    reseal(path, **changes)
    for read in (Tokens.load, TokenReader):
        with pytest.raises(TokensError, match=message):
            read(path)


def test_latents_that_are_not_finite_are_refused_with_their_place(tmp_path):
    path = tmp_path / "a.safetensors"
    make_tokens(LATENTS).save(path)
    latents = load_file(path)["latents"]
    latents[13, 2] = -math.inf  # token 13 of a 2 x 3 grid: group 2, row 0, column 1
    reseal(path, latents=latents)
    for read in (Tokens.load, TokenReader):
        with pytest.raises(TokensError, match=r"latents at \[2, 0, 1, 2\] is -inf"):
            read(path)


def edited(*keys, value):
    """Return an edit that sets facts[key][key]... to a value."""

    def edit(facts):
        place = facts
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return facts

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited("version", value=3), "version 3 is unknown.*upgrade"),
        (edited("version", value=2), "lack or misname"),
        (edited("version", value=True), "contradict|unknown"),
        (edited("format", value="other"), "of another format"),
        (edited("codebook_size", value=70000), "not stored as"),
        (edited("codebook_size", value=10**30), "not valid JSON"),
        (edited("codebook_size", value=-5), "at least 1"),
        (edited("codebook_size", value=None), "codes need one"),
        (edited("kind", value="latents"), "latents have None"),
        (edited("num_codebooks", value=2), "contradict"),
        (edited("dtype", value="int32"), "not stored as"),
        (edited("dtype", value="complex64"), "complex64"),
        (edited("layout", value="n"), "contradict"),
        (edited("keep", value=5), "contradict"),
        (edited("patch", value=[4, 8, 0]), "each side"),
        (edited("patch", value=[8, 8, 8]), "does not fit"),
        (edited("causal", value="yes"), "causal is 'yes'"),
        (edited("clips", value=[]), "damaged"),
        (edited("clips", 0, "size", value=[11, 15]), "size is"),
        (edited("clips", 0, "size", value=[10**9, 15, 17]), "does not fit"),
        (edited("clips", 0, "size", value=[12, 15, 17]), "expected float64"),
        (edited("clips", 0, "source", "width", value="9"), "width is '9'"),
        (edited("clips", 0, "source", "more", value=1), "source is"),
        (edited("clips", 0, "preprocess", value=[1]), "preprocess is"),
        (edited("tokenizer", value="x"), "damaged"),
        (edited("tokenizer", "more", value=1), "tokenizer is"),
        (edited("compute", value=[1]), "compute is"),
        (edited("surprise", value=1), "contradict"),
        (lambda facts: [facts], "of another format"),
        (lambda facts: "5", "of another format"),
        (lambda facts: json.dumps(facts)[:-1] + ',"kind":"codes"}', "a key is given twice"),
        (lambda facts: json.dumps(facts)[:-1] + ',"x":NaN}', "not a finite number"),
        (lambda facts: json.dumps(facts)[:-1] + ',"x":-Infinity}', "not a finite number"),
        (lambda facts: json.dumps(facts)[:-1] + ',"x":1e999}', "not a finite number"),
        (lambda facts: json.dumps(facts)[:-1] + ',"x":' + "9" * 9999 + "}", "too large"),
        (lambda facts: "[" * 100_000, "nested too deeply"),
        (edited("more", value=json.loads("[" * 64 + "]" * 64)), "nested too deeply"),
        (edited("more", value=json.loads("[" * 600 + "]" * 600)), "nested too deeply"),
        (lambda facts: '{"a":' * 100_000, "nested too deeply"),
        (lambda facts: "[" + "0," * 2_000_000 + "0]", "more than 1000000 values"),
        (lambda facts: "", "not valid JSON"),
    ],
)
def test_facts_that_are_wrong_are_refused_even_with_a_good_checksum(tmp_path, edit, message):
    path = tmp_path / "a.safetensors"
    make_tokens().save(path)
    reseal(path, edit)
    with pytest.raises(TokensError, match=message) as caught:
        Tokens.load(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 600


def with_header(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        struct.pack("<Q", 2**30) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        with_header(b"{}"),
        with_header(b"[]"),
        with_header(b"  "),
        with_header(b"\xff\xfe\x00\x01"),
        with_header(b'{"__metadata__":5}'),
        with_header(b'{"__metadata__":{"omnitok":"{}"}}'),
        with_header(b'{"__metadata__":{"omnitok":"\\ud800","sha256":""}}'),
        with_header(b'{"__metadata__":{"omnitok":1,"sha256":""}}'),
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(TokensError, match="not a token file"):
        Tokens.load(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "I64", "shape": [2], "data_offsets": [8, 24]},
        {"dtype": "I64", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "I64", "shape": [-2], "data_offsets": [0, -16]},
        {"dtype": "I64", "shape": [2.0], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [True, 2], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [2**62, 2**62, 2**62], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]},
        {"dtype": "I64", "shape": [2], "data_offsets": [0, 2**62]},
        {"dtype": "I64", "shape": "2", "data_offsets": [0, 16]},
        {"dtype": "X", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": ["I64"], "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [2], "data_offsets": [0, 16], "more": 1},
        {"dtype": "I64", "shape": [2], "data_offsets": [0]},
        {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 16]},
        None,
        5,
    ],
)
def test_a_tensor_described_falsely_is_refused(tmp_path, entry):
    header = {"__metadata__": {"omnitok": "{}", "sha256": ""}, "codes": entry}
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(json.dumps(header).encode(), b"\0" * 16))
    with path.open("rb") as file, pytest.raises(TokensError, match="damaged"):
        token_file.read_header(file)


def test_every_cut_and_every_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    make_tokens(T=2).save(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TokensError):
            Tokens.load(path)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(TokensError):
            Tokens.load(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    for read in (Tokens.load, TokenReader):
        with pytest.raises(TokensError, match=r"a\.safetensors: a pipe"):
            read(tmp_path / "a.safetensors")


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(TokensError, match=r"cannot read .*gone\.safetensors: No such file"):
        Tokens.load(tmp_path / "gone.safetensors")
    with pytest.raises(TokensError, match="cannot read"):
        Tokens.load(tmp_path)


def test_a_disk_that_fails_while_reading_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    make_tokens().save(path)

    def fail(*_):
        raise OSError("Input/output error")

    with TokenReader(path) as reader:
        monkeypatch.setattr(token_layout, "pieces", fail)
        for read in (Tokens.load, lambda _: list(reader)):
            with pytest.raises(TokensError, match=r"a\.safetensors: Input/output error"):
                read(path)


def test_json_of_a_sane_size_is_read():
    assert parse_json('{"a":[1,2.5,-3e2,"\\u00e9",null,true]}', "it") == {
        "a": [1, 2.5, -300.0, "é", None, True]
    }
