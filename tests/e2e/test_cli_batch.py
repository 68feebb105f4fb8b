"""Many files and repeated runs: what is kept, what is said, and what a bad file does."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from video_clips import BROKEN

from omnitok import Tokens, TokensError
from tools.commands import tokenizing


def leftovers(folder: Path) -> list[str]:
    """Temporary files in a folder and below."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def talk(clips, tmp_path) -> Path:
    return Path(shutil.copy(clips("steady.mp4"), tmp_path / "talk.mp4"))


def test_a_second_run_keeps_what_is_there_and_does_the_rest(talk, clips, omnitok, tmp_path):
    tokens = tmp_path / "talk.omni.safetensors"
    assert omnitok("tokenize", talk).status == 0
    before = tokens.stat().st_mtime_ns
    shutil.copy(clips("tiny.png"), tmp_path / "photo.png")
    again = omnitok("tokenize", tmp_path, "--json")
    assert again.status == 0
    assert (again.json["done"], again.json["skipped"]) == (1, 1)
    assert tokens.stat().st_mtime_ns == before
    assert omnitok("tokenize", talk, "--overwrite", "--json").json["done"] == 1
    assert tokens.stat().st_mtime_ns != before
    decoded = tmp_path / "talk.decoded.mp4"
    assert omnitok("decode", tokens, "--json").json["done"] == 1
    assert omnitok("decode", tokens, "--json").json["skipped"] == 1
    assert omnitok("decode", tokens, "--overwrite", "--json").json["done"] == 1
    assert decoded.exists()


def test_a_kept_file_of_other_options_or_weights_is_warned_about(talk, omnitok, other_weights):
    omnitok("tokenize", talk)
    assert "other weights or options" not in omnitok("tokenize", talk).err
    assert "other weights or options" in omnitok("tokenize", talk, "--size", "24").err
    assert "other weights or options" in omnitok("tokenize", talk, model=other_weights).err


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_cut_off_leftover_is_not_taken_for_done(keep, talk, omnitok, tmp_path):
    tokens = tmp_path / "talk.omni.safetensors"
    omnitok("tokenize", talk)
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[: int(len(whole) * keep)])
    planned = omnitok("tokenize", talk, "--dry-run")
    again = omnitok("tokenize", talk)
    assert planned.status == again.status
    if keep:  # it may be something else that the user wants to look at
        assert again.status == 3
        assert "is not a whole token file" in again.err
    else:
        assert again.status == 0
        assert tokens.read_bytes() == whole


def test_decoded_leftovers_are_not_taken_for_done(talk, clips, omnitok, tmp_path):
    omnitok("tokenize", talk)
    tokens, decoded = tmp_path / "talk.omni.safetensors", tmp_path / "talk.decoded.mp4"
    decoded.write_bytes(b"\0" * 1000)
    for words in (["--dry-run"], []):
        again = omnitok("decode", tokens, *words)
        assert (again.status, "is not whole" in again.err) == (3, True)
    shutil.copy(clips("film.mp4"), decoded)
    for words in (["--dry-run"], []):
        again = omnitok("decode", tokens, *words)
        assert (again.status, "24 frames" in again.err) == (3, True)
    decoded.write_bytes(b"")
    assert omnitok("decode", tokens).status == 0


def test_tokens_of_another_source_are_never_taken_for_done(talk, clips, omnitok, tmp_path):
    omnitok("tokenize", talk)
    other = shutil.copy(clips("matroska.mkv"), tmp_path / "talk.mkv")
    run = omnitok("tokenize", other)
    assert run.status == 3
    assert "'talk.mp4', not of 'talk.mkv'" in run.err


@pytest.mark.parametrize("options", [(), ("--fps", "7", "--size", "20", "--clip", "0.1:0.9")])
def test_a_dry_run_says_what_the_run_then_does_and_writes_nothing(options, talk, omnitok, tmp_path):
    out = tmp_path / "out"
    planned = omnitok("tokenize", talk, "-o", out, "--dry-run", "--json", *options)
    assert not out.exists()
    done = omnitok("tokenize", talk, "-o", out, "--json", *options)
    (would,), (did,) = planned.json["files"], done.json["files"]
    assert would["status"] == "planned"
    for key in ("input", "output", "num_frames", "height", "width", "grid", "num_tokens"):
        assert would[key] == did[key], key
    again = omnitok("tokenize", talk, "-o", out, "--dry-run")
    assert "would keep" in again.err
    back = omnitok("decode", out, "--dry-run")
    assert back.status == 0
    assert f"would write {out / 'talk.decoded.mp4'}: {did['num_frames']} frames" in back.err
    assert not (out / "talk.decoded.mp4").exists()


