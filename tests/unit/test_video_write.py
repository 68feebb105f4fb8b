"""Writing: what is written reads back with the same frames, times and size, or not at all."""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from video_clips import UPRIGHT, number_of, picture

import video
from video import VideoError, VideoWriter, read, write


def numbered(count, height=48, width=64):
    frames = np.stack([picture(n, height, width) for n in range(count)])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("name", sorted(UPRIGHT))
def test_every_readable_clip_survives_writing(clips, tmp_path, name):
    clip = read(clips(name))
    write(tmp_path / "copy.mp4", clip)
    copy = read(tmp_path / "copy.mp4")
    assert copy.frames.shape == clip.frames.shape
    assert [number_of(f) for f in copy.frames] == [number_of(f) for f in clip.frames]
    torch.testing.assert_close(copy.pts, clip.pts, atol=1e-5, rtol=0)
    assert clip.fps is None or copy.info.variable_rate or copy.fps == clip.fps
    assert copy.info.rotation == 0
    luma = [frames.float().mean(1) for frames in (copy.frames, clip.frames)]
    assert (luma[0] - luma[1]).abs().mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (7, 200), (47, 64), (48, 63), (31, 33)])
def test_any_size_is_kept_exactly(tmp_path, size):
    write(tmp_path / "a.mp4", torch.full((3, 3, *size), 90, dtype=torch.uint8))
    back = read(tmp_path / "a.mp4").frames
    assert back.shape == (3, 3, *size)
    assert (back.int() - 90).abs().max() <= 3


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), 25, Fraction(60000, 1001), 0.5, 1000])
def test_a_steady_rate_is_kept_exactly(tmp_path, fps):
    write(tmp_path / "a.mp4", numbered(12), fps=fps)
    back = read(tmp_path / "a.mp4")
    assert back.fps == Fraction(fps)
    torch.testing.assert_close(
        back.pts, torch.arange(12, dtype=torch.float64) / float(fps), atol=1e-9, rtol=0
    )
    assert back.info.duration == pytest.approx(12 / fps)


def test_a_clip_of_less_than_a_millisecond_keeps_its_frames(tmp_path):
    write(tmp_path / "a.mp4", numbered(4), fps=Fraction(90001, 7))
    assert [number_of(f) for f in read(tmp_path / "a.mp4").frames] == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("start", [1 / 30, 1.4333333, 95443.71, 1000000.12345])
def test_a_start_is_kept_as_exactly_as_the_rate(tmp_path, start, suffix):
    pts = start + torch.arange(4, dtype=torch.float64) / 25
    write(tmp_path / f"a{suffix}", numbered(4), pts=pts)
    assert (read(tmp_path / f"a{suffix}").pts - pts).abs().max() < 1e-5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_before_time_0_are_written_from_0_on(tmp_path, suffix):
    steps = torch.arange(4, dtype=torch.float64) / 25
    write(tmp_path / f"a{suffix}", numbered(4), pts=steps - 0.1)
    clip = read(tmp_path / f"a{suffix}")
    assert [number_of(f) for f in clip.frames] == [0, 1, 2, 3]
    torch.testing.assert_close(clip.pts, steps)


def test_pure_colours_survive_writing(tmp_path):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0],
                            [255, 255, 0], [128, 128, 128], [30, 200, 170]])  # fmt: skip
    frames = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32)
    for name in ("a.mp4", "a.mkv"):
        write(tmp_path / name, frames, crf=12)
        back = read(tmp_path / name).frames[:, :, 16, 16]
        assert (back.int() - colours).abs().max() <= 3
        info = video.probe(tmp_path / name)
        assert (info.color_space, info.color_range) == ("bt709", "limited")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".jpg", ".gif"])
def test_one_frame_is_written_as_an_image(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, numbered(1))
    back = read(path)
    assert back.info.kind == "image"
    limit = {".jpg": 12, ".gif": 30}.get(suffix, 0)
    assert (back.frames.int() - numbered(1).int()).abs().max() <= limit


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animation_keeps_its_times(tmp_path, suffix):
    pts = [0.5, 0.54, 0.64, 0.7, 1.0]
    write(tmp_path / f"a{suffix}", numbered(5), pts=pts)
    back = read(tmp_path / f"a{suffix}")
    assert [number_of(f) for f in back.frames] == list(range(5))
    torch.testing.assert_close(back.pts, torch.tensor(pts, dtype=torch.float64) - 0.5)


def test_a_folder_of_frames_is_lossless(tmp_path):
    write(tmp_path / "out", numbered(12))
    assert names(tmp_path / "out")[0] == "000000.png"
    assert torch.equal(read(tmp_path / "out").frames, numbered(12))


