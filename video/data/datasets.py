"""Finding the pictures and videos of a dataset: folders, lists, webdataset tars, corpora.

A corpus folder holds `images.bin` (RGB photographs, HWC, back to back) and `videos.bin` (clips,
THWC), each with a JSON list of what lies where; `python -m tools.corpus` makes one.

Captions lie beside what they describe, under the same name: x.txt, or x.json with "caption", and
their embeddings as x.npy; a list has columns "caption" and "embedding".
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from omnitok.train.config import ConfigError, DatasetConfig
from video.data.crops import Pixels
from video.data.items import ArrayItem, FileItem, PixelItem, TarItem
from video.data.lists import read_list
from video.images import SUFFIXES as IMAGES

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif")
KINDS = ("images", "videos")
Items = dict[str, list[PixelItem]]


def find_items(config: DatasetConfig) -> Items:
    """The pictures and videos of a dataset: {"images": [...], "videos": [...]}.

    Raises:
        ConfigError: There is nothing at its path, or nothing that fits.
    """
    path, kind = Path(config.path), config.format
    if not path.exists():
        advice = "run: make corpus" if kind == "corpus" else "expected a folder, a tar or a list"
        raise ConfigError(f"data {config.path} does not exist; {advice}")
    if kind == "auto":
        kind = _guess(path)
    finders = {"corpus": _corpus, "tar": _tars, "list": _listed, "folder": _folder}
    items = finders[kind](path)
    kept = {k: [i for i in v if _belongs(i.name, config)] for k, v in items.items()}
    have = sum(map(len, items.values()))
    if not have:
        raise ConfigError(
            f"data {config.path} holds no pictures or videos; expected a folder of them, a .tar, a "
            ".csv or .parquet list, or another path"
        )
    if not any(kept.values()):
        raise ConfigError(
            f"data {config.path} holds {have} pictures and videos, and none in its part "
            f"{config.part!r}; give more files or another holdout"
        )
    return kept


def _guess(path: Path) -> str:
    if path.suffix.lower() in (".csv", ".parquet"):
        return "list"
    if path.suffix.lower() == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "tar"
    if any((path / f"{k}.json").exists() and (path / f"{k}.bin").exists() for k in KINDS):
        return "corpus"
    return "folder"


def _belongs(name: str, config: DatasetConfig) -> bool:
    if config.part == "all":
        return True
    digest = hashlib.sha256(os.path.basename(name).encode("utf-8", "surrogateescape")).digest()
    held_out = int.from_bytes(digest[:4], "big") < config.holdout * 2**32
    return held_out == (config.part == "val")


def _sort(files: Iterable[FileItem]) -> Items:
    """Pictures and videos, each with the captions that lie beside it."""
    items: Items = {kind: [] for kind in KINDS}
    beside: dict[str, dict[str, FileItem]] = {suffix: {} for suffix in (".npy", ".txt", ".json")}
    found: list[tuple[str, FileItem]] = []
    for file in files:
        stem, suffix = os.path.splitext(file.name)
        if suffix.lower() in beside:
            beside[suffix.lower()][stem] = file
        elif suffix.lower() in (*VIDEOS, *IMAGES):
            found.append((stem, file))
            items["videos" if suffix.lower() in VIDEOS else "images"].append(file)
    for stem, file in found:
        file.embedding = file.embedding or beside[".npy"].get(stem)
        file.text = file.text or beside[".txt"].get(stem) or beside[".json"].get(stem)
    return items


def _folder(root: Path) -> Items:
    if root.is_file():
        return _sort([FileItem(str(root))])
    return _sort(FileItem(str(path)) for path in _walk(root))


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(folder, name) for name in sorted(files) if name[0] != ".")


def _tars(path: Path) -> Items:
    archives = [path] if path.is_file() else sorted(path.glob("*.tar"))
    files: list[FileItem] = []
    for archive in archives:
        try:
            with tarfile.open(archive, "r:") as tar:
                files += [
                    TarItem(
                        f"{archive}/{m.name}",
                        archive=str(archive),
                        offset=m.offset_data,
                        size=m.size,
                    )
                    for m in tar
                    if m.isfile() and os.path.basename(m.name)[:1] != "."
                ]
        except (tarfile.TarError, OSError) as error:
            raise ConfigError(f"{archive} is no tar archive that can be read ({error})") from error
    return _sort(files)


def _listed(path: Path) -> Items:
    return _sort(read_list(path))


def _corpus(root: Path) -> Items:
    items: Items = {}
    for kind in KINDS:
        arrays = read_corpus(root, kind)
        items[kind] = [ArrayItem(f"{root / kind}#{n}", array) for n, array in enumerate(arrays)]
    return items


def read_corpus(root: str | Path, kind: str) -> list[Pixels]:
    """[T, H, W, 3] uint8 arrays of the "images" or "videos" of a corpus, memory-mapped.

    Raises:
        ConfigError: The folder is no corpus.
    """
    index, data = Path(root) / f"{kind}.json", Path(root) / f"{kind}.bin"
    if not index.exists() or not data.exists():
        raise ConfigError(f"{root} has no {kind}.json and {kind}.bin; run: make corpus")
    try:
        entries = json.loads(index.read_text())
        flat = np.memmap(data, dtype=np.uint8, mode="r") if entries else np.zeros(0, np.uint8)
        items = []
        for entry in entries:
            shape = (entry.get("frames", 1), entry["height"], entry["width"], 3)
            start = entry["offset"]
            items.append(flat[start : start + int(np.prod(shape))].reshape(shape))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{index} does not say what lies in {data} ({error}); run: make corpus"
        ) from error
    return items
