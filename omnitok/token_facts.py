"""Facts that travel with tokens: which tokenizer made them, from what, and how.

Every class here checks its own fields, so that facts read from a stranger's file are held to the
same rules as facts made in code.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union

MAX_PATCH = 4096  # pixels or frames a token may span on one axis
MAX_SIDE = 2**20  # pixels or tokens on one side of a frame
_MAX_INT = 2**63  # a codebook of 2**63 codes still fits int64 codes
_MAX_JSON_VALUES = 1_000_000  # a parsed value costs up to ~300 bytes: keeps a hostile header small
_MAX_JSON_DEPTH = 64  # far below Python's recursion limit, so that what was read can be written

T = TypeVar("T")


class TokensError(ValueError):
    """Tokens, or a token file, that cannot be used as they are."""


def show(value: object) -> str:
    """Return `repr(value)`, cut short enough for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_json(text: str, what: str) -> Any:
    """Parse JSON from a stranger: no duplicate keys, no NaN, no huge numbers, no depth bombs.

    Args:
        text: The JSON.
        what: Name of the thing in error messages.

    Raises:
        TokensError: The text is not JSON, or holds one of the above.
    """
    if sum(map(text.count, ",[{")) > _MAX_JSON_VALUES:
        raise TokensError(f"{what} has more than {_MAX_JSON_VALUES} values; it is not a token file")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_int=_short_int,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise TokensError(f"{what} is nested too deeply; it is not a token file") from None
    except ValueError as error:
        raise TokensError(f"{what} is not valid JSON ({str(error)[:120]})") from None
    level: list[Any] = [[value]]
    for _ in range(_MAX_JSON_DEPTH + 1):
        nested = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in nested for v in values if isinstance(v, dict | list)]
        if not level:
            return value
    raise TokensError(f"{what} is nested too deeply; it is not a token file")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict, refusing a key given twice (parsers disagree on which one counts)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _short_int(text: str) -> int:
    """Parse an integer of a sane length (long ones take quadratic time)."""
    if len(text) > 20:
        raise ValueError(f"{show(text)} is too large a number")
    return int(text)


