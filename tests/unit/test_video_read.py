"""Reading: order, times, rotation, sampling, clips, random access, colour."""

import itertools
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video_clips import DAMAGED, UPRIGHT, number_of

import video
from video import VideoError, read, read_at, write
from video.index import upright

MOVING = sorted(n for n in UPRIGHT if not n.startswith(("tiny", "sideways")))


def numbers(clip):
    return [number_of(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", MOVING)
def test_frames_come_whole_in_order_and_upright(clips, name):
    clip = read(clips(name))
    assert clip.frames.shape == (clip.info.num_frames, 3, 48, 64) or name == "odd.mp4"
    assert clip.frames.dtype == torch.uint8
    assert clip.pts.dtype == torch.float64
    assert numbers(clip) == list(range(clip.info.num_frames))
    assert (clip.pts.diff() > 0).all()
    red, blue = clip.frames[0, :, 16, 8].tolist(), clip.frames[0, :, 16, 56].tolist()
    assert red[0] > 150 > 80 > red[2]
    assert blue[2] > 150 > 80 > blue[0]


@pytest.mark.parametrize("name", MOVING)
def test_chunks_are_small_and_add_up_to_the_clip(clips, name):
    whole = read(clips(name))
    with video.open_video(clips(name), chunk=5) as reader:
        parts = list(reader)
        assert reader.num_frames == len(whole.frames)
        assert (reader.damaged, reader.warnings) == (0, [])
    assert {len(frames) for frames, _ in parts[:-1]} <= {5}
    assert torch.equal(torch.cat([frames for frames, _ in parts]), whole.frames)
    assert torch.equal(torch.cat([pts for _, pts in parts]), whole.pts)


@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), (-1, 1))))
@pytest.mark.parametrize("swapped", [False, True])
def test_every_quarter_turn_and_mirror_is_undone(signs, swapped):
    a, b, c, d = (0, signs[0], signs[1], 0) if swapped else (signs[0], 0, 0, signs[1])
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    x, y = np.meshgrid(np.arange(3), np.arange(2))
    x_shown, y_shown = a * x + c * y, b * x + d * y
    expected = np.empty((3, 2, 1) if swapped else (2, 3, 1), np.uint8)
    expected[y_shown - y_shown.min(), x_shown - x_shown.min()] = stored
    assert (upright(stored, (a, b, c, d)) == expected).all()


def test_an_odd_size_is_kept(clips):
    assert read(clips("odd.mp4")).frames.shape == (8, 3, 47, 63)


def test_times_are_those_of_the_file(clips):
    film = read(clips("film.mp4"))
    expected = torch.arange(24, dtype=torch.float64) * 1001 / 24000
    torch.testing.assert_close(film.pts, expected, atol=1e-5, rtol=0)
    assert film.fps == Fraction(24000, 1001)
    variable = read(clips("variable.mp4"))
    steps = torch.tensor([0.02, 0.051, 0.033, 0.1, 0.0167], dtype=torch.float64).repeat(4)[:19]
    torch.testing.assert_close(variable.pts.diff(), steps, atol=1e-5 * 2.3, rtol=0)
    gif = read(clips("moving.gif"))
    torch.testing.assert_close(
        gif.pts, torch.tensor([0, 0.04, 0.14, 0.34, 0.38, 0.43], dtype=torch.float64)
    )


def test_resampling_shows_the_frame_of_each_tick(clips):
    slow = read(clips("steady.mp4"), fps=10)
    assert numbers(slow) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    torch.testing.assert_close(slow.pts, torch.arange(12, dtype=torch.float64) / 10)
    assert slow.fps == 10
    fast = read(clips("steady.mp4"), fps=50)
    assert numbers(fast) == [n // 2 for n in range(60)]


@pytest.mark.parametrize("fps", [3, 24, 60, "30000/1001"])
@pytest.mark.parametrize("name", ["variable.mp4", "film.mp4", "matroska.mkv", "late.mp4"])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.2, 0.71), (0.5, 2.0)])
def test_resampling_a_stream_equals_sampling_its_times(clips, name, fps, part):
    whole = read(clips(name))
    first, length = float(whole.pts[0]), whole.info.duration
    clip = (first + part[0] * length, first + part[1] * length)
    with video.open_video(clips(name), fps=fps, clip=clip) as reader:
        picked = [number_of(f) for frames, _ in reader for f in frames]
        assert len(picked) == reader.num_frames
    expected = video.sample_times(whole.pts, fps, clip[0], min(clip[1], first + length))
    assert picked == expected.tolist()


