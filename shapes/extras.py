"""The optional packages behind 3D files, each loaded when first needed."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any


class ShapesError(Exception):
    """A 3D file or shape cannot be used; the message names it, what is wrong and what to do."""


@lru_cache(maxsize=1)
def load_open3d() -> Any:
    """Import open3d; its Linux wheels need libusb-1.0.so.0, which a package can supply.

    Raises:
        ImportError: It, or a system library that it needs, is not there.
    """
    try:
        ctypes.CDLL("libusb-1.0.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        spec = importlib.util.find_spec("libusb_package")
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder, "libusb-1.0.so")).exists():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as error:
        raise ImportError(
            f"open3d could not be loaded ({error}); pip install 'omnitok[open3d]', and on Debian "
            "or Ubuntu apt-get install libgl1 libegl1 libusb-1.0-0"
        ) from error


def load_mesh_package(name: str) -> Any:
    """Import one of the packages of the extra `mesh`.

    Raises:
        ShapesError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ShapesError(
            f"3D assets need {name.split('.')[0]} ({error}); pip install 'omnitok[mesh]'"
        ) from error
