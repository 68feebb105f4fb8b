import dataclasses
import errno
import os

import pytest
import torch
from token_samples import LATENTS, assert_same, make_info, make_tokens

from omnitok import token_stream
from omnitok.token_stream import TokenReader, TokenWriter
from omnitok.tokens import Preprocess, Source, Tokens, TokensError, num_groups


def cut(tokens, tmp_path, groups):
    """Cut tokens into parts of some time groups each."""
    tokens.save(tmp_path / "cut.safetensors")
    with TokenReader(tmp_path / "cut.safetensors", groups=groups) as reader:
        return list(reader)


def stream(path, parts):
    """Write parts that are made while they are written."""
    with TokenWriter(path) as writer:
        for part in parts:
            writer.write(part)


@pytest.mark.parametrize("groups", [1, 2, 3, 99])
@pytest.mark.parametrize(
    "info", [make_info(), make_info(causal=False, codebook_size=2**40, num_codebooks=2), LATENTS]
)
def test_parts_join_to_the_tokens_they_were_cut_from(tmp_path, info, groups):
    whole = make_tokens(info, T=19)
    parts = cut(whole, tmp_path, groups)
    assert [part.grid[0] for part in parts[:-1]] == [groups] * (len(parts) - 1)
    assert_same(Tokens.cat(parts), whole)


def test_a_part_has_the_frames_and_times_of_its_groups(tmp_path):
    parts = cut(make_tokens(T=11), tmp_path, 2)  # groups of 1, 4, 4 and 2 frames
    assert [part.size for part in parts] == [(5, 15, 17), (6, 15, 17)]
    assert torch.equal(parts[1].pts, torch.arange(5, 11).double() / 30)


@pytest.mark.parametrize("groups", [1, 2, 99])
@pytest.mark.parametrize("changes", [{}, {"pts": None}, {"info": LATENTS}, {"T": 1}])
def test_a_streamed_file_has_the_bytes_of_one_saved_at_once(tmp_path, changes, groups):
    whole = make_tokens(**{"T": 18} | changes)
    parts = cut(whole, tmp_path, groups)
    with TokenWriter(tmp_path / "b.safetensors") as writer:
        for part in parts:
            writer.write(part)
        assert not (tmp_path / "b.safetensors").exists()
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "cut.safetensors").read_bytes()


def test_parts_without_groups_change_nothing(tmp_path):
    whole, none = make_tokens(T=9), make_tokens(T=0)
    assert_same(Tokens.cat([none, whole, none]), whole)
    whole.save(tmp_path / "a")
    for parts in ([none, whole, none], [whole, none]):
        stream(tmp_path / "b", parts)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_facts_may_be_known_late(tmp_path):
    whole = make_tokens(T=9)
    bare = dataclasses.replace(whole, info=None, source=None, preprocess=None, compute=None)
    with TokenWriter(tmp_path / "b", info=whole.info, compute={"device": "cpu"}) as writer:
        writer.write(bare)
        writer.source = Source(sha256="ef" * 32, num_frames=9)
        writer.preprocess = Preprocess(fps=5)
    loaded = Tokens.load(tmp_path / "b")
    assert (loaded.source, loaded.preprocess) == (writer.source, Preprocess(fps=5))
    assert loaded.compute == {"device": "cpu"}
    assert torch.equal(loaded.codes, whole.codes)


def test_an_exception_leaves_no_file(tmp_path):
    def broken():
        yield make_tokens()
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        stream(tmp_path / "b", broken())
    with pytest.raises(TokensError, match="no tokens were written"):
        stream(tmp_path / "b", [])
    with pytest.raises(TokensError, match="set info"):
        stream(tmp_path / "b", [dataclasses.replace(make_tokens(), info=None)])
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_named(tmp_path, monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(token_stream.tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(TokensError, match=r"b\.st: No space"):
        stream(tmp_path / "b.st", [make_tokens()])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"info": make_info(weights_sha256="00")}, "info is"),
        ({"source": None}, "source is"),
        ({"compute": {}}, "compute is"),
        ({"size": (1, 15, 18)}, "cannot be joined"),
        ({"pts": None}, "cannot be joined"),
    ],
)
def test_parts_of_different_clips_are_not_joined(changes, message):
    with pytest.raises(TokensError, match=message):
        Tokens.cat([make_tokens(T=1), make_tokens(T=1, **changes)])


def test_parts_of_different_types_are_not_joined():
    part = make_tokens(LATENTS, T=1)
    with pytest.raises(TokensError, match="cannot be joined"):
        Tokens.cat([part, dataclasses.replace(part, latents=part.latents.half())])
    with pytest.raises(TokensError, match="no parts"):
        Tokens.cat([])


def test_a_part_that_ends_within_a_group_is_the_last(tmp_path):
    short, more = make_tokens(T=3), make_tokens(T=4)
    message = "ended within a group: 3 frames in 2 groups of 4"
    with pytest.raises(TokensError, match=message):
        Tokens.cat([short, more])
    with pytest.raises(TokensError, match=message):
        stream(tmp_path / "b", [short, more])
    assert os.listdir(tmp_path) == []


def test_a_bad_value_is_refused_with_its_place_in_the_clip(tmp_path):
    parts = cut(make_tokens(T=9), tmp_path, 2)
    parts[1].codes[0, 1, 2] = -1
    with pytest.raises(TokensError, match=r"codes at \[2, 1, 2\] is -1"):
        stream(tmp_path / "b", parts)


def test_a_reader_tells_the_facts_and_may_be_read_twice(tmp_path):
    whole = make_tokens(T=9)
    whole.save(tmp_path / "a")
    with TokenReader(tmp_path / "a", weights_sha256=whole.info.weights_sha256) as reader:
        assert (reader.size, reader.grid) == (whole.size, whole.grid)
        assert (reader.info, reader.source) == (whole.info, whole.source)
        assert (reader.preprocess, reader.compute) == (whole.preprocess, whole.compute)
        assert torch.equal(reader.pts, whole.pts)
        assert reader.header["codebook_size"] == 1000
        for _ in range(2):
            assert_same(Tokens.cat(reader), whole)
    with pytest.raises(TokensError, match="groups is 0"):
        TokenReader(tmp_path / "a", groups=0)


def test_codebook_use_of_a_file_is_counted(tmp_path):
    whole = make_tokens(T=9, codes=torch.arange(18).reshape(3, 2, 3) // 2)
    whole.save(tmp_path / "a")
    with TokenReader(tmp_path / "a") as reader:
        usage = reader.usage()
    assert usage.used == (9,)
    assert usage.share == (9 / 1000,)
    assert usage.perplexity == pytest.approx((9,))
    make_tokens(LATENTS).save(tmp_path / "a")
    with TokenReader(tmp_path / "a") as reader:
        assert reader.usage() is None


def test_a_long_file_is_checked_and_read_a_piece_at_a_time(tmp_path, monkeypatch):
    whole = make_tokens(T=1 + 4 * 2000)
    whole.save(tmp_path / "a")
    monkeypatch.setattr(token_stream, "CHUNK", 1200)
    read, rows = token_stream.TokenFile.read, []

    def watch(file, start, stop):
        rows.append(stop - start)
        return read(file, start, stop)

    monkeypatch.setattr(token_stream.TokenFile, "read", watch)
    with TokenReader(tmp_path / "a", groups=7) as reader:
        assert sum(rows) == num_groups(whole.size[0], 4)
        assert max(rows) == 1200 // 12  # 6 codes of 2 bytes a group
        assert_same(Tokens.cat(reader), whole)
