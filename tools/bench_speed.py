"""Frames per second from file to token file and back, against the rate at which they play."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from omnitok import Tokenizer
from tools.bench_clips import make_video, real_frames
from tools.bench_figures import Figure, fastest
from video import detokenize_file, tokenize_file

FPS = 30


def speed(tok: Tokenizer, quick: bool) -> list[Figure]:
    """Both ways at 256x256."""
    count = 2 * FPS if quick else 10 * FPS
    with tempfile.TemporaryDirectory() as folder:
        clip = make_video(Path(folder) / "clip.mp4", real_frames(256, 256), count, FPS)
        tokens, decoded = Path(folder) / "clip.safetensors", Path(folder) / "decoded.mp4"
        seconds = fastest(
            {
                "tokenize": lambda: tokenize_file(tok, clip, tokens, overwrite=True),
                "decode": lambda: detokenize_file(tok, tokens, decoded, overwrite=True),
            },
            rounds=1 if quick else 3,
        )
    where = f"{tok.config.name}, 256x256, {torch.get_num_threads()} threads"
    return [
        Figure(
            name=f"{name}, {'file to token file' if name == 'tokenize' else 'token file to file'}, "
            f"{where}",
            measured=f"{count / taken:.1f} frames/s",
            against=f"{FPS} frames/s of the video",
            ratio=count / taken / FPS,
            least=1.0,
        )
        for name, taken in seconds.items()
    ]
