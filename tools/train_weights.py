"""Train the weights that ship in the package: `make weights`.

Fetches the corpus if it is not there, trains `tiny-kl` and then `tiny` (which starts from it), and
puts both into the package with their cards. Run again to go on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from omnitok.metrics.validation import validator
from omnitok.pixels import to_float
from omnitok.train.config import OptimConfig, SourceConfig, StageConfig, TrainConfig
from omnitok.train.loop import Trainer
from tools.corpus import CONFIG, build, load_sources
from tools.ship_weights import ship
from video.datasets import ClipSampler, Corpus, centre_clip


def recipe(name: str, runs: str = "runs", scale: float = 1.0) -> TrainConfig:
    """The two stages that each of the shipped tokenizers goes through."""
    images = SourceConfig(kind="images", weight=1, batch=32, frames=1, size=128)
    still = SourceConfig(kind="images", weight=0.2, batch=32, frames=1, size=128)
    pans = SourceConfig(kind="pans", weight=0.35, batch=6, frames=17, size=128)
    videos = SourceConfig(kind="videos", weight=0.65, batch=6, frames=17, size=128)
    lengths = {"tiny-kl": (200, 2300), "tiny": (100, 1900)}[name]
    first, second = (max(1, round(n * scale)) for n in lengths)
    return TrainConfig(
        preset=name,
        stages=[
            StageConfig(name="images", steps=first, mix=[images]),
            StageConfig(name="images and video", steps=second, mix=[still, pans, videos]),
        ],
        start_from=f"{runs}/tiny-kl/weights.safetensors" if name == "tiny" else None,
        loss_weights={"kl": 1e-6},
        compile=True,
        eval_every=250,
        optim=OptimConfig(),
    )


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["tiny-kl", "tiny"])
    parser.add_argument("--corpus", default="corpus")
    parser.add_argument(
        "--extra", action="append", default=[], type=Path, help="folder of further training files"
    )
    parser.add_argument("--out", default="runs")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--seconds", type=float, default=None, help="stop each run after this long")
    parser.add_argument("--no-ship", action="store_true", help="leave the package as it is")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not (Path(args.corpus) / "manifest.json").exists():
        build(load_sources(CONFIG), args.extra, Path(args.corpus))
    corpus, held_out = Corpus(Path(args.corpus) / "train"), Corpus(Path(args.corpus) / "val")
    clips = {
        "video": [
            to_float(centre_clip(item, 17, 192)[None].to(device), torch.float32)
            for item in held_out.videos
        ],
        "image": [
            to_float(centre_clip(item, 1, 256)[None].to(device), torch.float32)
            for item in held_out.images
        ],
    }
    for name in args.names:
        config = recipe(name, args.out, args.scale)
        sampler = ClipSampler(corpus, config)
        trainer = Trainer(config, Path(args.out) / name, sampler, validator(clips), device)
        trainer.run(args.seconds)
        if not args.no_ship and trainer.step == config.steps:
            ship(name, Path(args.out), Path(args.corpus))


if __name__ == "__main__":
    main()
