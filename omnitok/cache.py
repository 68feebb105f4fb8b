"""Where files are kept that can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$OMNITOK_CACHE, else a folder beside other programs' caches."""
    if own := os.environ.get("OMNITOK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnitok"
