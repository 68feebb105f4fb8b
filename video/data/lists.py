"""Lists of pictures and videos: .csv and .parquet files with one row for each.

Columns: "path", and perhaps "weight", "caption" (words, or a .txt or .json file) and "embedding"
(of the caption: a .npy file, in parquet also the numbers). Paths are relative to the list.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnitok.train.config import ConfigError
from video.data.items import FileItem


def read_list(path: Path) -> list[FileItem]:
    """The files of a list.

    Raises:
        ConfigError: It cannot be read, or a row is not as it has to be.
    """
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    try:
        return [_item(path, number, row) for number, row in enumerate(rows, 1)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no csv in UTF-8 ({error}); save it as one") from error


def _item(path: Path, number: int, row: Mapping[str, Any]) -> FileItem:
    def fail(column: str, expected: str) -> ConfigError:
        return ConfigError(
            f"{path}: {column!r} of row {number} is {row.get(column)!r}; expected {expected}"
        )

    name = row.get("path")
    if "path" not in row:
        raise ConfigError(f"{path} has no column 'path'; it has {sorted(map(str, row))}")
    if not name or not isinstance(name, str):
        raise fail("path", "a file")
    try:
        weight = float(1 if row.get("weight") in (None, "") else row["weight"])
    except (TypeError, ValueError):
        raise fail("weight", "a number") from None
    if not 0 <= weight < math.inf:
        raise fail("weight", "a number of at least 0")
    embedding, text = row.get("embedding") or None, row.get("caption") or None
    if isinstance(embedding, str):
        embedding = FileItem(str(path.parent / embedding))
    elif embedding is not None and not isinstance(embedding, list):
        raise fail("embedding", "a .npy file or numbers")
    if text is not None and not isinstance(text, str):
        raise fail("caption", "words or a file")
    if text is not None and text.lower().endswith((".txt", ".json")):
        text = FileItem(str(path.parent / text))
    return FileItem(str(path.parent / name), weight, embedding, text)


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow  # noqa: PLC0415 - an optional package
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise ConfigError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path} is no parquet file that can be read ({error})") from error
