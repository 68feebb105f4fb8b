"""From the paths of a command line to jobs: which file is read and which one is written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.commands.errors import UsageError

TOKENS = ".omni.safetensors"
DECODED = ".decoded"
VIDEOS = (
    ".3g2 .3gp .asf .avi .dv .f4v .flv .gif .ivf .m2ts .m2v .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg "
    ".mts .mxf .nut .obu .ogv .rm .ts .vob .webm .wmv .y4m"
).split()
SHAPES = ".glb .gltf .obj .off .ply .stl .xyz .npz".split()
IMAGES = ".apng .avif .bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()


@dataclass
class Job:
    """One file to work on.

    Attributes:
        src: What is read.
        dst: What is written.
        error: Why it cannot be done, where that shows before any work.
    """

    src: str
    dst: str = ""
    error: str = ""


@dataclass
class Plan:
    """All jobs of a command, in order.

    Attributes:
        jobs: The jobs.
        ignored: Files of the given folders that are hidden or of another kind.
    """

    jobs: list[Job]
    ignored: int


@dataclass
class _Found:
    path: str
    relative: str  # name under OUT
    error: str = ""


def is_media(name: str) -> bool:
    """Whether a file of a folder is to be tokenized, by its name; decoded files are not."""
    stem, suffix = os.path.splitext(name.lower())
    wanted = suffix in (*VIDEOS, *IMAGES, *SHAPES) and suffix != ".npz"  # those hold anything
    return wanted and not stem.endswith(DECODED)


def is_shape(name: str) -> bool:
    """Whether a file holds a 3D asset, by its name."""
    return os.path.splitext(name.lower())[1] in SHAPES


def is_tokens(name: str) -> bool:
    """Whether a file of a folder holds tokens, by its name."""
    return name.endswith(TOKENS)


def make_plan(
    inputs: Sequence[str],
    output: str | None,
    *,
    wanted: Callable[[str], bool],
    ending: Callable[[str], str],
    is_file_name: Callable[[str], bool],
    walk: bool = True,
) -> Plan:
    """Find the files and name their outputs, so that no two jobs write the same one.

    An output is named after its input without suffix; where two would get the same name, each
    keeps its suffix (a.mp4.omni.safetensors, a.mov.omni.safetensors).

    Args:
        inputs: Files and folders.
        output: Folder, or file if there is one input; None writes beside the inputs.
        wanted: Whether a file found in a folder counts, by its name.
        ending: What the output's name ends with, given the input; a ValueError says why there is
            none.
        is_file_name: Whether an output's name is that of a file.
        walk: Whether a folder stands for the files in it.

    Raises:
        UsageError: `output` does not go together with the inputs.
    """
    found, ignored = _find(inputs, wanted, walk)
    jobs = []
    for item in found:
        job = Job(item.path, error=item.error)
        jobs.append(job)
        try:
            job.dst = "" if job.error else ending(job.src)
        except ValueError as error:
            job.error = str(error)
    if output is not None and is_file_name(output) and not os.path.isdir(output):
        if len(jobs) != 1 or (walk and os.path.isdir(inputs[0])):
            raise UsageError(
                f"-o {output} is one file, but the inputs are {len(jobs)} files or a folder; give "
                "a folder"
            )
        jobs[0].dst = output
        return Plan(jobs, ignored)
    if output is not None and not os.path.isdir(output):
        kind = os.path.splitext(output.lower())[1]
        if os.path.lexists(output) or kind in (*VIDEOS, *IMAGES, *SHAPES):
            raise UsageError(f"-o {output} is a file of another kind; give a folder or a new name")
    _name_outputs(jobs, found, output)
    return Plan(jobs, ignored)


def _name_outputs(jobs: list[Job], found: list[_Found], output: str | None) -> None:
    """Turn the endings of the jobs into paths."""
    short, full = [], []
    for job, item in zip(jobs, found, strict=True):
        base = os.path.join(output, item.relative) if output is not None else item.path
        stem = base.removesuffix(TOKENS)
        if stem == base and not os.path.isdir(item.path):
            stem = os.path.splitext(base)[0]
        short.append(stem + job.dst)
        full.append(base + job.dst)
    taken = Counter(name for name, job in zip(short, jobs, strict=True) if not job.error)
    for job, name, longer in zip(jobs, short, full, strict=True):
        job.dst = name if taken[name] <= 1 else longer
    writers: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.error:
            writers.setdefault(job.dst, []).append(job)
    for dst, rivals in writers.items():
        for job in rivals if len(rivals) > 1 else []:
            other = next(rival for rival in rivals if rival is not job)
            job.error = (
                f"{job.src} and {other.src} would both be written to {dst}; rename one or give "
                "them different -o"
            )


def _find(
    inputs: Sequence[str], wanted: Callable[[str], bool], walk: bool
) -> tuple[list[_Found], int]:
    """Expand folders; a file named twice counts once."""
    found: dict[str, _Found] = {}
    ignored = 0
    for given in inputs:
        if not given:
            found[given] = _Found(given, "", "an input has no name; check how it was given")
            continue
        if not (walk and os.path.isdir(given)):
            path = os.path.normpath(given)
            if os.path.basename(path) in (os.curdir, os.pardir):
                path = os.path.abspath(path)  # its output is named after it and lies beside it
            name = os.path.basename(os.path.abspath(path))
            found.setdefault(os.path.abspath(path), _Found(path, name))
            continue
        matches = 0
        errors: list[OSError] = []
        for folder, folders, names in os.walk(given, onerror=errors.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if name.startswith(".") or not wanted(name):
                    ignored += 1
                    continue
                matches += 1
                path = os.path.join(folder, name)
                found.setdefault(os.path.abspath(path), _Found(path, os.path.relpath(path, given)))
        for error in errors:
            why = f"{error.filename} cannot be opened ({error.strerror}); check its permissions"
            found[str(error.filename)] = _Found(str(error.filename), "", why)
        if not matches and not errors:
            why = f"{given} holds no file of the wanted kind; name files, or another folder"
            found[given] = _Found(given, "", why)
    return list(found.values()), ignored
