"""The optional decord backend against PyAV."""

import sys

import pytest
import torch
from video_clips import number_of

import video
from video import VideoError, read, read_at

CLEAN = [
    *("steady.mp4", "film.mp4", "smooth.mp4", "variable.mp4", "closed_gop.mp4", "odd.mp4"),
    *("single.mp4", "late.mp4", "matroska.mkv"),
]


@pytest.mark.parametrize("name", CLEAN)
def test_decord_gives_the_frames_and_times_of_pyav(clips, name):
    pytest.importorskip("decord", reason="decord2 is not installed")
    ours, theirs = read(clips(name)), read(clips(name), backend="decord")
    torch.testing.assert_close(theirs.pts, ours.pts, atol=1e-5, rtol=0)
    assert [number_of(f) for f in theirs.frames] == [number_of(f) for f in ours.frames]
    assert (theirs.frames.int() - ours.frames.int()).abs().float().mean() < 3


def test_decord_samples_clips_and_single_frames(clips):
    pytest.importorskip("decord", reason="decord2 is not installed")
    path = clips("closed_gop.mp4")
    picked = read_at(path, indices=[50, 3, 17, 3], backend="decord")
    assert [number_of(f) for f in picked.frames] == [50, 3, 17, 3]
    part = read(path, clip=(1.0, 1.2), fps=50, size=24, backend="decord")
    assert [number_of(f) for f in part.frames] == [25, 25, 26, 26, 27, 27, 28, 28, 29, 29]
    assert part.frames.shape[2:] == (24, 32)


def test_decord_leaves_images_to_pillow(clips):
    assert len(read(clips("tiny.png"), backend="decord").frames) == 1


def test_decord_refuses_what_pyav_refuses_and_rotated_clips(clips):
    pytest.importorskip("decord", reason="decord2 is not installed")
    for name in ("text.mp4", "headless.mp4", "sound.m4a", "phone.mp4"):
        with pytest.raises(VideoError, match=name):
            read(clips(name), backend="decord")


def test_a_missing_decord_is_said_with_the_line_that_installs_it(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match=r"pip install 'decord2>=3'"):
        video.open_video(clips("steady.mp4"), backend="decord")
