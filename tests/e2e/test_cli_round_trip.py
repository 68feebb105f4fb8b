"""Files to tokens and back: everything a viewer sees is kept, and the token file says it all."""

import hashlib
import shutil
from fractions import Fraction

import pytest
import torch

import omnitok as package
import video
from omnitok import Tokens
from video.files import tokenize_file

CLIPS = (
    "steady.mp4 film.mp4 smooth.mp4 variable.mp4 phone.mp4 phone180.mp4 odd.mp4 single.mp4 "
    "late.mp4 matroska.mkv broadcast.ts old.avi web.webm moving.gif moving.webp"
).split()
STILLS = "tiny.png tiny.jpg sideways.jpg".split()


@pytest.mark.parametrize("name", [*CLIPS, *STILLS])
def test_size_frames_times_and_orientation_come_back(name, clips, omnitok, tmp_path):
    source = clips(name)
    made = omnitok("tokenize", source, "-o", tmp_path)
    assert made.status == 0, made.err
    stem = source.name.rsplit(".", 1)[0]
    tokens = tmp_path / f"{stem}.omni.safetensors"
    back = omnitok("decode", tokens)
    assert back.status == 0, back.err
    suffix = "png" if name in STILLS else "mp4"
    before, after = video.read(source), video.read(tmp_path / f"{stem}.decoded.{suffix}")
    assert after.frames.shape == before.frames.shape
    torch.testing.assert_close(after.pts, before.pts, rtol=0, atol=1e-4)
    assert after.info is not None
    assert after.info.rotation == 0  # written upright


def test_the_file_holds_the_tokens_of_the_whole_clip_and_all_facts(
    clips, omnitok, weights, tmp_path
):
    source = clips("phone.mp4")
    omnitok("tokenize", source, "-o", tmp_path)
    tokens = Tokens.load(tmp_path / "phone.omni.safetensors")
    tok = package.load(weights)
    clip = video.read(source)
    assert torch.equal(tokens.data, tok.tokenize(clip.frames).data)
    assert tokens.pts is not None
    assert torch.equal(tokens.pts, clip.pts)
    assert tokens.info == tok.info
    assert tokens.compute == tok.compute
    facts, info = tokens.source, video.probe(source)
    assert facts is not None
    assert facts.uri == "phone.mp4"
    assert facts.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (facts.width, facts.height) == (info.height, info.width)  # as stored, before the turn
    assert facts.rotation == info.rotation == 90
    assert Fraction(facts.fps or 0) == info.fps == 25
    assert (facts.num_frames, facts.start, facts.codec) == (10, info.start, "h264")
    assert (facts.has_audio, facts.kind) == (False, "video")
    assert tokens.preprocess is not None
    assert tokens.preprocess.pad == (3, 0, 0)  # 10 frames: 1 + 3 x 4; 64x48 are whole patches


def test_fps_size_and_clip_are_used_and_recorded(clips, omnitok, tmp_path):
    source = clips("steady.mp4")
    made = omnitok(
        *("tokenize", source, "-o", tmp_path, "--fps", "10", "--size", "24", "--clip", "0.2:1"),
        "--json",
    )
    (entry,) = made.json["files"]
    assert (entry["num_frames"], entry["height"], entry["width"]) == (8, 24, 32)
    assert entry["num_tokens"] == 3 * 3 * 4
    tokens = Tokens.load(tmp_path / "steady.omni.safetensors")
    assert tokens.preprocess is not None
    assert (tokens.preprocess.fps, tokens.preprocess.size) == ("10", 24)
    assert tokens.preprocess.clip == (0.2, 1.0)
    omnitok("decode", tmp_path / "steady.omni.safetensors")
    decoded = video.read(tmp_path / "steady.decoded.mp4")
    assert decoded.frames.shape == (8, 3, 24, 32)
    torch.testing.assert_close(decoded.pts, 0.2 + torch.arange(8).double() / 10, rtol=0, atol=1e-4)
    omnitok("tokenize", source, "-o", tmp_path / "tail", "--clip", "1:")
    tail = Tokens.load(tmp_path / "tail/steady.omni.safetensors")
    assert tail.size[0] == 5
    assert tail.preprocess is not None
    assert tail.preprocess.clip == (1.0, None)


def test_a_folder_of_frames_is_one_video(clips, omnitok, tmp_path):
    folder = shutil.copytree(clips("frames"), tmp_path / "shot.1")
    assert omnitok("tokenize", folder, "--frames", "--fps", "12").status == 0
    tokens = Tokens.load(tmp_path / "shot.1.omni.safetensors")
    assert tokens.size == (12, 48, 64)
    assert tokens.source is not None
    assert (tokens.source.uri, tokens.source.kind, tokens.source.fps) == ("shot.1", "folder", "12")
    assert omnitok("decode", tmp_path / "shot.1.omni.safetensors").status == 0
    decoded = video.probe(tmp_path / "shot.1.decoded.mp4")
    assert (decoded.num_frames, decoded.fps) == (12, 12)


def test_frames_kept_at_another_rate_are_warned_about(clips, omnitok, tmp_path):
    folder = shutil.copytree(clips("frames"), tmp_path / "shot")
    warned = []
    for rate in ([], [], ["--fps", "25"], ["--fps", "10"]):
        warned.append(
            "other weights or options" in omnitok("tokenize", folder, "--frames", *rate).err
        )
    assert warned == [False, False, False, True]


def test_the_same_input_gives_the_same_bytes(clips, omnitok, tmp_path):
    for name in ("one", "two"):
        omnitok("tokenize", clips("steady.mp4"), "-o", tmp_path / name)
    one, two = (tmp_path / n / "steady.omni.safetensors" for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_model_is_found_by_the_hash_in_the_file(clips, omnitok, shipped, tmp_path):
    tokens = tmp_path / "a.safetensors"
    assert omnitok("tokenize", clips("tiny.png"), "-o", tokens).status == 0
    assert omnitok("decode", tokens, "-o", tmp_path / "b.png", model=None).status == 0
    assert video.probe(tmp_path / "b.png").width == 64


def test_progress_counts_every_frame(clips, weights, tmp_path):
    seen: list[tuple[int, int | None]] = []
    done = tokenize_file(
        package.load(weights),
        clips("steady.mp4"),
        tmp_path / "a.safetensors",
        progress=lambda *frames: seen.append(frames),
    )
    assert seen[-1] == (30, 30)
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)
    assert (done.size, done.grid, done.num_tokens) == ((30, 48, 64), (9, 6, 8), 432)


def test_wide_inputs_and_many_outputs_keep_their_layout(clips, omnitok, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(clips("tiny.png"), folder / "a.png")
    shutil.copy(clips("tiny.jpg"), folder / "a.jpg")
    shutil.copy(clips("single.mp4"), folder / "sub/b.mp4")
    (folder / "notes.txt").write_text("not media")
    made = omnitok("tokenize", folder, "-o", tmp_path / "tokens", "--json")
    assert (made.json["done"], made.json["ignored"]) == (3, 1)
    assert omnitok("decode", tmp_path / "tokens", "-o", tmp_path / "back").status == 0
    names = {str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*.*")}
    assert names == {"a.png.decoded.png", "a.jpg.decoded.png", "sub/b.decoded.mp4"}
