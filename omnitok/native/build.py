"""The compiled kernels of this package."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from omnitok.cache import cache_folder

HERE = Path(__file__).parent
SOURCES = ("linear.cpp", "attention.cpp", "convolution.cpp", "nearest.cpp")
HEADERS = ("tiles.h", "pixels.h", "rows.h", "heads.h")
NEEDED = ("amx_tile", "amx_bf16", "avx512_bf16", "avx512bw", "avx512dq", "avx512vl")
FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w", "-mfma", "-mavx512f"),
    *("-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
)
SWITCH = "OMNITOK_KERNELS"  # 0 leaves everything to PyTorch
_TRUSTED = (os.getuid() if hasattr(os, "getuid") else 0, 0)  # whose files may be run


class BuildError(RuntimeError):
    """The kernels cannot be made here."""


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return set(NEEDED) <= set(flags)


_off: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def switched_off() -> Iterator[None]:
    """Leave everything to PyTorch for a while."""
    before = _off.set(True)
    try:
        yield
    finally:
        _off.reset(before)


def library() -> ctypes.CDLL | None:
    """The kernels, compiled if they are not in the cache; None where they are of no use.

    Where the processor could run them and they cannot be made, a warning says why.
    """
    return None if _off.get() else _loaded()


@cache
def _loaded() -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "0" or not has_tiles():
        return None
    try:
        loaded = ctypes.CDLL(str(compiled()))
    except (BuildError, OSError) as error:
        warnings.warn(
            f"networks run slower, without omnitok's own kernels: {error}; set "
            f"{SWITCH}=0 to do without them and without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return loaded if loaded.omnitok_tiles() else None


def compiled() -> Path:
    """The shared library, made if it is not in the cache.

    Raises:
        BuildError: There is no compiler, it fails, or the cached file belongs to somebody else.
        OSError: The cache cannot be written.
    """
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in (*HEADERS, *SOURCES):
        digest.update((HERE / name).read_bytes())
    path = cache_folder() / f"kernels-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        _compile(path)
    if path.stat().st_uid not in _TRUSTED:
        raise BuildError(f"{path} belongs to another user; set OMNITOK_CACHE to a folder of yours")
    return path


def _compile(path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
    if compiler is None:
        raise BuildError("there is no C++ compiler (install g++)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # a name of its own, then moved
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, *(str(HERE / name) for name in SOURCES), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} does not run ({error})") from error
        if done.returncode:
            first = next(iter(done.stderr.strip().splitlines()), f"status {done.returncode}")
            raise BuildError(f"{compiler} cannot compile them ({first})")
        os.replace(made, path)
