"""OmniTokenizer (Wang et al. 2024, arXiv:2406.09399): its tensor names and its tokenizer.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, L latent channels, c latent
channels of the interface.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from omnitok.checkpoint import MESSAGE, CheckpointError, build, check_match
from omnitok.groups import first_frame, num_groups
from omnitok.interop.base import PublishedTokenizer
from omnitok.interop.loading import Published, System
from omnitok.interop.omnitokenizer_config import (
    FIRST,
    LAYER,
    MOVING,
    OmniTokenizerConfig,
    config_of,
)
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from omnitok.interop.omnitokenizer_parts import displacements
from omnitok.quantize import KL
from omnitok.quantize.kl import reparameterise

PARTS = ("encoder.", "decoder.", "codebook.", "pre_vq_conv.", "post_vq_conv.")
MARKS = (
    "encoder.to_patch_emb_first_frame.2.weight",
    "encoder.to_patch_emb.2.weight",
    "decoder.to_pixels_first_frame.0.weight",
    "pre_vq_conv.1.weight",
)
EXPLICIT = "omnitokenizer-imagenet-only"  # the one published model trained with additive biases
_NAMES = (  # parts of our names and of theirs, in order
    ("encoder.embed_first.", "encoder.to_patch_emb_first_frame."),
    ("encoder.embed.", "encoder.to_patch_emb."),
    (".norm_in.", ".1."),
    (".linear.", ".2."),
    (".norm_out.", ".3."),
    ("encoder.spatial.", "encoder.enc_spatial_transformer."),
    ("encoder.temporal.", "encoder.enc_temporal_transformer."),
    ("decoder.spatial.", "decoder.dec_spatial_transformer."),
    ("decoder.temporal.", "decoder.dec_temporal_transformer."),
    ("_transformer.norm.weight", "_transformer.norm_out.gamma"),
    ("_transformer.norm.bias", "_transformer.norm_out.beta"),
    (".attention.norm.weight", ".1.norm.gamma"),
    (".attention.norm.bias", ".1.norm.beta"),
    (".attention.position.0.", ".1.spatial_rel_pos_bias.net.0.0."),
    (".attention.position.2.", ".1.spatial_rel_pos_bias.net.1.0."),
    (".attention.position.4.", ".1.spatial_rel_pos_bias.net.2."),
    (".attention.table", ".1.relative_position_bias_table"),
    (".attention.out.", ".1.to_out."),
    (".attention.q.", ".1.to_q."),
    (".attention.kv.", ".1.to_kv."),
    (".attention.", ".1."),
    (".peg.", ".0.dsconv."),
    (".mlp_norm.", ".3.0."),
    (".mlp.up.", ".3.1."),
    (".mlp.down.", ".3.4."),
    (".blocks.", ".layers."),
    ("decoder.head_first.", "decoder.to_pixels_first_frame.0."),
    ("decoder.head.", "decoder.to_pixels.0."),
    ("to_latent.", "pre_vq_conv.1."),
    ("from_latent.", "post_vq_conv.1."),
    ("quantizer.codebook", "codebook.embeddings"),
    ("quantizer.embed_sum", "codebook.z_avg"),
    ("quantizer.cluster_size", "codebook.N"),
    ("quantizer.frequencies", "codebook.codebook_usage"),
)
WHOLE = (
    "clips are taken as a whole, since no window is set, and later frames change earlier tokens: "
    "stream raises; set `window` to the frames of clips in training"
)
_INITIALISED = "quantizer.initialised"
_PER_CODEBOOK = ("quantizer.codebook", "quantizer.embed_sum", "quantizer.cluster_size")
_INDEX = ".relative_position_index"
_UNUSED = re.compile(
    r"\.context_norm\.(gamma|beta)$|_temporal_transformer\..*\.spatial_rel_pos_bias\."
)


def published_name(name: str) -> str:
    """What published files call our tensor `name`."""
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name


class OmniTokenizer(PublishedTokenizer):
    """OmniTokenizer on images and clips of any size.

    Frames are padded to whole windows. `encode` and `decode` take a clip as a whole, as published.
    `tokenize` and `stream` cut clips that are longer than those of training into windows of that
    length, which are tokenized on their own; set `window` to another length, or to None to take
    clips of any length as a whole.
    """

    model: OmniTokenizerNet
    config: OmniTokenizerConfig
    broken: ClassVar[Mapping[str, str]] = {
        "P2": "the first tokens of a clip differ from those of its first frame alone: the "
        "convolution between temporal blocks was trained on tokens in mixed order, which lets "
        "later frames change earlier tokens",
        "P3": "the convolution between temporal blocks was trained on tokens in mixed order, "
        "which lets later frames of a window change earlier tokens, and later tokens earlier "
        "frames",
    }

    def __init__(self, model: OmniTokenizerNet, weights_sha256: str) -> None:
        super().__init__(model, weights_sha256)
        self.multiple = self.config.multiple
        pt = self.patch[0]
        whole = num_groups(self.config.clip_frames + 1, pt) - 1  # groups of the clips in training
        self.window = first_frame(whole, pt)

    @property
    def window(self) -> int | None:
        """Frames of the windows that long clips are cut into; None for no windows."""
        return self._window

    @window.setter
    def window(self, frames: int | None) -> None:
        if frames is not None and frames < 1:
            raise ValueError(f"window={frames} frames must be at least 1, or None for whole clips")
        self._window = frames
        self.promises["P4"] = WHOLE if frames is None else True

    def run_encoder(self, x_BCTHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `PublishedTokenizer.run_encoder`."""
        z_BTYXL = self.model.encode(x_BCTHW / 2)
        quantizer = self.model.quantizer
        if not isinstance(quantizer, KL):
            return rearrange(z_BTYXL, "b t y x c -> b c t y x")
        parts = quantizer.posterior(z_BTYXL)
        mean, logvar = (rearrange(z, "b t y x c -> b c t y x") for z in parts)
        if generator is not None:
            noise = mean.new_empty(mean.shape).normal_(generator=generator)
            mean = reparameterise(mean, logvar, noise)
        return mean.to(z_BTYXL.dtype)

    def run_decoder(self, z_BcTHW: Tensor) -> Tensor:
        """See `PublishedTokenizer.run_decoder`."""
        return self.model.decode(rearrange(z_BcTHW, "b c t y x -> b t y x c")) * 2


