"""What probing says about files of every kind, and what it refuses."""

import os
from fractions import Fraction

import pytest
from video_clips import BROKEN, UPRIGHT

import video
from video import VideoError


@pytest.mark.parametrize(
    ("name", "fps", "count", "variable"),
    [
        ("steady.mp4", Fraction(25), 30, False),
        ("film.mp4", Fraction(24000, 1001), 24, False),
        ("smooth.mp4", Fraction(60000, 1001), 60, False),
        ("matroska.mkv", Fraction(30000, 1001), 30, False),
        ("variable.mp4", None, 20, True),
        ("single.mp4", Fraction(25), 1, False),
        ("broadcast.ts", Fraction(25), 30, False),
        ("old.avi", Fraction(25), 30, False),
        ("vp8.webm", Fraction(25), 40, False),
        ("moving.gif", Fraction(600, 49), 6, True),
        ("frames", Fraction(25), 12, False),
    ],
)
def test_rate_and_number_of_frames_are_those_of_the_file(clips, name, fps, count, variable):
    info = video.probe(clips(name))
    assert (info.num_frames, info.variable_rate) == (count, variable)
    assert fps is None or info.fps == fps


@pytest.mark.parametrize(
    ("name", "rotation"), [("steady.mp4", 0), ("phone.mp4", 90), ("phone180.mp4", 180),
                           ("phone270.mp4", 270), ("sideways.jpg", 90)]
)  # fmt: skip
def test_size_is_what_the_viewer_sees_after_rotation(clips, name, rotation):
    info = video.probe(clips(name))
    assert (info.width, info.height, info.rotation) == (64, 48, rotation)


def test_an_image_has_no_rate_and_one_frame(clips):
    info = video.probe(clips("tiny.png"))
    assert (info.kind, info.fps, info.num_frames, info.duration) == ("image", None, 1, 0.0)


def test_sound_start_and_size_on_disk_are_told(clips):
    assert video.probe(clips("sound.mp4")).has_audio
    assert video.probe(clips("late.mp4")).start == pytest.approx(1.5)
    path = clips("steady.mp4")
    info = video.probe(path)
    assert not info.has_audio
    assert (info.codec, info.pix_fmt) == ("h264", "yuv420p")
    assert info.file_size == path.stat().st_size


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_file_without_pictures_is_refused_in_one_sentence_that_names_it(clips, name):
    clips("steady.mp4")  # playlists point at it
    for call in (video.probe, video.open_video, video.read):
        with pytest.raises(VideoError, match=name) as caught:
            call(clips(name))
        assert "\n" not in str(caught.value)


def test_a_missing_file_a_device_and_an_empty_folder_are_refused(tmp_path):
    for path, words in [
        (tmp_path / "gone.mp4", "No such file"),
        ("/dev/null", "no regular file"),
        (tmp_path, "no images"),
        ("http://example.org/a.mp4", "No such file"),
        ("nul\0l.mp4", "null"),
    ]:
        with pytest.raises(VideoError, match=words):
            video.probe(path)


def test_a_file_without_read_permission_is_refused(clips, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(VideoError, match="Permission denied"):
        video.probe(clips("steady.mp4"))


def test_a_replaced_file_is_probed_again(clips, tmp_path):
    path = tmp_path / "same.mp4"
    path.write_bytes(clips("steady.mp4").read_bytes())
    assert video.probe(path).num_frames == 30
    path.write_bytes(clips("single.mp4").read_bytes())
    assert video.probe(path).num_frames == 1


def test_a_path_may_be_bytes_or_hold_any_character(clips, tmp_path):
    path = tmp_path / "50%d élan [1].mp4"
    path.write_bytes(clips("steady.mp4").read_bytes())
    assert video.probe(os.fsencode(path)).num_frames == 30


def test_every_readable_kind_is_probed(clips):
    assert all(video.probe(clips(name)).num_frames for name in UPRIGHT)
