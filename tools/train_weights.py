"""Train the weights that ship in the package: `make weights`.

Fetches the corpus if it is not there, trains `tiny-kl` and then `tiny` and `tiny-3d` (which start
from it) by the curricula of these names, and puts them into the package with their cards. Run again
to go on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from omnitok.train.loop import Hooks, Trainer
from omnitok.train.parallel import join
from tools import corpus_meshes
from tools.corpus import CONFIG, build, load_sources
from tools.ship_weights import ship
from tools.train_config import read_config
from tools.train_run import Validator, find_data

FIRST = "tiny-kl"
NAMES = (FIRST, "tiny", "tiny-3d")


def train(name: str, out: Path, settings: list[str]) -> bool:
    """Train one of the shipped tokenizers into `out/name`; whether it is done."""
    start = [f"start_from={out / FIRST / 'weights.safetensors'}"] if name != FIRST else []
    data = "meshes" if name == "tiny-3d" else "corpus"
    own = [f"curriculum={name}", f"model={name}", f"data={data}"]
    config = read_config([*own, *start, *settings])
    world = join()
    hooks = Hooks(validate=Validator(config, out / name, world.device))
    trainer = Trainer(config, out / name, find_data(config), world, hooks)
    trainer.run()
    return trainer.step == config.steps


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--extra", action="append", default=[], type=Path, help="folder of further training files"
    )
    parser.add_argument("--out", default=Path("runs"), type=Path)
    parser.add_argument("--no-ship", action="store_true", help="leave the package as it is")
    args = parser.parse_args()
    corpus = Path("corpus")
    if not (corpus / "manifest.json").exists():
        build(load_sources(CONFIG), args.extra, corpus)
    names = args.names or NAMES
    if "tiny-3d" in names and not (corpus / "meshes.json").exists():
        corpus_meshes.report(None, [], corpus)
    for name in names:
        if train(name, args.out, args.set) and not args.no_ship:
            ship(name, args.out, corpus)


if __name__ == "__main__":
    main()
