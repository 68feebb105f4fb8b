"""Streams: peak memory of long files, equality of cuts, and the wait for the first token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from time import perf_counter

import torch

from omnitok import Tokenizer, Tokens
from tools.bench_clips import make_video, real_frames
from tools.bench_figures import Figure

SIZE = (360, 640)
FPS = 30
PEAK = """
try:  # ru_maxrss begins with the memory of the process that started this one
    status = open("/proc/self/status").read()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
except FileNotFoundError:
    import resource, sys
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""
PROBE = (
    """
import sys
import torch, omnitok
from video import tokenize_file
model, device, threads, source, target = sys.argv[1:]
torch.set_num_threads(int(threads))
tokenize_file(omnitok.load(model, device), source, target)
"""
    + PEAK
)


def stream(tok: Tokenizer, model: str, quick: bool) -> list[Figure]:
    """All figures of streams; `model` is the name or path that `tok` was loaded by."""
    return [memory(tok, model, (5, 20) if quick else (30, 600)), cuts(tok), first_token(tok)]


def memory(tok: Tokenizer, model: str, seconds: tuple[int, int]) -> Figure:
    """Peak memory of fresh processes that tokenize a short and a long video."""
    peaks = []
    frames = real_frames(*SIZE)
    with tempfile.TemporaryDirectory() as folder:
        for length in seconds:
            clip = make_video(Path(folder) / f"{length}.mp4", frames, length * FPS, FPS)
            paths = str(clip), str(clip.with_suffix(".safetensors"))
            options = model, str(tok.device), str(torch.get_num_threads())
            done = subprocess.run(
                [sys.executable, "-c", PROBE, *options, *paths],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            peaks.append(int(done.stdout))
    return Figure(
        name=f"peak memory, tokenizing {seconds[1]} s of {SIZE[1]}x{SIZE[0]}, {tok.config.name}",
        measured=f"{peaks[1] / 2**20:.0f} MiB",
        against=f"{peaks[0] / 2**20:.0f} MiB for {seconds[0]} s",
        ratio=peaks[1] / peaks[0],
        most=1.05,
    )


def cuts(tok: Tokenizer, tries: int = 5) -> Figure:
    """Tokens of a clip that is pushed in random pieces, against those of the whole."""
    frames, random = real_frames(128, 128)[:33], Random(0)
    whole, equal = tok.tokenize(frames), 0
    for _ in range(tries):
        parts, start = [], 0
        with tok.stream() as pushing:
            while start < len(frames):
                stop = start + random.randint(1, 9)
                parts.append(pushing.push(frames[start:stop]))
                start = stop
            parts.append(pushing.finish())
        equal += torch.equal(Tokens.cat(parts).data, whole.data)
    return Figure(
        name=f"streams in random cuts, {tok.config.name}",
        measured=f"{equal} equal the whole to the bit",
        against=f"{tries} tried",
        ratio=equal / tries,
        least=1.0,
    )


def first_token(tok: Tokenizer) -> Figure:
    """How long a live stream waits for its first tokens once its first frame is there."""
    frame, waits = real_frames(*SIZE)[:1], []
    for _ in range(6):
        with tok.stream() as live:
            start = perf_counter()
            tokens = live.push(frame)
            waits.append(perf_counter() - start)
        assert tokens.num_tokens, "the first group is the first frame"
    wait = min(waits[1:])
    return Figure(
        name=f"first {tokens.num_tokens:,} tokens of a live stream, {SIZE[1]}x{SIZE[0]}",
        measured=f"{wait * 1e3:.1f} ms after its first frame",
        against=f"{1e3 / FPS:.1f} ms from frame to frame",
        ratio=wait * FPS,
    )