def test_frames_may_come_in_pieces(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=25) as writer:
        for frames in numbered(10).split(3):
            writer.write(frames)
    assert [number_of(f) for f in read(tmp_path / "a.mp4").frames] == list(range(10))


@pytest.mark.parametrize("target", ["a.mp4", "a.mkv", "a.gif", "a.png", "out"])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, target):
    def fail():
        with VideoWriter(tmp_path / target) as writer:
            writer.write(numbered(1))
            raise KeyboardInterrupt

    if "." in target:
        (tmp_path / target).write_bytes(b"old")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == before
    assert "." not in target or (tmp_path / target).read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".mp4", ".png", ".gif", ""])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path, suffix):
    name = "n" * (255 - len(suffix)) + suffix
    write(tmp_path / name, numbered(1))
    assert names(tmp_path) == [name]


def test_nothing_stands_under_the_target_before_it_is_complete(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(numbered(3))
        assert not (tmp_path / "a.mp4").exists()
    assert names(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "pts", "error"),
    [
        (numbered(2), [0.1, 0.1], VideoError),
        (numbered(2), [0.1, 0.0], VideoError),
        (numbered(2), [0.0, float("nan")], VideoError),
        (numbered(2), [0.0, float("inf")], VideoError),
        (numbered(2), [0.0, 1e300], VideoError),
        (numbered(2), [-1e300, 0.0], VideoError),
        (numbered(2), [0.0, 1e-7], VideoError),
        (numbered(2), [0.0], ValueError),
        (numbered(2).float(), None, ValueError),
        (numbered(2)[:, :1], None, ValueError),
        (numbered(2)[0], None, ValueError),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, frames, pts, error):
    with pytest.raises(error):
        write(tmp_path / "a.mp4", frames, pts=pts)
    assert names(tmp_path) == []


def test_targets_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    for target, words in [
        ("a.xyz", "unknown suffix '.xyz'"),
        ("gone/a.mp4", "No such file"),
        ("gone/out", "No such file"),
        ("full", "not empty"),
        ("full/mine.txt/a.mp4", "cannot be written"),
    ]:
        with pytest.raises(VideoError, match=words):
            write(tmp_path / target, numbered(1))
    with pytest.raises(VideoError, match="holds one frame"):
        write(tmp_path / "a.png", numbered(2))
    with pytest.raises(VideoError, match="no frames"):
        VideoWriter(tmp_path / "a.mp4").close()
    assert names(tmp_path) == ["full"]


def test_a_picture_too_wide_for_its_format_is_refused(tmp_path):
    for suffix in (".gif", ".webp", ".jpg", ".mp4"):
        with pytest.raises(VideoError, match=r"cannot (be written|hold)"):
            write(tmp_path / f"a{suffix}", torch.zeros(1, 3, 1, 70000, dtype=torch.uint8))
    assert names(tmp_path) == []


def test_a_frame_shown_for_longer_than_its_format_can_say_is_refused(tmp_path):
    for suffix in (".gif", ".webp", ".apng"):
        with pytest.raises(VideoError, match=r"cannot (be written|hold)"):
            write(tmp_path / f"a{suffix}", numbered(3), pts=[0, 1e8, 2e8])
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_an_interruption_while_the_file_is_completed_leaves_nothing(tmp_path, suffix, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / f"a{suffix}", numbered(2))
    assert names(tmp_path) == []


def test_one_file_has_one_size(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4")
    writer.write(numbered(1))
    with pytest.raises(VideoError, match="frame 1 is 32x48"):
        writer.write(numbered(1, 48, 32))
    writer.abandon()
    assert names(tmp_path) == []


def test_a_gif_faster_than_players_show_is_refused(tmp_path):
    with pytest.raises(VideoError, match="resample to 50"):
        write(tmp_path / "a.gif", numbered(4), fps=100)
    assert names(tmp_path) == []


FULL_DISK = """
import os, resource, signal, sys, torch, video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
frames = torch.randint(0, 255, (20, 3, 64, 64), dtype=torch.uint8)
for target, count in [("a.mp4", 60), ("a.mkv", 60), ("a.png", 1), ("a.gif", 2), ("out", 2)]:
    try:
        with video.VideoWriter(sys.argv[1] + target, crf=1) as writer:
            for _ in range(count):
                writer.write(frames[: min(count, 20)] + writer.num_frames)
                if count == 1:
                    break
    except video.VideoError as error:
        print(error)
print(os.listdir(sys.argv[1]))
"""


def test_a_full_disk_is_one_sentence_and_no_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"{tmp_path}/"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done
    assert all("cannot be written" in line for line in lines[:5])
    assert lines[5] == "[]"


def test_written_mp4_starts_with_its_index(tmp_path):
    write(tmp_path / "a.mp4", numbered(5))
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
