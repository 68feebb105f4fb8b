"""3D Gaussian splats as PLY files, in the layout that viewers read.

Source: Kerbl et al. 2023, arXiv:2308.04079, and its published file layout.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shapes.extras import ShapesError

Floats = NDArray[np.float32]
_GROUPS = {  # of properties, in file order
    "xyz": ("x", "y", "z"),
    "normal": ("nx", "ny", "nz"),
    "dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity": ("opacity",),
    "log_scale": ("scale_0", "scale_1", "scale_2"),
    "rotation": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
PROPERTIES = tuple(name for names in _GROUPS.values() for name in names)
_HEADER_LIMIT = 65536  # bytes


class SplatsError(ShapesError):
    """A file is not a splat file that can be read or written; the message says why."""


@dataclass(frozen=True)
class Splats:
    """Gaussians as splat files hold them; M of them.

    Attributes:
        xyz: [M, 3] centres.
        dc: [M, 3] colours: red, green, blue are 0.28209479 times these, plus 0.5.
        opacity: [M] before the sigmoid.
        log_scale: [M, 3] natural logarithms of the standard deviations.
        rotation: [M, 4] quaternions, w first, of any length.
    """

    xyz: Floats
    dc: Floats
    opacity: Floats
    log_scale: Floats
    rotation: Floats

    def __post_init__(self) -> None:
        many = len(self.xyz)
        for name, names in _GROUPS.items():
            if name == "normal":
                continue
            shape = (many, len(names)) if len(names) > 1 else (many,)
            if getattr(self, name).shape != shape:
                raise SplatsError(f"{name} is {getattr(self, name).shape}; expected {shape}")


def check_name(path: str | Path) -> None:
    """Refuse the name of a file that splats are not written to.

    Raises:
        SplatsError: It does not end in .ply.
    """
    if Path(path).suffix.lower() != ".ply":
        raise SplatsError(
            f"{path} is no name for Gaussian splats, which is what voxels decode to; they have no "
            "faces and are written as .ply"
        )


def write(path: str | Path, splats: Splats) -> None:
    """Write a binary PLY file, whole or not at all."""
    check_name(path)
    many, path = len(splats.xyz), Path(path)
    columns = [
        np.zeros((many, 3)) if name == "normal" else getattr(splats, name).reshape(many, -1)
        for name in _GROUPS
    ]
    table = np.hstack(columns).astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {many}"]
    lines += [f"property float {name}" for name in PROPERTIES]
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(header + table.tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> Splats:
    """Read a file that `write` wrote, or one with more float properties.

    Raises:
        SplatsError: It is not such a file, or is cut short.
    """
    data = Path(path).read_bytes()
    head, mark, body = data[:_HEADER_LIMIT].partition(b"end_header\n")
    lines = head.decode("ascii", "replace").split("\n")
    if not mark or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise SplatsError(f"{path} is not a little-endian binary PLY file")
    words = [line.split() for line in lines[2:] if line and not line.startswith("comment")]
    elements = [w for w in words if w[0] == "element"]
    names = [w[-1] for w in words if w[0] == "property"]
    if len(elements) != 1 or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise SplatsError(f"{path} does not hold one list of vertices")
    if any(w[0] == "property" and w[1] != "float" for w in words) or not set(PROPERTIES) <= set(
        names
    ):
        raise SplatsError(f"{path} lacks float properties of a splat; it has {names}")
    many = int(elements[0][-1])
    body = data[len(head) + len(mark) :]
    if len(body) != 4 * many * len(names):
        raise SplatsError(
            f"{path} holds {len(body)} bytes of splats; its header says {4 * many * len(names)}"
        )
    table = np.frombuffer(body, "<f4").reshape(many, len(names))
    fields = {
        name: np.squeeze(table[:, [names.index(n) for n in group]], 1)
        if len(group) == 1
        else table[:, [names.index(n) for n in group]]
        for name, group in _GROUPS.items()
        if name != "normal"
    }
    return Splats(**fields)
