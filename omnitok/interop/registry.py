"""Weights that others published, by name: where they are, and what is known of them.

Sources: the model pages of Wang et al. 2024 (OmniTokenizer, arXiv:2406.09399) and of Lu et al. 2025
(AToken, arXiv:2509.14476).
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omnitok.cache import cache_folder
from omnitok.checkpoint import CheckpointError, write_atomically
from omnitok.interop.download import Progress, download

MIRROR = "OMNITOK_MIRROR"  # replaces everything before the file name of every address
HALF = 2  # bytes of the smallest type that weights are published in


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Weights that others published.

    Attributes:
        file: What the file is called.
        folder: Its address without the name.
        parameters: Numbers in the file that a network needs.
        patch: (frames, height, width) of a token in pixels; None where pixels are not the input.
        latent_dim: Channels of a token.
        codebook_size: Codes of each codebook; None for continuous tokens.
        num_codebooks: Codes of a token.
    """

    file: str
    folder: str
    parameters: int
    patch: tuple[int, int, int] | None
    latent_dim: int
    codebook_size: int | None = None
    num_codebooks: int = 1

    @property
    def address(self) -> str:
        """Where to download it."""
        return f"{(os.environ.get(MIRROR) or self.folder).rstrip('/')}/{self.file}"

    @property
    def path(self) -> Path:
        """Where it is, or will be, on this machine."""
        return cache_folder() / self.file


def _omnitokenizer(file: str) -> Entry:
    vae, still = "vae" in file, file in ("imagenet_only", "celebahq", "ffhq")
    return Entry(
        file=f"{file}.ckpt",
        folder="https://huggingface.co/Daniel0724/OmniTokenizer/resolve/main",
        parameters=51_500_000,
        patch=(2 if still else 4, 8, 8),
        latent_dim=8,
        codebook_size=None if vae else 8192,
    )


def _atoken(file: str, parameters: int, latent_dim: int, books: int = 0) -> Entry:
    return Entry(
        file=f"{file}.pt",
        folder="https://ml-site.cdn-apple.com/models/atoken",
        parameters=parameters,
        patch=None if file == "3d_decode_gs" else (4, 16, 16),
        latent_dim=latent_dim,
        codebook_size=4096 if books else None,
        num_codebooks=books or 1,
    )


PUBLISHED = {
    "omnitokenizer-imagenet-only": _omnitokenizer("imagenet_only"),
    "omnitokenizer-celebahq": _omnitokenizer("celebahq"),
    "omnitokenizer-ffhq": _omnitokenizer("ffhq"),
    "omnitokenizer-imagenet-ucf": _omnitokenizer("imagenet_ucf"),
    "omnitokenizer-imagenet-k600": _omnitokenizer("imagenet_k600"),
    "omnitokenizer-imagenet-mit": _omnitokenizer("imagenet_mit"),
    "omnitokenizer-imagenet-sthv2": _omnitokenizer("imagenet_sthv2"),
    "omnitokenizer-celebahq-ucf": _omnitokenizer("celebahq_ucf"),
    "omnitokenizer-celebahq-k600": _omnitokenizer("celebahq_k600"),
    "omnitokenizer-ffhq-ucf": _omnitokenizer("ffhq_ucf"),
    "omnitokenizer-ffhq-k600": _omnitokenizer("ffhq_k600"),
    "omnitokenizer-imagenet-ucf-vae": _omnitokenizer("imagenet_ucf_vae"),
    "omnitokenizer-imagenet-k600-vae": _omnitokenizer("imagenet_k600_vae"),
    "atoken-so-c": _atoken("atoken-soc", 845_738_048, 48),
    "atoken-so-d": _atoken("atoken-sod", 845_738_048, 48, books=8),
    "atoken-so-c-s1": _atoken("atoken-soc-s1", 845_682_752, 32),
    "atoken-so-c-s2": _atoken("atoken-soc-s2", 845_738_048, 48),
    "atoken-gaussians": _atoken("3d_decode_gs", 85_887_424, 768),
}


def name_of(path: Path) -> str | None:
    """What published weights are called here, by the name of their file; None for other files."""
    return next((name for name, entry in PUBLISHED.items() if entry.file == path.name), None)


def name_of_hash(digest: str) -> str | None:
    """Which published weights that were loaded before have this hash; None if none do."""
    for name, entry in PUBLISHED.items():
        with suppress(CheckpointError):  # what a damaged record is of is not known here
            if entry.path.exists() and (_known(entry.path) or (0, ""))[1] == digest:
                return name
    return None


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The file of published weights, downloaded if it is not here yet.

    Args:
        name: One of `PUBLISHED`.
        progress: Told how far the download is.

    Raises:
        CheckpointError: It cannot be downloaded, or is not what it was when it was first loaded.
    """
    entry = PUBLISHED[name]
    path = entry.path
    if not path.exists():
        least = 0 if os.environ.get(MIRROR) else HALF * entry.parameters  # a mirror may hold others
        try:
            download(entry.address, path, least=least, progress=progress)
        except OSError as error:
            raise CheckpointError(
                f"{entry.file} cannot be kept in {path.parent} ({error.strerror}); free some space "
                "there or set OMNITOK_CACHE to another folder"
            ) from error
    known, size = _known(path), path.stat().st_size
    if known is not None and known[0] != size:
        raise _changed(path, f"{known[0]:,} bytes", f"{size:,}")
    return path


def hold_to_first(path: Path, digest: str) -> None:
    """Keep the hash of published weights when they are first loaded; hold them to it after that.

    Args:
        path: What `fetch` gave; other files are not looked at.
        digest: See `omnitok.checkpoint.hash_weights`.

    Raises:
        CheckpointError: They were others the first time.
    """
    if path.parent != cache_folder() or name_of(path) is None:
        return
    known = _known(path)
    if known is None:
        facts = {"bytes": path.stat().st_size, "weights_sha256": digest}
        try:
            write_atomically(_record(path), json.dumps(facts).encode())
        except OSError as error:
            warnings.warn(f"the hash of {path} cannot be kept ({error.strerror})", stacklevel=2)
    elif known[1] != digest:
        raise _changed(path, f"hash {known[1][:12]}", digest[:12])


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _known(path: Path) -> tuple[int, str] | None:
    """Bytes and hash of a file when it was first loaded."""
    record = _record(path)
    if not record.exists():
        return None
    try:
        facts = json.loads(record.read_text())
        return int(facts["bytes"]), str(facts["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{record} is damaged ({error}); delete it if you trust {path.name}"
        ) from error


def _changed(path: Path, before: str, now: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not the file that was first loaded ({before}, now {now}); delete it to "
        f"download it again, or delete {_record(path).name} if you changed it yourself"
    )