@pytest.mark.parametrize("name", ["steady.mp4", "open_gop.mp4", "web.webm", "old.avi", "frames"])
def test_a_clip_holds_the_frames_between_its_times(clips, name):
    whole = read(clips(name))
    part = read(clips(name), clip=(0.2, 0.44))
    inside = (whole.pts >= 0.2 - 1e-9) & (whole.pts < 0.44 - 1e-9)
    assert torch.equal(part.pts, whole.pts[inside])
    assert torch.equal(part.frames, whole.frames[inside])


def test_a_clip_too_short_for_a_tick_shows_its_first_frame(clips):
    for part in ((0, 0.001), (0.4, 0.4005)):
        with video.open_video(clips("steady.mp4"), fps=25, clip=part) as reader:
            frames = list(reader.frames())
            assert reader.num_frames == len(frames) == 1
            assert frames[0][1] == part[0]


def test_a_clip_outside_of_the_video_is_refused(clips):
    with pytest.raises(VideoError, match=r"0.000 s to 1.200 s"):
        read(clips("steady.mp4"), clip=(5, 6))


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("steady.mp4", 24, (24, 32)), ("odd.mp4", 24, (24, 32)), ("phone.mp4", 24, (24, 32)),
     ("frames", (20, 30), (20, 30)), ("tiny.png", 96, (96, 128))],
)  # fmt: skip
def test_size_sets_the_shorter_side_or_both(clips, name, size, expected):
    clip = read(clips(name), size=size)
    assert clip.frames.shape[2:] == expected
    big = read(clips(name)).frames[0].float().mean((1, 2))
    assert (clip.frames[0].float().mean((1, 2)) - big).abs().max() < 4


@pytest.mark.parametrize("name", MOVING)
def test_random_access_equals_reading_in_order(clips, name):
    whole = read(clips(name))
    order = torch.randperm(len(whole.frames), generator=torch.Generator().manual_seed(0))
    order = torch.cat([order, order[:3]])
    picked = read_at(clips(name), indices=order)
    assert torch.equal(picked.frames, whole.frames[order])
    assert torch.equal(picked.pts, whole.pts[order])
    for index in order[:6]:
        assert torch.equal(read_at(clips(name), indices=[index]).frames[0], whole.frames[index])


def test_random_access_by_time_gives_the_frame_shown_then(clips):
    clip = read_at(clips("variable.mp4"), [0.0, 0.019, 0.02, 0.0711, 0.3])
    assert numbers(clip) == [0, 0, 1, 2, 7]
    assert numbers(read_at(clips("late.mp4"), [0.2])) == [0]


@pytest.mark.parametrize("bad", [{"times": [9.0]}, {"times": [float("nan")]}, {"indices": [30]},
                                 {"indices": [-1]}, {"indices": []}])  # fmt: skip
def test_random_access_outside_of_the_video_is_refused(clips, bad):
    with pytest.raises(VideoError, match=r"steady.mp4"):
        read_at(clips("steady.mp4"), **bad)


