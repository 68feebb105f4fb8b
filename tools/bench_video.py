"""Speed and correctness of the video decoders, as tables on the terminal.

    python -m tools.bench_video [FILE ...] [--repeat 5]

Every figure is the best of `--repeat` rounds in which the contenders take turns, so that a busy
machine hits all of them. "decoder alone" decodes with PyAV (automatic threads), converts every
frame to packed RGB with one shared scaler and drops it; "decoder, frames kept" copies them into
one array made beforehand, which is what `video.read` delivers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from rich.console import Console
from rich.table import Table

import video
from video.index import forget

WRONG = 12.0  # mean difference in levels above which two frames are different pictures
PICKED = 32  # frames of a random batch
CLIPS = ("city_night_cc0.mp4", "big_buck_bunny_trailer.mp4", "carphone.mp4", "bikes.mp4")


def decode_alone(path: str, keep: bool = False) -> int:
    """Decode and convert to RGB with PyAV alone; returns the number of frames."""
    scaler, count, pixels = VideoReformatter(), 0, None
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            rgb = scaler.reformat(frame, format="rgb24", interpolation="BILINEAR", threads=1)
            picture = rgb.to_ndarray()
            if keep:
                if pixels is None:
                    pixels = np.empty((stream.frames or 10_000, *picture.shape), np.uint8)
                pixels[count] = picture
            count += 1
    return count


def stream_all(path: str, backend: str = "auto") -> int:
    """All chunks of `video.open_video`."""
    with video.open_video(path, backend=backend) as reader:
        return sum(len(frames) for frames, _ in reader)


def decord_alone(path: str) -> int:
    """Frame after frame through decord's own reader."""
    import decord

    reader = decord.VideoReader(path)
    return sum(1 for _ in range(len(reader)) if reader.next().asnumpy().size)


def race(contenders: dict[str, Callable[[], int]], repeat: int) -> dict[str, float]:
    """Frames per second of every contender: the best of `repeat` rounds, index not remembered."""
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(repeat):
        for name, run in contenders.items():
            forget()
            start = time.perf_counter()
            count = run()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def sequential(path: str) -> dict[str, Callable[[], int]]:
    """Contenders that deliver every frame of a file in order."""
    return {
        "decoder alone": lambda: decode_alone(path),
        "decoder, frames kept": lambda: decode_alone(path, keep=True),
        "video.open_video": lambda: stream_all(path),
        "video.read": lambda: len(video.read(path).frames),
        "decord alone": lambda: decord_alone(path),
        "open_video, decord": lambda: stream_all(path, "decord"),
    }


def random_access(path: str) -> dict[str, Callable[[], int]]:
    """Contenders that deliver a batch of random frames, the file being new to them."""
    total = video.probe(path).num_frames or 1
    picked = np.random.default_rng(0).integers(0, total, PICKED).tolist()

    def batch(backend: str) -> int:
        return len(video.read_at(path, indices=picked, backend=backend).frames)

    def one_by_one() -> int:
        return sum(len(video.read_at(path, indices=[index]).frames) for index in picked)

    def decord_batch() -> int:
        import decord

        return len(decord.VideoReader(path).get_batch(picked).asnumpy())

    return {
        "read_at, one batch": lambda: batch("pyav"),
        "read_at, one by one": one_by_one,
        "decord get_batch": decord_batch,
        "read_at, decord": lambda: batch("decord"),
    }


def encode(path: Path, steps: tuple[float, ...] = (0.04,), params: str = "", turn: int = 0) -> Path:
    """A clip of 120 noisy frames that all differ."""
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    base, when = Fraction(1, 90000), 0.0
    height, width = (95, 127) if "odd" in path.name else (96, 128)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=25, options={"x264-params": params, "crf": "20"})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if "odd" in path.name else "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        if turn:
            stream.set_display_rotation(-turn)
        for number in range(120):
            pixels = np.ascontiguousarray(texture[3 * number :][:height, 2 * number :][:, :width])
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = round(when / base), base
            output.mux(stream.encode(frame))
            when += steps[number % len(steps)]
        output.mux(stream.encode(None))
    return path


def made_clips(folder: Path) -> list[Path]:
    """Clips that decoders are known to get wrong."""
    gop = "keyint=24:min-keyint=24:scenecut=0:bframes=3"
    whole = encode(folder / "steady.mp4", params=gop)
    cut = folder / "truncated.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    return [
        whole,
        encode(folder / "open_gop.mp4", params=gop + ":open-gop=1"),
        encode(folder / "variable.mp4", steps=(0.02, 0.1, 0.033), params=gop),
        encode(folder / "rotated.mp4", params=gop, turn=90),
        encode(folder / "odd.mp4", params=gop),
        cut,
    ]


def mistakes(path: Path, backend: str) -> str:
    """Wrong frames out of all, in order and after seeks, against PyAV decoding in order."""
    with video.open_video(path, on_damage="skip") as reader:
        frames = np.concatenate([chunk.numpy() for chunk, _ in reader]).astype(np.int16)
    shuffled = np.random.default_rng(1).permutation(len(frames)).tolist()
    try:
        with video.open_video(path, on_damage="skip", backend=backend) as reader:
            ordered = np.concatenate([chunk.numpy() for chunk, _ in reader])
        singles = [video.read_at(path, indices=[n], backend=backend) for n in shuffled[:40]]
        batch = video.read_at(path, indices=shuffled, backend=backend).frames.numpy()
    except video.VideoError as error:
        return f"refused: {str(error).removeprefix(str(path))}"
    after_seek = np.concatenate([clip.frames.numpy() for clip in singles])

    def count(seen: np.ndarray, expected: np.ndarray) -> str:
        wrong = np.abs(seen - expected).mean((1, 2, 3)) > WRONG
        return f"{wrong.sum()}/{len(wrong)}"

    return (
        f"in order {count(ordered, frames)}, one by one {count(after_seek, frames[shuffled[:40]])},"
        f" batch {count(batch, frames[shuffled])}"
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = (
        Path(os.environ.get("OMNITOK_DATA") or Path(__file__).parents[2] / "shared/data") / "video"
    )
    parser.add_argument("files", nargs="*", default=[str(data / name) for name in CLIPS])
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    console = Console()
    for title, contenders_of in (("in order", sequential), ("32 random frames", random_access)):
        table = Table(
            "file", *contenders_of(arguments.files[0]), title=f"frames per second, {title}"
        )
        for path in arguments.files:
            speeds = race(contenders_of(path), arguments.repeat)
            table.add_row(Path(path).name, *(f"{speed:.0f}" for speed in speeds.values()))
        console.print(table)
    table = Table("file", "pyav", "decord", title="wrong frames")
    with tempfile.TemporaryDirectory() as folder:
        for made in [*made_clips(Path(folder)), *map(Path, arguments.files)]:
            table.add_row(made.name, mistakes(made, "pyav"), mistakes(made, "decord"))
    console.print(table)


if __name__ == "__main__":
    main()
