"""Finding the pictures and videos of a dataset: folders, lists, webdataset tars, corpora.

A corpus folder holds `images.bin` (RGB photographs, HWC, back to back) and `videos.bin` (clips,
THWC), each with a JSON list of what lies where; `python -m tools.corpus` makes one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnitok.train.config import ConfigError, DatasetConfig
from video.data.crops import Pixels
from video.data.items import ArrayItem, FileItem, PixelItem, TarItem
from video.images import SUFFIXES as IMAGES

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif")
Items = dict[str, list[PixelItem]]


def find_items(config: DatasetConfig) -> Items:
    """The pictures and videos of a dataset: {"images": [...], "videos": [...]}.

    Raises:
        ConfigError: There is nothing at its path, or nothing that fits.
    """
    path, kind = Path(config.path), config.format
    if not path.exists():
        raise ConfigError(f"data {config.path} does not exist; expected a folder, a tar or a list")
    if kind == "auto":
        kind = _guess(path)
    finders = {"corpus": _corpus, "tar": _tars, "list": _listed, "folder": _folder}
    items = finders[kind](path)
    kept = {k: [i for i in v if _belongs(i.name, config)] for k, v in items.items()}
    if not any(kept.values()):
        have = sum(map(len, items.values()))
        raise ConfigError(
            f"data {config.path} holds {have} pictures and videos, and none in its part "
            f"{config.part!r}; give more files or another path"
        )
    return kept


def _guess(path: Path) -> str:
    if path.suffix.lower() in (".csv", ".parquet"):
        return "list"
    if path.suffix.lower() == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "tar"
    if (path / "images.json").exists() or (path / "videos.json").exists():
        return "corpus"
    return "folder"


def _belongs(name: str, config: DatasetConfig) -> bool:
    if config.part == "all":
        return True
    digest = hashlib.sha256(os.path.basename(name).encode("utf-8", "surrogateescape")).digest()
    held_out = int.from_bytes(digest[:4], "big") < config.holdout * 2**32
    return held_out == (config.part == "val")


def _sort(files: Iterable[PixelItem]) -> Items:
    items: Items = {"images": [], "videos": []}
    for file in files:
        suffix = os.path.splitext(file.name)[1].lower()
        if suffix in VIDEOS:
            items["videos"].append(file)
        elif suffix in IMAGES:
            items["images"].append(file)
    return items


def _folder(root: Path) -> Items:
    if root.is_file():
        return _sort([FileItem(str(root))])
    return _sort(FileItem(str(path)) for path in _walk(root))


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files) if name[0] != ".")


def _tars(path: Path) -> Items:
    archives = [path] if path.is_file() else sorted(path.glob("*.tar"))
    files: list[PixelItem] = []
    for archive in archives:
        try:
            with tarfile.open(archive, "r:") as tar:
                files += [
                    TarItem(m.name, 1.0, None, str(archive), m.offset_data, m.size)
                    for m in tar
                    if m.isfile() and os.path.basename(m.name)[0] != "."
                ]
        except (tarfile.TarError, OSError) as error:
            raise ConfigError(f"{archive} is no tar archive that can be read ({error})") from error
    return _sort(files)


def _listed(path: Path) -> Items:
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    files: list[PixelItem] = []
    for row in rows:
        if not row.get("path"):
            raise ConfigError(f"{path} has no column 'path' with a file in every row")
        vector = row.get("embedding")
        files.append(
            FileItem(
                str(path.parent / row["path"]),
                float(row.get("weight") or 1),
                str(path.parent / vector) if vector else None,
            )
        )
    return _sort(files)


def _csv(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet  # noqa: PLC0415 - an optional package
    except ImportError:
        raise ConfigError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]


def _corpus(root: Path) -> Items:
    items: Items = {}
    for kind in ("images", "videos"):
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
    flat = np.memmap(data, dtype=np.uint8, mode="r")
    items = []
    for entry in json.loads(index.read_text()):
        shape = (entry.get("frames", 1), entry["height"], entry["width"], 3)
        start = entry["offset"]
        items.append(flat[start : start + int(np.prod(shape))].reshape(shape))
    return items
