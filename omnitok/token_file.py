"""The token file: a safetensors file with one JSON object and a checksum over everything.

Layout, flat so that the same format holds one asset or a shard of many (n assets, N tokens in all):

    codes       [N] or [N, K]       uint16 up to 65,536 codes, int32 up to 2**31, and above that
                                    uint8 [..., bytes]: whole big-endian bytes per code
    latents     [N, c]              instead of codes: float32, float16 or bfloat16
    grid        [n, 3]     int64    tokens in time, height and width of each asset
    offsets     [n + 1]    int64    asset i is tokens offsets[i] .. offsets[i + 1]
    pts         [sum of T] float64  seconds of every frame (left out where not known)
    pts_offsets [n + 1]    int64    asset i is frames pts_offsets[i] .. pts_offsets[i + 1]

A compact file, version 2, holds K of the N tokens of one asset and, as `omnitok.token_plan` has it,

    held        [N / 8]    uint8    a bit for each place of the grid, most significant first
    source      [N]        uint16   the one that each token went into, 65535 for none; int32 and -1
                                    from 65,536 on; left out where all but those held were dropped
    size        [K]        float32  how many tokens each stands for, where that is not their count

    metadata "omnitok"  facts as JSON with sorted keys (see `omnitok.token_layout`)
    metadata "sha256"   of the facts and of every tensor's name, type, shape and bytes

The checksum does not depend on the order of the tensors, so a file saved again by any safetensors
library stays valid; a flipped byte anywhere is refused. Equal contents give equal bytes.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from omnitok.token_facts import TokensError, parse_json, show

MAX_HEADER = 64 * 2**20  # bytes
CHUNK = 2**20  # bytes read, checked or copied at a time
DTYPES = {
    "U8": torch.uint8,
    "U16": torch.uint16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, shape, first byte in the file and hash."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    sha256: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def to_bytes(tensor: Tensor) -> bytes:
    """Return the raw bytes of a tensor of at least one axis."""
    return bytes(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def from_bytes(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return raw bytes as a tensor that shares their memory."""
    if not data:  # torch.frombuffer refuses an empty buffer
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def code_storage(codebook_size: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the type codes are stored in and the axes added to their shape."""
    if codebook_size <= 2**16:
        return torch.uint16, ()
    if codebook_size <= 2**31:
        return torch.int32, ()
    return torch.uint8, (-(-(codebook_size - 1).bit_length() // 8),)


def pack_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Turn int64 codes [...] into what is stored: [...] or, above 31 bits, [..., bytes]."""
    dtype, extra = code_storage(codebook_size)
    if not extra:
        return codes.to(dtype)
    shifts = torch.arange(8 * (extra[0] - 1), -1, -8, device=codes.device)
    return (codes.unsqueeze(-1) >> shifts & 255).to(dtype)


def unpack_codes(stored: Tensor, codebook_size: int) -> Tensor:
    """Turn stored codes back into int64 codes."""
    _, extra = code_storage(codebook_size)
    if not extra:
        return stored.to(torch.int64)
    shifts = torch.arange(8 * (extra[0] - 1), -1, -8, device=stored.device)
    return (stored.to(torch.int64) << shifts).sum(-1)


def _checksum(facts: str, entries: dict[str, Entry]) -> str:
    """Hash the facts and each tensor's name, type, shape and bytes."""
    tensors = [
        [name, DTYPE_NAMES[entry.dtype], entry.shape, entry.sha256]
        for name, entry in sorted(entries.items())
    ]
    return hashlib.sha256(json.dumps([facts, tensors]).encode("ascii")).hexdigest()


def write(path: Path, facts: str, tensors: dict[str, tuple[Entry, Iterable[bytes]]]) -> None:
    """Write a token file whole or not at all.

    Args:
        path: Final name; an existing file is replaced.
        facts: JSON text for the metadata key `omnitok`.
        tensors: Name -> what it is (with its hash) and its bytes in pieces.

    Raises:
        TokensError: The file cannot be written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    entries = {name: tensors[name][0] for name in tensors}
    header: dict[str, Any] = {
        "__metadata__": {"omnitok": facts, "sha256": _checksum(facts, entries)}
    }
    start = 0
    for name in order:  # widest types first keeps every tensor aligned
        stop = start + entries[name].num_bytes
        header[name] = {
            "dtype": DTYPE_NAMES[entries[name].dtype],
            "shape": entries[name].shape,
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise TokensError(f"{path} needs a header of {len(text)} bytes; at most {MAX_HEADER} fit")
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for piece in tensors[name][1]:
                file.write(piece)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk into one sentence about the file being written."""
    try:
        yield
    except OSError as error:
        raise TokensError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name `path` once it is complete and on disk."""
    temporary = path.parent / f".omnitok-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    with write_errors(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, but nothing that reading could wait for.

    Raises:
        OSError: There is none, or it may not be read.
    """
    if stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "a pipe, not a file", str(path))
    return open(path, "rb")


