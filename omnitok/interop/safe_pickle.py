"""PyTorch files from strangers, read without running anything that they say.

Tensors and plain values come through PyTorch's restricted reader, which builds only what it is
allowed to. Allowed beyond its own list are plain namespaces. Objects that training programs leave
beside the weights (callbacks, paths, numbers of NumPy) become inert placeholders; a file that names
anything else is refused before it is read.
"""

from __future__ import annotations

import argparse
import re
import types
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from omnitok.checkpoint import CheckpointError


def _dict_of_default(*_: Any) -> dict[Any, Any]:
    return {}


PLAIN: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "collections.defaultdict": _dict_of_default,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.set": set,
}
LEFT_BEHIND = (  # packages whose objects become placeholders
    "datetime",
    "lightning",
    "lightning_fabric",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torchmetrics",
)
_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # a zip archive; a bare pickle, as before PyTorch 1.6
_DAMAGE = (
    UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    OverflowError,
    MemoryError,
    zipfile.BadZipFile,
)


class Placeholder:
    """What stands for an object of a package that is not run; it keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        """Take whatever a file gives."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def is_torch_file(path: Path) -> bool:
    """Whether a file starts as those of `torch.save` do."""
    with path.open("rb") as file:
        return file.read(4).startswith(_MAGIC)


def load_torch_file(path: Path) -> Any:
    """What `torch.save` was given; the tensors stay in the file until they are used.

    Raises:
        CheckpointError: The file is damaged, or names something that is not plain data.
    """
    try:
        named = _names(path)
        for name in named:
            if name.split(".")[0] not in LEFT_BEHIND:
                raise _refusal(path, name)
        stubs = [(Placeholder, name) for name in named]
        with safe_globals([*((kind, name) for name, kind in PLAIN.items()), *stubs]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_stored(path))
    except CheckpointError:
        raise
    except (*_DAMAGE, RecursionError) as error:
        if stranger := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise _refusal(path, stranger[1]) from None
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0][:200]
        raise CheckpointError(
            f"{path} is not a whole PyTorch file ({type(error).__name__}: {reason}); copy or "
            "download it again"
        ) from error


def _refusal(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not only data: it asks to run {name!r}, which was not done; do not use this "
        "file unless its maker explains it"
    )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _MAGIC[0]


def _is_stored(path: Path) -> bool:
    """Whether tensors lie in a file as they do in memory; archives may also be compressed."""
    if not _is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())


def _names(path: Path) -> list[str]:
    """What a file names that the restricted reader does not allow, apart from `PLAIN`."""
    if not _is_zip(path):
        return []  # the reader itself refuses what it does not know
    return sorted(set(get_unsafe_globals_in_checkpoint(path)) - set(PLAIN))
