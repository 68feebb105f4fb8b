"""A small file is gone through once: what the index decoded is where reading goes on."""

from __future__ import annotations

import gc
import os

import pytest
import torch

import video
from video import index
from video.index import begin, forget

NAMES = ("steady.mp4", "variable.mp4", "open_gop.mp4", "phone.mp4", "single.mp4", "broadcast.ts")


@pytest.mark.parametrize("name", NAMES)
def test_reading_on_equals_reading_anew(clips, name):
    path = clips(name)
    forget()
    first = video.read(path)  # goes on behind the index
    again = video.read(path)  # the index is known
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.pts, again.pts)


def test_a_reader_goes_through_its_file_twice(clips):
    forget()
    with video.open_video(clips("steady.mp4")) as reader:
        passes = [torch.cat([frames for frames, _ in reader]) for _ in range(2)]
    assert torch.equal(*passes)


def test_damage_is_the_same_either_way(clips, tmp_path):
    data = bytearray(clips("steady.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    results = []
    forget()
    for _ in range(2):
        with video.open_video(path, on_damage="skip") as reader:
            frames = torch.cat([frames for frames, _ in reader])
            results.append((frames, reader.damaged, reader.warnings))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_large_files_are_not_kept(clips, monkeypatch):
    monkeypatch.setattr(index, "KEPT_BYTES", 10)
    forget()
    assert begin(str(clips("steady.mp4")), "AUTO")[1] is None


def test_a_decoder_that_is_not_used_is_closed(clips):
    def open_files():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    path = clips("steady.mp4")
    video.read(path)
    before = open_files()
    for _ in range(5):
        forget()
        with video.open_video(path):
            pass
        forget()
        with video.open_video(path) as reader:
            next(iter(reader))
    assert open_files() <= before
