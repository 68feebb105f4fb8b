"""Everything needed to rebuild a tokenizer, as dataclasses that travel with weights as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from omnitok.quantize.base import QuantizerConfig
from omnitok.token_facts import conform

LAYER_KINDS = ("global", "local", "shifted")
MAX_WIDTH, MAX_DEPTH = 2**16, 1024  # a stranger's file must not ask for absurd sizes


def triple(name: str, value: Any) -> tuple[int, int, int]:
    """Check a (t, h, w) of positive integers; lists become tuples."""
    numbers = tuple(value)
    if len(numbers) != 3 or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError(f"{name}={value!r} is not three positive integers (time, height, width)")
    return numbers


def reject_unknown(name: str, given: Mapping[str, Any], known: Any) -> None:
    """Raise a ValueError that names the keys of `given` that the dataclass `known` lacks."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is {given!r}; expected an object with named entries")
    unknown = sorted(set(given) - {f.name for f in fields(known)})
    if unknown:
        raise ValueError(f"{name} has unknown keys {unknown}; check their spelling or the version")


def hold_to_types(config: Any) -> None:
    """Hold every field of a dataclass, and of those in it, to its annotation.

    Lists become tuples, the rest is refused.

    Raises:
        ValueError: A field is of another type; the message names it.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = conform(name, getattr(config, name), hint)
        setattr(config, name, value)
        if is_dataclass(value):
            hold_to_types(value)


@dataclass(kw_only=True, slots=True)
class StackConfig:
    """The shape of one transformer stack (the encoder or the decoder).

    Attributes:
        width: Channels of the residual stream.
        heads: Attention heads; the head width must be a multiple of 8.
        layers: One of "global", "local", "shifted" per block: attention over the whole frame, over
            windows, or over windows moved by half their side.
        mlp_hidden: Width inside the feed-forward layers.
        window: Side of the local windows in patches.
        lookback: Groups before its own that a token sees.
        rope_base: Base of the rotary frequencies.
        attention_scale: Factor on the usual 1 / sqrt(head width).
        qk_norm: Whether queries and keys are RMS-normalised; "affine" with a gain for each head.
        norm: "rms" or "layer".
        norm_affine: Whether norms carry weights of their own.
        mlp: "swiglu" or "gelu_tanh".
        bias: Whether linear layers carry biases.
    """

    width: int
    heads: int
    layers: tuple[str, ...]
    mlp_hidden: int
    window: int = 8
    lookback: int = 2
    rope_base: float = 10000.0
    attention_scale: float = 1.0
    qk_norm: bool | str = True
    norm: str = "rms"
    norm_affine: bool = False
    mlp: str = "swiglu"
    bias: bool = False

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    def __post_init__(self) -> None:
        hold_to_types(self)
        for name, most in (("width", MAX_WIDTH), ("mlp_hidden", 4 * MAX_WIDTH)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must be between 1 and {most}")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"{self.depth} layers are more than {MAX_DEPTH}")
        if self.heads < 1 or self.width % (8 * self.heads):
            raise ValueError(
                f"width={self.width} over heads={self.heads} must give a head width that is a "
                "multiple of 8"
            )
        unknown = sorted(set(self.layers) - set(LAYER_KINDS))
        if unknown:
            raise ValueError(f"unknown layer kinds {unknown}; choose from {list(LAYER_KINDS)}")
        if self.window < 1 or self.lookback < 0 or self.rope_base <= 0:
            raise ValueError(
                f"window={self.window} must be at least 1, lookback={self.lookback} at least 0 and "
                f"rope_base={self.rope_base} above 0"
            )


@dataclass(kw_only=True, slots=True)
class PlanesConfig:
    """How a 3D asset becomes tokens: as three planes of patches that cross in its box.

    Attributes:
        side: Tokens on a side of a plane.
        cells: Cells of the raster on a side of a token.
        bins: Cells along the axis that a plane leaves out, each with its share of inside.
        views: Further channels of a cell: what the shape looks like along that axis.
        fine: Cells of a decoded plane on a side of a token.
        features: Channels of a decoded plane, beside a profile of `bins` along the axis left out.
        hidden: Width of the layers that turn features at a point into its field.
    """

    side: int = 16
    cells: int = 4
    bins: int = 64
    views: int = 10
    fine: int = 4
    features: int = 32
    hidden: int = 64

    def __post_init__(self) -> None:
        hold_to_types(self)
        for field_ in fields(self):
            if not 1 <= (value := getattr(self, field_.name)) <= 4096:
                raise ValueError(f"planes {field_.name}={value} must be between 1 and 4096")

    @property
    def channels(self) -> int:
        """Channels of a cell of the raster."""
        return self.bins + self.views

    @property
    def raster(self) -> int:
        """Cells on a side of the raster of a plane."""
        return self.side * self.cells


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """Everything needed to rebuild a tokenizer.

    Attributes:
        name: What the tokenizer is called in token files.
        patch: (frames, height, width) of a patch in pixels. Frame 0 is a group of its own, then
            groups of `patch[0]` frames.
        encoder: Stack before the bottleneck.
        decoder: Stack after it.
        quantizer: The bottleneck.
        planes: How 3D assets enter; None for a tokenizer without a 3D stage.
    """

    name: str
    encoder: StackConfig
    decoder: StackConfig
    quantizer: QuantizerConfig
    patch: tuple[int, int, int] = field(default=(4, 8, 8))
    planes: PlanesConfig | None = None

    def __post_init__(self) -> None:
        self.patch = triple("patch", self.patch)
        hold_to_types(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-friendly dict that `from_dict` reads back."""
        values = asdict(self)
        if self.planes is None:  # as before there were any, so that equal weights look equal
            del values["planes"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerConfig:
        """Rebuild a config; an unknown, missing or misshapen entry is a ValueError."""
        parts = {"encoder": StackConfig, "decoder": StackConfig, "quantizer": QuantizerConfig}
        if isinstance(values, Mapping) and values.get("planes") is not None:
            parts["planes"] = PlanesConfig
        reject_unknown("tokenizer config", values, cls)
        built = dict(values)
        try:
            for key, part in parts.items():
                reject_unknown(f"tokenizer config {key!r}", values[key], part)
                built[key] = part(**values[key])
            return cls(**built)
        except (KeyError, TypeError) as error:
            raise ValueError(f"tokenizer config is not complete or well formed: {error}") from error