def test_a_dry_run_reads_no_weights(talk, omnitok, weights, tmp_path):
    cut = tmp_path / "cut.safetensors"
    data = weights.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cut.write_bytes(data[:header] + bytes(len(data) - header))
    assert omnitok("tokenize", talk, "--dry-run", model=cut).status == 0


def test_a_dry_run_finds_bad_inputs(clips, omnitok):
    run = omnitok("tokenize", clips("text.mp4"), clips("steady.mp4"), "--dry-run", "--json")
    assert run.status == 3
    assert [entry["status"] for entry in run.json["files"]] == ["failed", "planned"]


def test_quiet_prints_nothing_and_json_one_object(talk, clips, omnitok):
    run = omnitok("tokenize", talk, "-q")
    assert (run.out, run.err) == ("", "")
    run = omnitok("tokenize", talk, clips("text.mp4"), "-q", "--json")
    assert run.json["failed"] == 1
    assert run.err.count("\n") == 1


def test_sound_is_mentioned_once(clips, omnitok, tmp_path):
    two = [shutil.copy(clips("sound.mp4"), tmp_path / f"{n}.mp4") for n in "ab"]
    run = omnitok("tokenize", *two)
    assert run.err.count("sound is not kept") == 1
    assert omnitok("inspect", tmp_path / "a.omni.safetensors").out.count("sound (not kept)") == 1


def test_bad_files_among_good_ones_are_listed_and_the_rest_is_done(clips, omnitok, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    bad = [name for name in BROKEN if name.endswith((".mp4", ".png"))]
    for name in ("steady.mp4", "tiny.png", "resized.ts", *bad):
        shutil.copy(clips(name), folder / name)
    run = omnitok("tokenize", folder, "--json")
    assert run.status == 3
    assert run.json["done"] == 2
    failed = {
        os.path.basename(e["input"]): e["error"]
        for e in run.json["files"]
        if e["status"] == "failed"
    }
    assert set(failed) == {*bad, "resized.ts"}
    assert all(name in why and "bug" not in why for name, why in failed.items())
    assert "changes its frame size" in failed["resized.ts"]
    assert leftovers(folder) == []


def test_a_bug_in_one_file_does_not_stop_the_others(talk, clips, omnitok, monkeypatch, tmp_path):
    def describe(size, tokens):
        if size[0] == 1:
            raise ZeroDivisionError("oh")
        return "fine"

    monkeypatch.setattr(tokenizing, "describe", describe)
    run = omnitok("tokenize", clips("tiny.png"), talk, "-o", tmp_path / "out", "--json")
    assert run.status == 1
    assert [entry["status"] for entry in run.json["files"]] == ["failed", "done"]
    assert "this is a bug in omnitok: ZeroDivisionError" in run.json["files"][0]["error"]


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_fails_in_a_sentence_and_leaves_nothing(talk, omnitok, tmp_path):
    with full_disk(500):
        run = omnitok("tokenize", talk, "-o", tmp_path / "out")
    assert run.status == 3
    assert "free some space" in run.err
    assert list((tmp_path / "out").iterdir()) == []
    omnitok("tokenize", talk, "-o", tmp_path / "out")
    with full_disk(2000):
        run = omnitok("decode", tmp_path / "out")
    assert run.status == 3
    assert "space left" in run.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["talk.omni.safetensors"]


def test_an_output_folder_that_may_not_be_made_fails_in_a_sentence(talk, omnitok, tmp_path):
    (tmp_path / "file").write_text("x")
    run = omnitok("tokenize", talk, "-o", tmp_path / "file/out")
    assert run.status == 3
    assert "Not a directory" in run.err


def test_damage_is_left_out_only_when_told(clips, omnitok, tmp_path):
    data = bytearray(clips("broadcast.ts").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4 * 188] = bytes(4 * 188)
    damaged = tmp_path / "damaged.ts"
    damaged.write_bytes(data)
    first = omnitok("tokenize", damaged)
    second = omnitok("tokenize", damaged, "--on-damage", "skip", "--json")
    assert first.status == 3
    assert "on_damage='skip'" in first.err
    assert second.status == 0
    assert "left out" in second.json["files"][0]["warnings"][-1]


def test_a_video_that_ends_early_is_done_as_far_as_it_goes(clips, omnitok, tmp_path):
    source = shutil.copy(clips("truncated.mkv"), tmp_path / "cut.mkv")
    run = omnitok("tokenize", source, "--json")
    assert run.status == 0
    assert any("ends early" in warning for warning in run.json["files"][0]["warnings"])
    assert 0 < Tokens.load(tmp_path / "cut.omni.safetensors").size[0] < 30


def damage(path: Path, kind: str) -> None:
    """Spoil a token file."""
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    if kind == "cut":
        del data[-10:]
    elif kind == "flipped":
        data[header + 40] ^= 4
    elif kind == "version":
        at = data.index(b'\\"version\\":1')
        data[at + 12 : at + 13] = b"7"
    elif kind == "huge header":
        data[:8] = (2**30).to_bytes(8, "little")
    elif kind == "text":
        data[:] = b"hello, I am no token file"
    elif kind == "empty":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["cut", "flipped", "version", "huge header", "text", "empty"])