@pytest.mark.parametrize(
    "bad", [{"fps": 0}, {"fps": "fast"}, {"fps": float("nan")}, {"size": 0}, {"size": (0, 4)},
            {"clip": (2, 1)}, {"backend": "ffmpeg"}, {"on_damage": "maybe"}, {"chunk": 0}]
)  # fmt: skip
def test_an_argument_that_means_nothing_is_refused(clips, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        video.open_video(clips("steady.mp4"), **bad)


def test_a_reader_can_be_iterated_twice_and_left_early(clips):
    with video.open_video(clips("steady.mp4"), chunk=4) as reader:
        first = next(iter(reader))[0]
        again = [frames for frames, _ in reader]
    assert torch.equal(first, again[0])
    assert sum(map(len, again)) == 30


@pytest.mark.parametrize("space", [1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_pure_colours_survive_every_matrix_and_range(tmp_path, space, full):
    path = tmp_path / "colours.mp4"
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 200)]
    pixels = np.repeat(np.array(colours, np.uint8)[None], 32, 0).repeat(16, 1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 96, "yuv420p"
        stream.codec_context.colorspace = space
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=space, dst_color_range=2 if full else 1
        )
        output.mux(stream.encode(frame) + stream.encode(None))
    clip = read(path)
    seen = clip.frames[0].permute(1, 2, 0)[16, 8::16].int()
    assert (seen - torch.tensor(colours)).abs().max() <= 4
    assert clip.info.color_range == ("full" if full else "limited")
    assert clip.info.color_space == ("bt709" if space == 1 else "bt601")


def test_a_film_that_does_not_fit_in_memory_is_refused(clips, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 300)  # 90,000 bytes: 9 frames of 30
    with pytest.raises(VideoError, match="open_video"):
        read(clips("steady.mp4"))


@pytest.mark.parametrize("name", [n for n in DAMAGED if n.startswith("truncated")])
def test_a_video_that_ends_early_gives_its_whole_frames_and_says_so(clips, name):
    with video.open_video(clips(name)) as reader:
        picked = [number_of(f) for frames, _ in reader for f in frames]
    assert picked == sorted(picked)
    assert picked[:4] == [0, 1, 2, 3]
    assert len(picked) < 30
    assert any("ends early" in warning for warning in reader.warnings)


def test_a_video_trimmed_by_its_edit_list_is_complete(clips, tmp_path):
    data = bytearray(clips("closed_gop.mp4").read_bytes())
    at = data.index(b"elst") + 12  # milliseconds shown, first tick shown
    with av.open(str(clips("closed_gop.mp4"))) as container:
        ticks = round(0.4 / container.streams.video[0].time_base)
    first = struct.unpack_from(">i", data, at + 4)[0] + ticks
    struct.pack_into(">Ii", data, at, 1000, first)
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(data)
    with video.open_video(path) as reader:
        picked = [number_of(f) for frames, _ in reader for f in frames]
    assert picked == list(range(10, 35))
    assert reader.warnings == []
    assert [number_of(f) for f in read_at(path, indices=[20, 0]).frames] == [30, 10]


def test_a_change_of_size_is_told_after_the_frames_before_it(clips):
    seen = []

    def read_all():
        with video.open_video(clips("resized.ts")) as reader:
            for frames, _ in reader:
                seen.extend(number_of(frame) for frame in frames)

    with pytest.raises(VideoError, match=r"0\.400 s from 64x48 to 128x96"):
        read_all()
    assert seen == list(range(10))


def test_damage_is_raised_or_counted(clips, tmp_path):
    data = bytearray(clips("closed_gop.mp4").read_bytes())
    with av.open(str(clips("closed_gop.mp4"))) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    position, size = packets[24]
    data[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError, match="on_damage='skip'"):
        read(path)
    with video.open_video(path, on_damage="skip") as reader:
        picked = [number_of(f) for frames, _ in reader for f in frames]
    assert reader.damaged >= 1
    assert set(range(20)) <= set(picked)
    assert len(picked) < 60
    assert f"{len(picked)} of 60 frames" in reader.warnings[-1]


def real_clips():
    data = Path(os.environ.get("OMNITOK_DATA") or Path(__file__).parents[3] / "shared" / "data")
    return sorted(data.glob("video/*.mp4")) + sorted(data.glob("shared_only/video/sign_[by]*.mkv"))


@pytest.mark.parametrize("path", real_clips()[:12] or [None], ids=lambda p: p and p.name)
def test_a_real_clip_is_whole_and_survives_writing(path, tmp_path):
    if path is None:
        pytest.skip("no real clips; set OMNITOK_DATA to the folder that holds video/")
    with video.open_video(path, size=32, clip=(0, 1)) as reader:
        first = [torch.cat(part) for part in zip(*reader, strict=True)]
    assert reader.warnings == []
    write(tmp_path / "copy.mp4", first[0], pts=first[1])
    copy = read(tmp_path / "copy.mp4")
    torch.testing.assert_close(copy.pts, first[1], atol=1e-5, rtol=0)
    assert copy.frames.shape == first[0].shape
