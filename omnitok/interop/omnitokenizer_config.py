"""The config of an OmniTokenizer: from the settings kept with its weights, or from their shapes.

Source: Wang et al. 2024, arXiv:2406.09399, and the settings of the published training code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from omnitok.config import MAX_DEPTH, MAX_WIDTH, hold_to_types, reject_unknown, triple
from omnitok.quantize.base import QuantizerConfig

POSITIONS = ("rope", "rel")
ATTENTIONS = ("fused", "explicit")
COLOURS = 3
EMA_EPS = 1e-7
CLIP_FRAMES = 17  # of all published models
_UNSUPPORTED = {  # settings that change the network, and what we build
    "patch_embed": "linear",
    "gen_upscale": None,
    "use_external_codebook": False,
    "attn_dropout": 0.0,
    "ff_dropout": 0.0,
    "image_channels": COLOURS,
}
_WORDS = ("patch_embed", "enc_block", "dec_block", "spatial_pos", "q_strides", "attention")
_FLAGS = (
    "causal_in_temporal_transformer",
    "casual_in_temporal_transformer",
    "causal_in_peg",
    "casual_in_peg",
    "defer_temporal_pool",
    "defer_spatial_pool",
    "l2_code",
    "no_random_restart",
    "use_external_codebook",
    "use_vae",
)
_NUMBERS = (
    "embedding_dim",
    "heads",
    "dim_head",
    "patch_size",
    "temporal_patch_size",
    "temporal_depth",
    "twod_window_size",
    "ff_mult",
    "attn_dropout",
    "ff_dropout",
    "gen_upscale",
    "n_codes",
    "codebook_dim",
    "sequence_length",
    "image_channels",
)


@dataclass(kw_only=True, slots=True)
class OmniTokenizerConfig:
    """Everything needed to rebuild an OmniTokenizer.

    Attributes:
        name: What the tokenizer is called in token files.
        patch: (frames, height, width) of a token in pixels.
        width: Channels of the residual stream.
        heads: Attention heads.
        head_width: Width of a head; those of window blocks share `width` instead.
        mlp_hidden: Width inside the feed-forward layers.
        encoder: The spatial blocks of the encoder: "t" sees the whole frame, "w" windows.
        decoder: The same for the decoder.
        temporal_depth: Blocks over time, in the encoder and in the decoder.
        window: Side of the windows in tokens.
        position: "rope" (rotary) or "rel" (a learned bias) for blocks that see the whole frame.
        attention: "fused" adds no bias of any kind, as the published models were trained with
            fused attention; "explicit" adds the learned bias in space and a linear one in time.
        causal_attention: Whether a token attends to no later time.
        causal_peg: Whether the positional convolution looks at no later time.
        pool_time: Tokens of half the time step are averaged in pairs before the bottleneck.
        pool_space: Tokens of half the height and width are averaged in fours before it.
        unit_latents: Whether latents are divided by their norms before the nearest code is found.
        quantizer: The bottleneck.
        clip_frames: Frames of the clips it was trained on.
    """

    name: str
    patch: tuple[int, int, int]
    width: int
    heads: int
    head_width: int
    mlp_hidden: int
    encoder: str
    decoder: str
    temporal_depth: int
    window: int = 8
    position: str = "rope"
    attention: str = "fused"
    causal_attention: bool = True
    causal_peg: bool = True
    pool_time: bool = False
    pool_space: bool = False
    unit_latents: bool = True
    quantizer: QuantizerConfig
    clip_frames: int = CLIP_FRAMES

    def __post_init__(self) -> None:
        self.patch = triple("patch", self.patch)
        hold_to_types(self)
        for name in ("width", "heads", "head_width", "mlp_hidden", "window"):
            if not 1 <= getattr(self, name) <= MAX_WIDTH:
                raise ValueError(f"{name}={getattr(self, name)} must be between 1 and {MAX_WIDTH}")
        if self.clip_frames < 1:
            raise ValueError(f"clip_frames={self.clip_frames} must be at least 1")
        for name, choices in (("position", POSITIONS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        for name in ("encoder", "decoder"):
            blocks = getattr(self, name)
            if not 1 <= len(blocks) <= MAX_DEPTH or set(blocks) - set("tw"):
                raise ValueError(
                    f"{name}={blocks[:40]!r} must be 1 to {MAX_DEPTH} blocks 't' and 'w'"
                )
        if not 1 <= self.temporal_depth <= MAX_DEPTH:
            raise ValueError(f"temporal_depth={self.temporal_depth} must be 1 to {MAX_DEPTH}")
        if self.position == "rope" and self.head_width % 4:
            raise ValueError(f"head_width={self.head_width} must be a multiple of 4 for rope")
        if "w" in self.encoder + self.decoder and self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if (self.pool_time and self.patch[0] % 2) or (
            self.pool_space and any(side % 2 for side in self.patch[1:])
        ):
            raise ValueError(f"patch={self.patch} must be even where tokens are pooled")
        if self.quantizer.kind not in ("vq", "kl"):
            raise ValueError(f"quantizer {self.quantizer.kind!r} must be 'vq' or 'kl'")

    @property
    def inner_patch(self) -> tuple[int, int, int]:
        """(frames, height, width) of a token before pooling."""
        t, h, w = self.patch
        return t >> self.pool_time, h >> self.pool_space, w >> self.pool_space

    @property
    def multiple(self) -> tuple[int, int]:
        """(height, width) in pixels that frames must be multiples of."""
        _, h, w = self.inner_patch
        windows = self.window if "w" in self.encoder + self.decoder else 1
        return math.lcm(h * windows, self.patch[1]), math.lcm(w * windows, self.patch[2])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-friendly dict that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OmniTokenizerConfig:
        """Rebuild a config; an unknown, missing or misshapen entry is a ValueError."""
        reject_unknown("OmniTokenizer config", values, cls)
        try:
            return cls(**{**values, "quantizer": QuantizerConfig.from_dict(values["quantizer"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"OmniTokenizer config is not well formed: {error}") from error


def config_of(
    name: str, args: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> OmniTokenizerConfig:
    """The config of published weights.

    Args:
        name: What the tokenizer is to be called.
        args: The settings kept with the weights, with or without the published spelling mistakes;
            unknown ones are ignored, and the shapes of the tensors stand in for missing ones.
        tensors: The weights by their published names.

    Raises:
        ValueError: A setting asks for what was never published, or one can be neither read nor
            told from the tensors.
    """
    args = _read(args)
    for key, known in _UNSUPPORTED.items():
        if args.get(key, known) != known:
            raise ValueError(f"{key}={args[key]!r} is not supported, only {known!r}")
    if set(args.get("q_strides") or "1") != {"1"}:
        raise ValueError(f"q_strides={args['q_strides']!r} is not supported, only '1111'")
    told = _from_shapes(tensors) | args
    if "ff_mult" in args and "embedding_dim" in told:
        told["mlp_hidden"] = int(args["ff_mult"] * (2 / 3) * told["embedding_dim"])
    vae = told.get("use_vae", False)
    for key, tensor in _NEEDED.items():
        if key not in told and not (vae and key == "n_codes"):
            raise ValueError(f"{key!r} is in neither the settings nor the shape of {tensor!r}")
    if vae:
        quantizer = QuantizerConfig(kind="kl", dim=told["codebook_dim"])
    else:
        quantizer = QuantizerConfig(
            kind="vq",
            dim=told["codebook_dim"],
            codebook_size=told["n_codes"],
            ema=True,
            ema_eps=EMA_EPS,
            ema_restart=not told.get("no_random_restart", True),
        )
    return OmniTokenizerConfig(
        name=name,
        patch=(told["temporal_patch_size"], told["patch_size"], told["patch_size"]),
        width=told["embedding_dim"],
        heads=told["heads"],
        head_width=told["dim_head"],
        mlp_hidden=told["mlp_hidden"],
        encoder=told["enc_block"],
        decoder=told["dec_block"],
        temporal_depth=told["temporal_depth"],
        window=told.get("twod_window_size", 4),
        position=told.get("spatial_pos", "rel"),
        attention=told.get("attention", "fused"),
        causal_attention=_causal(told, "in_temporal_transformer"),
        causal_peg=_causal(told, "in_peg"),
        pool_time=told.get("defer_temporal_pool", False),
        pool_space=told.get("defer_spatial_pool", False),
        unit_latents=told.get("l2_code", True) and not vae,
        quantizer=quantizer,
        clip_frames=told.get("sequence_length", CLIP_FRAMES),
    )


FIRST, MOVING = "encoder.to_patch_emb_first_frame.2.weight", "encoder.to_patch_emb.2.weight"
LAYER = "encoder.enc_temporal_transformer.layers.0."
_NEEDED = {  # settings, and the tensors that show them
    "embedding_dim": FIRST,
    "dim_head": f"{LAYER}1.q_scale",
    "heads": f"{LAYER}1.to_q.weight",
    "mlp_hidden": f"{LAYER}3.4.weight",
    "patch_size": FIRST,
    "temporal_patch_size": MOVING,
    "enc_block": "encoder.enc_spatial_transformer.layers.0.1.to_q.weight",
    "dec_block": "decoder.dec_spatial_transformer.layers.0.1.to_q.weight",
    "temporal_depth": f"{LAYER}1.to_q.weight",
    "codebook_dim": "post_vq_conv.1.weight",
    "n_codes": "codebook.embeddings",
}


def _read(args: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter and are not None, of the types that they have to have."""
    kinds = (
        (_WORDS, str, "a word"),
        (_FLAGS, bool, "True or False"),
        (_NUMBERS, float, "a number"),
    )
    read = {}
    for names, kind, wanted in kinds:
        for name in names:
            value = args.get(name)
            if value is None:
                continue
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{name}={str(value)[:40]!r} must be {wanted}")
            read[name] = value
    return read