def translate(published: Published) -> tuple[OmniTokenizerConfig, dict[str, Tensor]]:
    """The config and our names of a published file's tensors.

    Raises:
        CheckpointError: Its settings ask for something else than was ever published, or its
            tensors do not fit them.
    """
    path, name = published.path, published.name or published.path.stem
    tensors = {n: t for n, t in published.tensors.items() if n.startswith(PARTS)}
    try:
        config = config_of(name, _settings(published), tensors)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        reason = f"holds settings that cannot be used: {str(error)[:MESSAGE]}"
        if "hyper_parameters" not in published.contents:
            telling = [FIRST, MOVING, f"{LAYER}1.q_scale"]
            reason = f"has shapes that make no config: {error}; look at {telling}"
        raise CheckpointError(f"{path} {reason}") from error
    network = build(path, config, OmniTokenizerNet)
    state = network.state_dict()
    names = {ours: published_name(ours) for ours in state if ours != _INITIALISED}
    wanted = {
        theirs: state[ours][0] if ours in _PER_CODEBOOK else state[ours]
        for ours, theirs in names.items()
    }
    found = {name: tensor for name, tensor in tensors.items() if _is_used(name, config)}
    check_match(path, wanted, found)
    for theirs in tensors:
        if theirs.endswith(_INDEX):
            _check_index(path, theirs, tensors[theirs], config.window)
    result = {
        ours: found[theirs][None] if ours in _PER_CODEBOOK else found[theirs]
        for ours, theirs in names.items()
    }
    if _INITIALISED in state:  # or training would replace the codebook
        result[_INITIALISED] = torch.tensor(True)
    return config, result


def _settings(published: Published) -> dict[str, Any]:
    """The settings kept with the tensors, and what is known of the published file."""
    kept = _by_name(published.contents.get("hyper_parameters") or {})
    args = _by_name(kept.get("args", kept))
    return {**args, "attention": "explicit" if published.name == EXPLICIT else "fused"}


def _by_name(values: Any) -> Mapping[str, Any]:
    if isinstance(values, argparse.Namespace | SimpleNamespace):
        return vars(values)
    if not isinstance(values, Mapping):
        raise TypeError(f"they are a {type(values).__name__}, not names with values")
    return values


def _is_used(name: str, config: OmniTokenizerConfig) -> bool:
    """Whether a tensor is more than what published files hold, but their networks never use."""
    if config.quantizer.kind == "kl" and name.startswith("codebook."):
        return False
    return not name.endswith(_INDEX) and not _UNUSED.search(name)


def _check_index(path: Path, name: str, found: Tensor, window: int) -> None:
    """Hold a table that can be worked out to what it has to be."""
    square = found.shape == (window**2, window**2)
    if not square or (found != displacements(window, window, found.device)[1]).any():
        raise CheckpointError(
            f"{path}: {name!r} is not the order of displacements in windows of {window}; check "
            "where the file comes from"
        )


OMNITOKENIZER = System(
    name="omnitokenizer",
    marks=MARKS,
    translate=translate,
    read_config=OmniTokenizerConfig.from_dict,
    build=OmniTokenizerNet,
    wrap=OmniTokenizer,
)
