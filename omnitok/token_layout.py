"""What a token file says: facts and tensors to and from the container of `omnitok.token_file`."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnitok.groups import fits, is_whole, num_groups
from omnitok.token_facts import (
    MAX_SIDE,
    Placement,
    Preprocess,
    Source,
    TokenizerInfo,
    TokensError,
    conform,
    dump_json,
    from_dict,
    parse_json,
    show,
)
from omnitok.token_file import (
    DTYPE_NAMES,
    Entry,
    code_storage,
    from_bytes,
    open_regular,
    pack_codes,
    pieces,
    read_header,
    to_bytes,
    unpack_codes,
    verify,
    write,
)
from omnitok.token_plan import TokenPlan

FORMAT = "omnitok-tokens"
VERSION = 1
COMPACT = 2  # the version of files that hold a plan and only the tokens it keeps
LATENT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_IDENTITY = ("name", "config", "weights_sha256", "version")  # of TokenizerInfo, under "tokenizer"
_SHAPES = {  # of the tensors a file may hold; None where it depends on the facts
    "codes": None,
    "latents": None,
    "grid": (1, 3),
    "offsets": (2,),
    "pts": None,
    "pts_offsets": (2,),
    **dict.fromkeys(("held", "source", "size")),
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}
T = TypeVar("T")


@dataclass(kw_only=True)
class Layout:
    """Everything a token file of one clip holds, except the codes or latents themselves.

    Attributes:
        info: The tokenizer.
        dtype: Type of the values as stored.
        size: Pixels (T, H, W).
        grid: Tokens (t, h, w).
        pts: [T] float64 seconds, or None.
        source: Where the clip came from.
        preprocess: What was done to it.
        compute: How the tokens were computed.
        placement: Where a 3D asset lies; None for pictures and clips.
        plan: Which tokens of the grid the file holds; None for all of them.
    """

    info: TokenizerInfo
    dtype: torch.dtype
    size: tuple[int, int, int]
    grid: tuple[int, int, int]
    pts: Tensor | None
    source: Source | None
    preprocess: Preprocess | None
    compute: dict[str, Any] | None
    placement: Placement | None = None
    plan: TokenPlan | None = None

    @property
    def num_rows(self) -> int:
        """Tokens that the file holds."""
        return math.prod(self.grid) if self.plan is None else len(self.plan.place)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one token as stored."""
        if self.info.codebook_size is None:
            return (self.info.latent_dim,)
        books = (self.info.num_codebooks,) if self.info.num_codebooks > 1 else ()
        return books + code_storage(self.info.codebook_size)[1]

    def facts(self) -> dict[str, Any]:
        """Return the JSON object of the file."""
        info = asdict(self.info)
        books = " k" if self.info.num_codebooks > 1 else ""
        placed = {} if self.placement is None else {"placement": asdict(self.placement)}
        return {
            "format": FORMAT,
            "version": VERSION if self.plan is None else COMPACT,
            **({} if self.plan is None else {"plan": self.plan.facts()}),
            "tokenizer": {name: info.pop(name) for name in _IDENTITY},
            **info,
            "layout": "t h w c" if self.info.kind == "latents" else "t h w" + books,
            "dtype": str(self.dtype).removeprefix("torch."),
            "keep": None,  # for tokens of any length, which this version does not have
            "clips": [
                {
                    "size": self.size,
                    "source": None if self.source is None else asdict(self.source),
                    "preprocess": None if self.preprocess is None else asdict(self.preprocess),
                    **placed,
                }
            ],
            "compute": self.compute,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the file, except the codes or latents."""
        t, h, w = self.grid
        tensors = {"grid": torch.tensor([[t, h, w]]), "offsets": torch.tensor([0, t * h * w])}
        if self.pts is not None:
            tensors |= {"pts": self.pts, "pts_offsets": torch.tensor([0, self.size[0]])}
        return tensors if self.plan is None else tensors | self.plan.tensors()

    def check(self) -> None:
        """Refuse a wrong type, times that are no times, and anything but a whole clip."""
        T, t = self.size[0], self.grid[0]
        size = self.info.codebook_size
        if self.dtype not in (LATENT_DTYPES if size is None else (code_storage(size)[0],)):
            raise TokensError(
                f"{self.info.kind} with codebook_size {size} are not stored as {self.dtype}"
            )
        window = window_of(self.preprocess)
        if t != num_groups(T, self.info.patch[0], self.info.causal, window):
            raise TokensError(
                f"grid {self.grid} of a clip of size {self.size} is not a whole clip with patch "
                f"{self.info.patch}; join the parts with Tokens.cat"
            )
        if self.pts is not None and not (
            bool(torch.isfinite(self.pts).all()) and bool((self.pts[1:] >= self.pts[:-1]).all())
        ):
            raise TokensError("pts must be finite seconds that never decrease")
        if self.plan is not None:
            self.plan.check()

    def write(self, path: Path, data_sha256: str, data: Iterable[bytes]) -> None:
        """Write the file, given the stored bytes of the codes or latents and their hash."""
        self.check()
        shape = (self.num_rows, *self.row_shape)
        tensors: dict[str, tuple[Entry, Iterable[bytes]]] = {
            self.info.kind: (Entry(self.dtype, shape, 0, data_sha256), data)
        }
        for name, tensor in self.tensors().items():
            raw = to_bytes(tensor)
            digest = hashlib.sha256(raw).hexdigest()
            tensors[name] = Entry(tensor.dtype, tuple(tensor.shape), 0, digest), [raw]
        write(path, dump_json(self.facts()), tensors)


def storage_dtype(data: Tensor, info: TokenizerInfo) -> torch.dtype:
    """Return the type that codes or latents are stored in."""
    return data.dtype if info.codebook_size is None else code_storage(info.codebook_size)[0]


def to_rows(data: Tensor, info: TokenizerInfo, first_group: int = 0) -> bytes:
    """Return codes or latents [t, h, w, ...] as stored bytes, having checked their values."""
    check_values(data, info, first_group)
    return to_bytes(data if info.codebook_size is None else pack_codes(data, info.codebook_size))


def check_values(data: Tensor, info: TokenizerInfo, first_group: int = 0) -> None:
    """Refuse codes out of range and latents that are not finite, naming the first one.

    Args:
        data: [t, h, w, ...] codes or latents.
        info: The tokenizer.
        first_group: Where in the clip they start.

    Raises:
        TokensError: A value is not one that the tokenizer makes.
    """
    if info.codebook_size is None:
        wrong, want = ~torch.isfinite(data), "a finite number"
    else:
        wrong = (data < 0) | (data > info.codebook_size - 1)
        want = f"a code in 0..{info.codebook_size - 1}"
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        value = data[tuple(place)].item()
        place[0] += first_group
        raise TokensError(f"{info.kind} at {place} is {value}; expected {want}")


def layout_of(facts: Any, tensors: dict[str, Tensor]) -> Layout:
    """Read a layout from the JSON object and the small tensors of a file, trusting neither.

    Raises:
        TokensError: A fact is missing, unknown or of the wrong type, or facts and tensors differ.
    """
    try:
        (clip,) = facts["clips"]
        info_facts = {**facts["tokenizer"]}
        for field in fields(TokenizerInfo):
            if field.name not in _IDENTITY:
                info_facts[field.name] = facts[field.name]
        grid = conform("grid", tensors["grid"].tolist(), tuple[tuple[int, int, int]])[0]
        layout = Layout(
            info=from_dict(TokenizerInfo, info_facts, "tokenizer"),
            dtype=_DTYPES[facts["dtype"]],
            size=conform("size", clip["size"], tuple[int, int, int]),
            grid=grid,
            pts=tensors.get("pts"),
            source=_optional(Source, clip["source"], "source"),
            preprocess=_optional(Preprocess, clip["preprocess"], "preprocess"),
            compute=conform("compute", facts["compute"], dict[str, Any] | None),
            placement=_optional(Placement, clip.get("placement"), "placement"),
            plan=None
            if facts["version"] != COMPACT
            else TokenPlan.read(facts["plan"], tensors, grid),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TokensError):
            raise
        raise TokensError(f"damaged: its facts lack or misname {show(error)}") from None
    check_shapes(layout.size, layout.grid, layout.pts, layout.info, layout.preprocess)
    layout.check()
    if dump_json(layout.facts()) != dump_json(facts):
        raise TokensError("damaged: its facts contradict each other")
    wanted = layout.tensors()
    if set(wanted) != set(tensors) or not all(
        wanted[name].dtype == tensors[name].dtype and torch.equal(wanted[name], tensors[name])
        for name in wanted
    ):
        raise TokensError(f"damaged: its tensors {sorted(tensors)} do not fit its facts")
    return layout


def _optional(cls: type[T], value: Any, what: str) -> T | None:
    """Build a dataclass of facts, unless there are none."""
    return None if value is None else from_dict(cls, value, what)


def window_of(preprocess: Preprocess | None) -> int | None:
    """Return the frames of the windows that a clip was cut into, if it was."""
    if preprocess is None or preprocess.window is None:
        return None
    frames, overlap = preprocess.window
    if frames < 1 or overlap != 0:
        raise TokensError(f"window is {preprocess.window}; expected (frames, 0), frames >= 1")
    return frames


def check_shapes(
    size: tuple[int, int, int],
    grid: tuple[int, int, int],
    pts: Tensor | None,
    info: TokenizerInfo | None,
    preprocess: Preprocess | None = None,
) -> None:
    """Refuse a grid that does not fit the pixels, or pts that do not fit the frames."""
    (T, H, W), (t, h, w) = size, grid
    if T < 0 or not (1 <= H <= MAX_SIDE and 1 <= W <= MAX_SIDE):
        raise TokensError(f"size is {size}; expected T >= 0 and H, W in 1..{MAX_SIDE}")
    fit = (T == 0) == (t == 0) and 1 <= h <= MAX_SIDE and 1 <= w <= MAX_SIDE
    if fit and info is not None:
        window = window_of(preprocess)
        if window is not None and not is_whole(
            window, num_groups(window, info.patch[0], info.causal), info.patch[0], info.causal
        ):
            raise TokensError(f"a window of {window} frames does not hold whole groups")
        fit = fits(T, t, info.patch[0], info.causal, window)
        fit = fit and h * info.patch[1] >= H and w * info.patch[2] >= W
    if not fit:
        patch = f" and patch {info.patch}" if info else ""
        raise TokensError(f"grid {grid} does not fit a clip of size {size}{patch}")
    if pts is not None and (pts.dtype != torch.float64 or pts.shape != (T,)):
        raise TokensError(
            f"pts are {pts.dtype} {list(pts.shape)}; expected float64 [{T}], one time a frame"
        )


class TokenFile:
    """An open token file whose header and checksum hold; values are read, and checked, on demand.

    Args:
        path: The file.
        weights_sha256: Weights of the tokenizer that is going to decode it, if known.
        force: Take tokens of other weights all the same.

    Raises:
        TokensError: It is not a token file of a known version, is damaged, is of other weights, or
            cannot be read.
    """

    def __init__(
        self, path: str | Path, *, weights_sha256: str | None = None, force: bool = False
    ) -> None:
        self.path = Path(path)
        try:
            self._file = open_regular(self.path)
        except OSError as error:
            raise TokensError(f"cannot read {path}: {error.strerror}") from error
        try:
            self._open()
        except (TokensError, OSError) as error:
            self._file.close()
            raise TokensError(f"{path}: {error}") from None
        made_with = self.layout.info.weights_sha256
        if weights_sha256 not in (None, made_with) and not force:
            self._file.close()
            raise TokensError(
                f"{path} was made by {show(self.layout.info.name)} with weights {show(made_with)}, "
                f"not {show(weights_sha256)}; load those weights, or pass force"
            )

    def _open(self) -> None:
        text, sha256, entries = read_header(self._file)
        self.facts: dict[str, Any] = parse_json(text, "the metadata")
        if not isinstance(self.facts, dict) or self.facts.get("format") != FORMAT:
            raise TokensError("not a token file: its metadata is of another format")
        if self.facts.get("version") not in (VERSION, COMPACT):
            raise TokensError(
                f"token file version {show(self.facts.get('version'))} is unknown; this omnitok "
                f"reads versions {VERSION} and {COMPACT}; upgrade omnitok"
            )
        verify(self._file, text, sha256, entries)
        for name, entry in entries.items():
            if _SHAPES.get(name, ()) not in (None, entry.shape):
                raise TokensError(f"damaged: it holds {show(name)} of shape {list(entry.shape)}")
        data = [name for name in entries if name in ("codes", "latents")]
        self.layout = layout_of(
            self.facts,
            {name: self._tensor(entries[name]) for name in entries if name not in data},
        )
        layout = self.layout
        have = {name: (entries[name].dtype, entries[name].shape) for name in data}
        want = {layout.info.kind: (layout.dtype, (layout.num_rows, *layout.row_shape))}
        if have != want:
            raise TokensError(f"damaged: it holds {have}, but its facts ask for {want}")
        self._data = entries[layout.info.kind]

    def _tensor(self, entry: Entry) -> Tensor:
        data = bytearray().join(pieces(self._file, entry.start, entry.num_bytes))
        return from_bytes(data, entry.dtype, entry.shape)

    @property
    def group_bytes(self) -> int:
        """Bytes of one time group as stored."""
        return self._data.num_bytes // max(1, self.layout.grid[0])

    def read(self, start: int, stop: int) -> Tensor:
        """Read the groups `start` .. `stop`; of a compact file, what stands for their tokens.

        Returns:
            [stop - start, h, w] or [..., K] int64 codes, or [..., c] latents as stored.

        Raises:
            TokensError: A code is out of range, a latent is not finite, or the disk fails.
        """
        _, h, w = self.layout.grid
        first, last, plan = start * h * w, stop * h * w, self.layout.plan
        try:
            if plan is None or first == last:
                data = self.read_rows(first, last)
            else:
                token = plan.standing[first:last]
                first = int(token.min())
                data = self.read_rows(first, int(token.max()) + 1)[token - first]
            data = data.reshape(stop - start, h, w, *data.shape[1:])
            check_values(data, self.layout.info, start)
        except (TokensError, OSError) as error:
            raise TokensError(f"{self.path}: {error}") from None
        return data

    def read_rows(self, first: int, last: int) -> Tensor:
        """Read the tokens `first` .. `last` of those held: int64 codes, or latents as stored."""
        rows = replace(self._data, shape=(last - first, *self.layout.row_shape))
        place = self._data.start + rows.num_bytes // max(1, last - first) * first
        data, size = self._tensor(replace(rows, start=place)), self.layout.info.codebook_size
        return data if size is None else unpack_codes(data, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "TokenFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