def _causal(told: Mapping[str, Any], which: str) -> bool:
    """A flag that the published files spell `casual_*`."""
    return bool(told.get(f"causal_{which}", told.get(f"casual_{which}", True)))


def _from_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings that shapes tell, by their published names; those of absent tensors are left out."""

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape) if name in tensors else ()

    told: dict[str, Any] = {}
    first, moving = shape(FIRST), shape(MOVING)
    if len(first) == 2:
        told |= {"embedding_dim": first[0], "patch_size": math.isqrt(first[1] // COLOURS)}
        if len(moving) == 2:
            told["temporal_patch_size"] = moving[1] // max(1, first[1])
    for side, key in (("enc", "enc_block"), ("dec", "dec_block")):
        prefix = f"{'encoder' if side == 'enc' else 'decoder'}.{side}_spatial_transformer.layers."
        told |= {key: _blocks(prefix, tensors)} if _blocks(prefix, tensors) else {}
    depth = len(_blocks("encoder.enc_temporal_transformer.layers.", tensors))
    told |= {"temporal_depth": depth} if depth else {}
    scale, query = shape(f"{LAYER}1.q_scale"), shape(f"{LAYER}1.to_q.weight")
    if len(scale) == 1:
        told["dim_head"] = scale[0]
        if len(query) == 2:
            told["heads"] = query[0] // max(1, scale[0])
    down = shape(f"{LAYER}3.4.weight")
    told |= {"mlp_hidden": down[1]} if len(down) == 2 else {}
    table = shape(next((n for n in tensors if n.endswith("relative_position_bias_table")), ""))
    told |= {"twod_window_size": (math.isqrt(table[0]) + 1) // 2} if len(table) == 2 else {}
    spatial = (n for n in tensors if "_spatial_transformer." in n)
    told["spatial_pos"] = "rel" if any("spatial_rel_pos_bias" in n for n in spatial) else "rope"
    before, after = shape("pre_vq_conv.1.weight"), shape("post_vq_conv.1.weight")
    if len(after) == 2:
        told["codebook_dim"] = after[1]
        if len(before) == 2:
            told["use_vae"] = before[0] == 2 * after[1]
    codes = shape("codebook.embeddings")
    return told | ({"n_codes": codes[0]} if len(codes) == 2 else {})


def _blocks(prefix: str, tensors: Mapping[str, Tensor]) -> str:
    """The block letters of a transformer whose tensor names start with `prefix`."""
    letters = {}
    for name in tensors:
        if match := re.fullmatch(rf"{re.escape(prefix)}(\d{{1,4}})\.1\.(to_q|qkv)\.weight", name):
            letters[int(match[1])] = "t" if match[2] == "to_q" else "w"
    return "".join(letters[i] for i in sorted(letters))
