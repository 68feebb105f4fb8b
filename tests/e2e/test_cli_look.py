"""Commands that look: inspect, compare, doctor, demo."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from video_clips import encode

import video
from tools.commands import demonstrating


def test_inspect_tells_what_is_in_the_file(clips, omnitok, shipped, tmp_path):
    source = Path(shutil.copy(clips("phone.mp4"), tmp_path / "phone.mp4"))
    omnitok("tokenize", source)
    tokens = tmp_path / "phone.omni.safetensors"
    run = omnitok("inspect", tokens)
    assert run.status == 0
    assert 9 <= len(run.out.splitlines()) <= 14
    for word in ("phone.mp4", "turned by 90", "64,000 codes", "ships with omnitok as random"):
        assert word in run.out
    data = omnitok("inspect", tokens, "--json").json
    assert data["grid"] == [4, 6, 8]
    assert data["num_tokens"] == 192
    assert data["duration"] == pytest.approx(0.4)
    assert data["tokens_per_second"] == pytest.approx(480)
    bits = 192 * data["bits_per_token"]
    assert data["bits_per_pixel"] == pytest.approx(bits / (10 * 48 * 64))
    assert data["compression_of_rgb"] == pytest.approx(24 * 10 * 48 * 64 / bits)
    assert data["compression_of_source"] == pytest.approx(8 * source.stat().st_size / bits)
    assert data["codebook"]["num_tokens"] == 192
    assert data["shipped_as"] == "random"
    source.unlink()
    assert omnitok("inspect", tokens, "--json").json["source_bytes"] is None


def test_inspect_knows_stills_and_strange_weights(clips, omnitok, tmp_path):
    omnitok("tokenize", clips("tiny.png"), "-o", tmp_path)
    run = omnitok("inspect", tmp_path / "tiny.omni.safetensors")
    assert "a still" in run.out
    assert "does not ship with omnitok" in run.out


def test_a_clip_compared_with_itself_is_equal(clips, omnitok):
    run = omnitok("compare", clips("steady.mp4"), clips("steady.mp4"), "--json")
    assert run.status == 0
    assert (run.json["psnr"], run.json["ssim"], run.json["flicker"]) == (100, 1, 0)
    assert len(run.json["frames"]) == run.json["num_frames"] == 30
    assert run.json["same_times"]


def test_compare_decodes_tokens_and_draws_both_clips(clips, omnitok, tmp_path):
    source = clips("steady.mp4")
    omnitok("tokenize", source, "-o", tmp_path)
    tokens = tmp_path / "steady.omni.safetensors"
    side, sheet = tmp_path / "side.mp4", tmp_path / "sheet.png"
    run = omnitok("compare", source, tokens, "-o", side, "--png", sheet)
    assert run.status == 0, run.err
    for word in ("PSNR", "SSIM", "worst frame", "flicker", str(side), str(sheet)):
        assert word in run.out
    shown = video.read(side)
    assert shown.frames.shape == (30, 3, 48, 128)
    left = shown.frames[..., :64].float() - video.read(source).frames.float()
    assert left.abs().mean() < 4
    with Image.open(sheet) as picture:
        assert picture.width > 3 * 64
    before = side.read_bytes()
    again = omnitok("compare", source, tokens, "-o", side)
    assert again.status == 0
    assert "kept" in again.err
    assert side.read_bytes() == before


def test_compare_finds_the_worst_frame_and_its_figures(omnitok, tmp_path):
    frames = video.read(encode(tmp_path / "a.mp4", 6)).frames
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for number, frame in enumerate(frames):
        video.write(tmp_path / f"a/{number}.png", frame[None])
        worse = frame.clone()
        if number == 4:
            worse[:, :10] = 255 - worse[:, :10]
        video.write(tmp_path / f"b/{number}.png", worse[None])
    data = omnitok("compare", tmp_path / "a", tmp_path / "b", "--json").json
    assert data["worst_frame"] == 4
    assert data["frames"][4]["psnr"] < 30
    assert data["frames"][3]["psnr"] == 100


def test_compare_does_not_write_over_what_it_reads(clips, omnitok, tmp_path):
    clip = shutil.copy(clips("tiny.png"), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "link.png").symlink_to("a.png")
    same = ("-o", tmp_path / "b.png", "--png", tmp_path / "b.png")
    for outputs in (("-o", clip), ("--png", tmp_path / "link.png"), same):
        run = omnitok("compare", clip, clip, "--overwrite", *outputs)
        assert run.status == 2
        assert "named twice" in run.err
    assert (tmp_path / "a.png").read_bytes() == before
    assert not (tmp_path / "b.png").exists()


def test_clips_that_differ_in_shape_cannot_be_compared(clips, omnitok, tmp_path):
    side = tmp_path / "side.mp4"
    run = omnitok("compare", clips("steady.mp4"), clips("odd.mp4"), "-o", side, "--json")
    assert run.status == 3
    assert "64x48" in run.json["error"]
    assert "63x47" in run.json["error"]
    run = omnitok("compare", clips("steady.mp4"), clips("film.mp4"), "-o", side)
    assert run.status == 3
    assert "30 frames" in run.err
    assert "24" in run.err
    run = omnitok("compare", clips("steady.mp4"), clips("truncated.mkv"), "-o", side)
    assert run.status == 3
    assert not side.exists()


def test_compare_says_when_times_differ(clips, omnitok):
    run = omnitok("compare", clips("steady.mp4"), clips("matroska.mkv"))
    assert run.status == 0
    assert "differ by up to 0.1" in run.out


def test_doctor_finds_a_sound_installation_and_a_broken_one(
    omnitok, shipped, monkeypatch, tmp_path
):
    run = omnitok("doctor", "--json")
    assert run.status == 0, run.out
    names = {check["name"] for check in run.json["checks"]}
    assert {"python", "torch", "av", "device", "bfloat16", "self-test random"} <= names
    broken = Path(shutil.copy(shipped, tmp_path / "random.safetensors"))
    broken.write_bytes(broken.read_bytes()[:-100])
    monkeypatch.setattr("omnitok.hub.SHIPPED", tmp_path)
    run = omnitok("doctor")
    assert run.status == 3
    assert "PROBLEM" in run.out
    assert "install omnitok again" in run.out


def test_doctor_finds_weights_that_are_not_those_of_their_card(omnitok, shipped, monkeypatch):
    card = shipped.with_suffix(".json")
    card.write_text('{"weights_sha256": "0123", "licence": "Apache-2.0"}')
    try:
        run = omnitok("doctor")
        models = omnitok("models")
    finally:
        card.unlink()
    assert run.status == 3
    assert "its card says 0123" in run.out
    assert "random: licence Apache-2.0" in models.out


def test_demo_shows_figures_and_writes_pictures(clips, omnitok, monkeypatch, tmp_path):
    monkeypatch.setattr(demonstrating, "CLIP", clips("steady.mp4"))
    run = omnitok("demo", "-o", tmp_path / "out")
    assert run.status == 0
    assert 10 <= len(run.out.splitlines()) <= 14
    for word in ("PSNR", "SSIM", "tokens", "frames/s", "sheet.png"):
        assert word in run.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "city.omni.safetensors",
        "city.decoded.mp4",
        "city.side_by_side.mp4",
        "city.sheet.png",
    }
    assert omnitok("demo", "-o", tmp_path / "out", "--json").json["num_frames"] == 30


def test_the_demo_clip_is_there():
    info = video.probe(demonstrating.CLIP)
    assert (info.num_frames, info.width, info.height) == (96, 320, 180)
    assert "CC0" in (demonstrating.CLIP.parent / "LICENSE").read_text()
