"""OmniTokenizer (Wang et al. 2024, arXiv:2406.09399): its tensor names and its tokenizer.

Shape suffixes: B batch, C colours (3), T frames, H and W pixels, L latent channels, c latent
channels of the interface.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from omnitok.checkpoint import CheckpointError, build
from omnitok.groups import first_frame, num_groups
from omnitok.interop.base import PublishedTokenizer
from omnitok.interop.loading import Published, System
from omnitok.interop.omnitokenizer_config import OmniTokenizerConfig, config_of
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
    (".attention.qkv.", ".1.qkv."),
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
_PER_CODEBOOK = ("quantizer.codebook", "quantizer.embed_sum", "quantizer.cluster_size")
_UNUSED = re.compile(  # what published files hold, but their networks never use
    r"\.context_norm\.(gamma|beta)$|_temporal_transformer\..*\.spatial_rel_pos_bias\."
)


def published_name(name: str, window: bool = False) -> str:
    """What published files call our tensor `name`.

    Args:
        name: A name of `OmniTokenizerNet.state_dict`.
        window: Whether it belongs to a block of window attention.
    """
    name = name.replace(".attention.out.", ".1.proj." if window else ".1.to_out.")
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
        frames, pt = self.config.clip_frames, self.patch[0]
        if frames is not None:  # whole groups of at most so many frames
            self.window = first_frame(num_groups(frames + 1, pt) - 1, pt)

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
    path, tensors = published.path, dict(published.tensors)
    name = published.name or "omnitokenizer"
    try:
        config = config_of(name, _settings(published), tensors)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} holds settings that cannot be used: {error}") from error
    network = build(path, config, OmniTokenizerNet)
    ours: dict[str, Tensor] = {}
    for key, wanted in network.state_dict().items():
        if key == "quantizer.initialised":
            ours[key] = torch.tensor(True)
            continue
        parent = key.rsplit(".", 2)[0]
        window = parent.endswith(".attention") and hasattr(network.get_submodule(parent), "table")
        theirs = published_name(key, window)
        if theirs not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {theirs!r} that its settings ask for")
        found = tensors.pop(theirs)
        shape = wanted.shape[1:] if key in _PER_CODEBOOK else wanted.shape
        if found.shape != shape:
            raise CheckpointError(
                f"{path}: {theirs!r} is {list(found.shape)}, but its settings make it {list(shape)}"
            )
        ours[key] = found.view(wanted.shape)
    _check_rest(published, config, tensors)
    return config, ours


def _settings(published: Published) -> dict[str, Any]:
    """The settings kept with the tensors, and what is known of the published file."""
    kept = published.contents.get("hyper_parameters")
    args = kept.get("args") if isinstance(kept, Mapping) else None
    values = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    values["attention"] = "explicit" if published.name == EXPLICIT else "fused"
    return values


def _check_rest(
    published: Published, config: OmniTokenizerConfig, rest: Mapping[str, Tensor]
) -> None:
    """Refuse tensors of the tokenizer that are left, apart from those that no model ever used."""
    for name in sorted(rest):
        if name.endswith("relative_position_index"):
            index = displacements(config.window, config.window, torch.device("cpu"))[1]
            if not torch.equal(rest[name], index):
                raise CheckpointError(
                    f"{published.path}: {name!r} is not the order of displacements in windows of "
                    f"{config.window}; check where the file comes from"
                )
            continue
        idle = config.quantizer.kind == "kl" and name.startswith("codebook.")
        if name.startswith(PARTS) and not idle and not _UNUSED.search(name):
            raise CheckpointError(
                f"{published.path} holds {name!r}, which its settings have no place for"
            )


OMNITOKENIZER = System(
    name="omnitokenizer",
    marks=MARKS,
    translate=translate,
    read_config=OmniTokenizerConfig.from_dict,
    build=OmniTokenizerNet,
    wrap=OmniTokenizer,
)
