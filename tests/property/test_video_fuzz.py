"""Damaged files: a sentence or frames, never another exception, a hang or all of the memory."""

import resource
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from video_clips import encode, picture

import video
from video import VideoError

NAMES = [
    *("steady.mp4", "matroska.mkv", "phone.mp4", "broadcast.ts", "old.avi", "web.webm"),
    *("moving.gif", "moving.webp", "tiny.png", "tiny.jpg", "tiny.webp", "sideways.jpg"),
]
OPTIONS = [
    {},
    {"on_damage": "skip"},
    {"fps": 10, "on_damage": "skip"},
    {"clip": (0.2, 0.6)},
    {"size": 16},
]

EXTREME = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]
place = st.floats(0, 1) | st.floats(0, 0.2)  # headers are where it hurts
edit = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
    st.tuples(
        st.just("set"), place, st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    ),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=32)),
    st.tuples(st.just("remove"), place, st.integers(1, 64)),
    st.tuples(st.just("cut"), place, st.none()),
)


def damaged(data: bytes, edits) -> bytes:
    data = bytearray(data)
    for kind, where, value in edits:
        at = min(int(where * len(data)), max(0, len(data) - 1))
        if kind == "flip" and data:
            data[at] ^= 1 << value
        elif kind == "set":
            data[at : at + len(value)] = value
        elif kind == "insert":
            data[at:at] = value
        elif kind == "remove":
            del data[at : at + value]
        elif kind == "cut":
            del data[at:]
    return bytes(data)


def try_all(path: Path, options) -> None:
    """Read a file in every way; only a VideoError of one line may come out."""
    ways = (video.probe, lambda p: stream(p, options), lambda p: video.read_at(p, indices=[0]))
    for read_it in ways:
        message = path.name
        try:
            read_it(path)
        except VideoError as error:
            message = str(error)
        assert path.name in message
        assert "\n" not in message


def stream(path: Path, options) -> None:
    with video.open_video(path, **options) as reader:
        for frames, pts in reader:
            assert len(frames) == len(pts)
            assert (pts.diff() > 0).all()


@settings(
    max_examples=400,
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(NAMES),
    edits=st.lists(edit, min_size=1, max_size=8),
    options=st.sampled_from(OPTIONS),
)
def test_a_damaged_file_gives_frames_or_one_sentence(clips, tmp_path, name, edits, options):
    path = tmp_path / name
    path.write_bytes(damaged(clips(name).read_bytes(), edits))
    try_all(path, options)


@pytest.mark.parametrize("length", [1, 7, 8, 12, 100])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_few_bytes_is_refused_or_read(clips, tmp_path, name, length):
    path = tmp_path / name
    path.write_bytes(clips(name).read_bytes()[:length])
    try_all(path, {})


HUGE = {
    "a.png": (b"\0\0\0\x40\0\0\0\x30", b"\0\0\xea\x60\0\0\xea\x60"),
    "a.gif": (b"GIF89a\x40\0\x30\0", b"GIF89a\xff\xff\xff\xff"),
    "a.jpg": (b"\x08\0\x30\0\x40\x03", b"\x08\xff\xff\xff\xff\x03"),
    "a.y4m": (b"W64 H48", b"W60000 H60000"),
}


@pytest.mark.parametrize("name", sorted(HUGE))
def test_a_header_that_claims_a_huge_picture_takes_no_memory(clips, tmp_path, name):
    source = {"a.png": "tiny.png", "a.gif": "moving.gif", "a.jpg": "tiny.jpg"}.get(name)
    if source:
        data = clips(source).read_bytes()
    else:
        data = b"YUV4MPEG2 W64 H48 F25:1 C420\nFRAME\n" + bytes(64 * 48 * 3 // 2)
    old, new = HUGE[name]
    assert old in data
    path = tmp_path / name
    path.write_bytes(data)
    assert video.probe(path).width == 64
    path.write_bytes(data.replace(old, new, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VideoError, match=name):
        video.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_times_that_jump_for_hours_do_not_repeat_a_frame_for_hours(tmp_path):
    path = encode(tmp_path / "jump.mp4", 4, step=(0.04, 9000.0))
    assert len(video.read(path).frames) == 4
    with pytest.raises(VideoError, match="one frame from 0 s to 9000 s"):
        video.read(path, fps=25)


def test_a_last_frame_of_hours_is_not_repeated_for_hours(tmp_path):
    path = tmp_path / "long.webp"
    frames = [Image.fromarray(picture(n)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 40, 16_000_000])
    assert len(video.read(path).frames) == 3
    assert len(video.read(path, fps=25, clip=(0, 1)).frames) == 25
    assert len(video.read(path, fps=25, clip=(9000, 9001)).frames) == 25
    with video.open_video(path, fps=25) as reader, pytest.raises(VideoError, match="one frame"):
        list(reader)


def test_a_stream_that_appears_without_notice_ends_the_reading(clips, tmp_path):
    data = bytearray(clips("broadcast.ts").read_bytes())
    starts = [at for at in range(0, len(data), 188) if data[at : at + 3] == b"\x47\x41\x00"]
    data[starts[-5] + 2] = 0x20  # a picture moves to a stream of its own
    path = tmp_path / "grown.ts"
    path.write_bytes(data)
    with video.open_video(path, on_damage="skip") as reader:
        assert sum(len(frames) for frames, _ in reader) >= 20
    assert any("header does not name" in warning for warning in reader.warnings)
    with pytest.raises(VideoError, match=r"grown\.ts"):
        video.read(path)