def _finite(text: str) -> float:
    """Parse a number, refusing NaN and infinities."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{show(text)} is not a finite number")
    return value


def dump_json(value: object) -> str:
    """Return compact ASCII JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def conform(what: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint` asks for (lists become tuples), or refuse it.

    Raises:
        TokensError: `value` is of another type, not finite, or too large.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        choices = [choice for choice in args if choice is not types.NoneType]
        if value is None and len(choices) < len(args):
            return None
        for choice in choices[:-1]:
            try:
                return conform(what, value, choice)
            except TokensError:
                continue
        return conform(what, value, choices[-1])
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        wanted = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(value) == len(wanted):
            return tuple(conform(what, v, h) for v, h in zip(value, wanted, strict=True))
    elif hint is float and type(value) in (int, float):
        if abs(value) <= _MAX_INT:
            return float(value)
    elif hint is int and type(value) is int:
        if abs(value) <= _MAX_INT:
            return value
    elif origin is dict and isinstance(value, dict):
        return _plain(what, value)
    elif isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    wanted_name = hint.__name__ if isinstance(hint, type) else str(hint)
    raise TokensError(f"{what} is {show(value)}; expected {wanted_name}")


def _plain(what: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` as JSON reads it back, so that what is saved equals what is loaded."""
    try:
        text = dump_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TokensError(f"{what} cannot be written as JSON ({error})") from None
    plain: dict[str, Any] = parse_json(text, what)
    return plain


def from_dict(cls: type[T], value: Any, what: str) -> T:
    """Build a dataclass of facts from a JSON object; an unknown or missing key is an error."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or set(value) != fields:
        raise TokensError(f"{what} is {show(value)}; expected an object with {sorted(fields)}")
    return cls(**value)


def token_bits(codebook_size: int | None, many: int, latent_bytes: int = 4) -> float:
    """Bits that tell one token from all others.

    Args:
        codebook_size: Codes per codebook; None for latents.
        many: Codes, or numbers of a latent, per token.
        latent_bytes: Bytes of a number of a latent.
    """
    return many * (8.0 * latent_bytes if codebook_size is None else math.log2(codebook_size))


class _Facts:
    """Base of the fact classes: every field is held to its annotation."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value = conform(f"{type(self).__name__}.{name}", getattr(self, name), hint)
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo(_Facts):
    """The tokenizer that made the tokens: enough to know whether another one may decode them.

    Attributes:
        name: Preset or model name.
        config: Full tokenizer config as JSON.
        weights_sha256: Hash over the weights (see `omnitok.checkpoint`), not over their file.
        version: Version of omnitok.
        kind: Integer codes or continuous latents.
        codebook_size: Codes per codebook, up to 2**63; None for latents.
        num_codebooks: Codes per token.
        levels: FSQ levels per channel.
        index_order: How channels or bits make up an index, e.g. "msb first".
        patch: Frames, height and width in pixels of one token.
        causal: Whether the first frame is a group of its own (see `omnitok.tokens.num_groups`).
        latent_dim: Channels of a latent.
        pixel_range: Values of black and white in the tokenizer's input.
    """

    name: str
    config: dict[str, Any]
    weights_sha256: str
    version: str
    kind: Literal["codes", "latents"]
    codebook_size: int | None = None
    num_codebooks: int = 1
    levels: tuple[int, ...] | None = None
    index_order: str | None = None
    patch: tuple[int, int, int]
    causal: bool
    latent_dim: int
    pixel_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind == "codes") != (self.codebook_size is not None):
            raise TokensError(
                f"codebook_size is {self.codebook_size} for kind {self.kind!r}; codes need one, "
                "latents have None"
            )
        sizes = (1 if self.codebook_size is None else self.codebook_size, self.num_codebooks)
        if min(*sizes, self.latent_dim) < 1:
            raise TokensError(
                f"codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}, "
                f"latent_dim={self.latent_dim}; each must be at least 1"
            )
        if not all(1 <= side <= MAX_PATCH for side in self.patch):
            raise TokensError(f"patch is {self.patch}; each side must be in 1..{MAX_PATCH}")

    def bits_per_token(self, latent_bytes: int = 4) -> float:
        """Bits of one token; see `token_bits`."""
        many = self.latent_dim if self.codebook_size is None else self.num_codebooks
        return token_bits(self.codebook_size, many, latent_bytes)


@dataclass(kw_only=True)
class Source(_Facts):
    """The file or asset the tokens were made from, before any preprocessing.

    Attributes:
        key: Name of the asset in its data set.
        uri: Where it came from; the file name only, unless asked otherwise.
        sha256: Hash of the source file.
        width: Stored width in pixels, before rotation.
        height: Stored height in pixels, before rotation.
        fps: Average frame rate as a fraction, e.g. "30000/1001".
        num_frames: Frames in the source.
        start: Presentation time of its first frame in seconds.
        rotation: Degrees to turn the stored picture for display.
        has_audio: Whether the source has sound, which tokens do not carry.
        codec: Codec of the source.
        color_range: "tv" (16..235) or "pc" (0..255), as the source was stored.
        kind: "image", "video", "shape" (three planes of a 3D asset) or "voxels" (of its surface).
    """

    key: str | None = None
    uri: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    fps: str | None = None
    num_frames: int | None = None
    start: float | None = None
    rotation: float | None = None
    has_audio: bool | None = None
    codec: str | None = None
    color_range: str | None = None
    kind: str | None = None


@dataclass(kw_only=True)
class Preprocess(_Facts):
    """What was done to the source before tokenizing.

    Attributes:
        fps: Sampling rate, a number or a fraction; None keeps every frame.
        size: Resized to: the short side, or (height, width).
        crop: Box (top, left, height, width) in pixels, after resizing.
        clip: Seconds (start, end) taken from the source; None for an open end.
        pad: Frames, rows and columns added at the end, which decoding must cut off.
        window: Frames and overlap of each window where a long video was cut.
    """

    fps: float | str | None = None
    size: int | tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    clip: tuple[float | None, float | None] | None = None
    pad: tuple[int, int, int] = (0, 0, 0)
    window: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Placement(_Facts):
    """Where a 3D asset lies in its own coordinates; tokens hold it in a box around 0.

    Planes fill the box from -1 to 1, and leave a margin; voxels that from -0.5 to 0.5.

    Attributes:
        scale: Length of the source for a length of 1 in the box.
        offset: The point of the source at the middle of the box.
        colors: Whether the source has colours.
        level: Value of the decoded field on the surface.
    """

    scale: float
    offset: tuple[float, float, float]
    colors: bool
    level: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise TokensError(f"the scale of a 3D asset is {self.scale}; expected more than 0")
