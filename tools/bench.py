"""Speed, efficiency and memory, each as a ratio to something measured in the same run.

    python -m tools.bench [speed efficiency stream read help train] [--model tiny] [--quick]

Nothing else should run on the machine meanwhile. The figures of streams take as long as ten minutes
of video take to tokenize; --quick shortens everything, for a look and not for a report.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import omnitok
from omnitok.checkpoint import CheckpointError
from tools.bench_figures import HEAD, Figure, fastest
from tools.commands.demonstrating import CLIP
from tools.commands.evaluating import table
from tools.commands.loading import pick_device

BENCHES = ("speed", "efficiency", "stream", "read", "help", "train")


def reading(quick: bool) -> list[Figure]:
    """`video.read` of short clips, and of one of half a minute."""
    from tools.bench_clips import make_video, real_frames
    from tools.bench_video import CLIPS

    data = os.environ.get("OMNITOK_DATA") or Path(__file__).parents[2] / "shared/data"
    found = [path for path in (Path(data) / "video" / name for name in CLIPS) if path.exists()]
    with tempfile.TemporaryDirectory() as folder:
        long = make_video(Path(folder) / "half_a_minute.mp4", real_frames(180, 320), 900)
        return _read_all([CLIP, *found, long], 1 if quick else 7)


def _read_all(paths: list[Path], rounds: int) -> list[Figure]:
    """Against the decoder alone, which drops every frame, or keeps each as reading has to.

    The index of a file, which the decoder alone does not make, is made anew for every round.
    """
    from tools.bench_video import race, sequential

    figures = []
    for path in paths:
        contenders = sequential(str(path))
        names = ("video.read", "decoder alone", "decoder, frames kept")
        speeds = race({name: contenders[name] for name in names}, rounds)
        ours = speeds.pop("video.read")
        figures += [
            Figure(
                name=f"video.read, {path.name}",
                measured=f"{ours:.0f} frames/s",
                against=f"{speed:.0f} frames/s of the {name}",
                ratio=ours / speed,
                least=0.9 if name == "decoder, frames kept" else None,
            )
            for name, speed in speeds.items()
        ]
    return figures


def helping(quick: bool) -> list[Figure]:
    """`omnitok --help` against the 0.3 s that it may take."""

    def start(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    seconds = fastest(
        {"help": lambda: start("-m", "tools.cli", "--help"), "bare": lambda: start("-c", "pass")},
        2 if quick else 10,
    )
    bare = f"0.3 s (of which Python alone takes {seconds['bare']:.3f} s)"
    return [
        Figure(
            name="omnitok --help",
            measured=f"{seconds['help']:.3f} s",
            against=bare,
            ratio=seconds["help"] / 0.3,
            most=1.0,
        )
    ]


def main() -> None:
    """Run the benches that are named, and print a table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--model", default="tiny", metavar="NAME|PATH")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), help="for train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="short clips, few rounds")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(BENCHES)):
        parser.error(f"there is no bench {unknown[0]!r}; choose of {', '.join(BENCHES)}")
    torch.set_num_threads(args.threads)
    names = args.names or BENCHES
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch", end=" ")
    print(f"{torch.__version__}, {args.device}" + (", QUICK: not for a report" * args.quick))
    for name in names:
        figures = run(name, args)
        print(f"\n### {name}\n", *table([HEAD, *(f.row for f in figures)]), sep="\n", flush=True)


def run(name: str, args: argparse.Namespace) -> list[Figure]:
    """The figures of one bench."""
    from tools.bench_efficiency import efficiency
    from tools.bench_speed import speed
    from tools.bench_stream import stream
    from tools.bench_train import training

    if name == "read":
        return reading(args.quick)
    if name == "help":
        return helping(args.quick)
    if name == "train":
        return training(args.corpus, 20 if args.quick else 80)
    try:
        tok = omnitok.load(args.model, pick_device(args.device))
    except CheckpointError as error:
        sys.exit(f"--model {args.model}: {error}")
    if name == "stream":
        return stream(tok, args.model, args.quick)
    return {"speed": speed, "efficiency": efficiency}[name](tok, args.quick)


if __name__ == "__main__":
    main()