def test_damaged_token_files_fail_in_a_sentence(kind, talk, omnitok, tmp_path):
    good, bad = tmp_path / "talk.omni.safetensors", tmp_path / "bad.omni.safetensors"
    omnitok("tokenize", talk)
    shutil.copy(good, bad)
    damage(bad, kind)
    run = omnitok("decode", bad, good, "--json")
    assert run.status == 3
    assert [entry["status"] for entry in run.json["files"]] == ["failed", "done"]
    assert str(bad) in run.json["files"][0]["error"]
    look = omnitok("inspect", bad, "--json")
    assert look.status == 3
    assert str(bad) in look.json["error"]
    assert look.err.count("\n") == 1


def test_a_code_out_of_range_is_refused(talk, omnitok, tmp_path):
    path = tmp_path / "talk.omni.safetensors"
    omnitok("tokenize", talk)
    tokens = Tokens.load(path)
    assert tokens.codes is not None
    tokens.codes[1, 2, 3] = 64000
    with pytest.raises(TokensError, match="64000"):
        tokens.save(path)


@pytest.mark.parametrize("changes", [{"patch": (8, 8, 8)}, {"codebook_size": 2**17}])
def test_tokens_that_their_weights_cannot_have_made_are_refused(changes, talk, omnitok, tmp_path):
    path = tmp_path / "talk.omni.safetensors"
    omnitok("tokenize", talk)
    tokens = Tokens.load(path)
    claimed = replace(tokens.info, **changes)
    codes = torch.full_like(tokens.codes[:2], claimed.codebook_size - 1)
    size = (1 + claimed.patch[0], *tokens.size[1:])
    Tokens(codes=codes, size=size, info=claimed).save(path)
    run = omnitok("decode", path)
    assert run.status == 3
    assert "bug" not in run.err


def test_tokens_of_other_weights_are_refused_by_name(talk, omnitok, other_weights, tmp_path):
    tokens = tmp_path / "talk.omni.safetensors"
    omnitok("tokenize", talk, model=other_weights)
    run = omnitok("decode", tokens)
    assert run.status == 3
    assert "'other'" in run.err
    for words in (["--dry-run"], []):
        run = omnitok("decode", tokens, *words, model=None)
        assert run.status == 3
        assert "--model" in run.err
    assert omnitok("decode", tokens, "--dry-run", model="no-such").status == 2
    assert not (tmp_path / "talk.decoded.mp4").exists()


def test_a_rate_that_makes_no_sense_is_refused(talk, omnitok, tmp_path):
    path = tmp_path / "talk.omni.safetensors"
    omnitok("tokenize", talk)
    tokens = Tokens.load(path)
    assert tokens.source is not None
    for rate in ("0", "1e300", "fast"):
        tokens.source.fps = rate
        tokens.save(path)
        run = omnitok("decode", path)
        assert run.status == 3
        assert f"fps={rate!r}" in run.err


def test_names_of_any_bytes_are_taken_and_printed_safely(clips, omnitok, tmp_path):
    name = os.fsdecode(b"\xff \x1b[31m[red] \xc3\xa9.png")
    shutil.copy(clips("tiny.png"), tmp_path / name)
    run = omnitok("tokenize", tmp_path)
    assert run.status == 0, run.err
    assert "\x1b" not in run.err
    (tokens,) = tmp_path.glob("*.safetensors")
    assert omnitok("inspect", tokens).status == 0
    assert json.loads(omnitok("decode", tokens, "--json").out)["done"] == 1
    assert torch.equal(Tokens.load(tokens).data, Tokens.load(tokens).data)