def read_header(file: BinaryIO) -> tuple[str, str, dict[str, Entry]]:
    """Read the header of an open file, trusting nothing in it.

    Returns:
        The facts as JSON text, the checksum, and the tensors by name.

    Raises:
        TokensError: This is not a whole token file.
    """
    file_size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, file_size - 8):
        raise TokensError(
            f"not a token file, or cut off: it claims a header of {length} bytes in a file of "
            f"{file_size} bytes"
        )
    try:
        text = file.read(length).decode("utf-8").rstrip(" ")
    except UnicodeDecodeError:
        text = ""
    if not text.startswith("{") or not text.endswith("}"):
        raise TokensError("not a token file: it does not start with a JSON header")
    header = parse_json(text, "the header")
    metadata = header.pop("__metadata__", None)
    if (
        not isinstance(metadata, dict)
        or set(metadata) != {"omnitok", "sha256"}
        or not all(isinstance(value, str) and value.isascii() for value in metadata.values())
    ):
        raise TokensError(f"not a token file: the metadata of its header is {show(metadata)}")
    data_start = place = 8 + length
    entries = {name: _entry(name, value, data_start) for name, value in header.items()}
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.num_bytes)):
        if entry.start != place:
            raise TokensError(f"damaged: a tensor starts at byte {entry.start}, not {place}")
        place += entry.num_bytes
    if place != file_size:
        raise TokensError(
            f"cut off or damaged: it has {file_size} bytes and its header asks for {place}"
        )
    return metadata["omnitok"], metadata["sha256"], entries


def _entry(name: str, value: Any, data_start: int) -> Entry:
    """Check the description of one tensor."""
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        entry = Entry(DTYPES[dtype], tuple(shape), data_start + start)
        numbers = (*shape, start, stop)
        sound = len(value) == 3 and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        sound = sound and 1 <= len(shape) <= 3 and stop - start == entry.num_bytes
        if sound and math.prod(n or 1 for n in shape) < 2**63:  # strides of nothing count too
            return entry
    except (KeyError, TypeError, ValueError):
        pass  # described the same way as any other bad entry
    raise TokensError(f"damaged: tensor {show(name)} is described as {show(value)}")


def verify(file: BinaryIO, facts: str, sha256: str, entries: dict[str, Entry]) -> None:
    """Check every byte of an open file against its checksum, in bounded memory.

    Raises:
        TokensError: The file is damaged.
    """
    hashed = {}
    for name, entry in entries.items():
        digest = hashlib.sha256()
        for piece in pieces(file, entry.start, entry.num_bytes):
            digest.update(piece)
        hashed[name] = replace(entry, sha256=digest.hexdigest())
    if _checksum(facts, hashed) != sha256:
        raise TokensError("damaged: its contents do not match its checksum")


def pieces(file: IO[bytes], start: int, num_bytes: int) -> Iterator[bytes]:
    """Yield `num_bytes` bytes of a file from `start`, a bounded piece at a time."""
    file.seek(start)
    while num_bytes > 0:
        piece = file.read(min(CHUNK, num_bytes))
        if not piece:
            raise TokensError("the file became shorter while it was read")
        num_bytes -= len(piece)
        yield piece
