"""AToken (Lu et al. 2025, arXiv:2509.14476): its config, its tensor names, its weights.

Source: the published inference code and weights of AToken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from omnitok.checkpoint import CheckpointError, build, check_match
from omnitok.config import StackConfig, TokenizerConfig
from omnitok.interop.atoken_gaussians import PARTS, GaussianConfig, GaussianDecoder, gaussian_stack
from omnitok.interop.atoken_net import ATokenModel
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.interop.loading import Published, System
from omnitok.nn.layout import GLOBAL
from omnitok.quantize.base import QuantizerConfig

C = TypeVar("C")
HEAD_WIDTH = 72  # where no tensor tells it
GAUSSIAN_HEAD_WIDTH, GAUSSIAN_WINDOW = 64, 8
MARKS = (  # tensors that only AToken has
    "encoder.pos_embedder.position_embedding.weight",
    "decoder.pos_embedder.position_embedding.weight",
    "encoder.head.probe",
)
GAUSSIAN_MARKS = ("offset_perturbation", "blocks.0.attn.to_qkv.weight", "out_layer.bias")
IGNORED = ("logit_scale", "logit_bias")  # constants of the text side, in some files
GAUSSIAN_IGNORED = ("lpips_loss.", "ssim_loss.", "get_psnr.")  # frozen networks of its training
FSQ_LEVELS = {  # of one codebook, by its size
    16: (5, 3),
    64: (8, 8),
    256: (8, 6, 5),
    512: (8, 8, 8),
    1024: (8, 5, 5, 5),
    2048: (8, 8, 6, 5),
    4096: (4,) * 6,
    8192: (8, 8, 8, 4, 4),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
    2**18: (8, 8, 6, 5, 5, 5, 5),
    2**18 + 1: (8,) * 6,
    5**8: (5,) * 8,
}
_FIXED = {  # settings that change the network, as they are in all that was published
    "encoder_attn_mode": "full",
    "decoder_attn_mode": "full",
    "encoder_pe_mode": "joint",
    "decoder_pe_mode": "joint",
    "use_decoder": True,
    "quantizer_type": "fsq",
    "quantizer_chunk_size": 1,
}
_BLOCK: dict[str, Any] = {"lookback": 0, "norm_affine": True, "mlp": "gelu_tanh"}
_NAMES = (  # ours and theirs: the first that fits the start of a name
    (r"(encoder|decoder)\.embed\.", r"\1.input_layer."),
    (r"(encoder|decoder)\.positions\.", r"\1.pos_embedder.position_embedding."),
    (r"encoder\.norm\.", "encoder.post_layernorm."),
    (r"decoder\.norm\.", "decoder.out_norm."),
    (r"to_patch\.", "decoder.out_layer."),
    (r"head\.to_", "encoder.head.attention.to_"),
    (r"head\.out\.", "encoder.head.attention.to_out."),
    (r"head\.norm\.", "encoder.head.layernorm."),
    (r"head\.", "encoder.head."),
    (r"(encoder|decoder)\.stack\.blocks\.", r"\1.blocks."),
)
_PARTS = (  # within blocks and the head
    ("attention.qkv.", "attn.to_qkv."),
    ("attention.out.", "attn.to_out."),
    ("attention.q_gain", "attn.q_rms_norm.gamma"),
    ("attention.k_gain", "attn.k_rms_norm.gamma"),
    ("mlp.up.", "mlp.mlp.0."),
    ("mlp.down.", "mlp.mlp.2."),
)
_GAUSSIAN_NAMES = (("embed.", "input_layer."), ("stack.blocks.", "blocks."), ("out.", "out_layer."))


def published_name(name: str) -> str:
    """What the published weights call our tensor `name`."""
    for ours, theirs in _NAMES:
        name, changed = re.subn(f"^{ours}", theirs, name)
        if changed:
            break
    return _published_part(name)


def published_gaussian_name(name: str) -> str:
    """What the published weights of the Gaussian decoder call our tensor `name`."""
    for ours, theirs in _GAUSSIAN_NAMES:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    return _published_part(name)


def _published_part(name: str) -> str:
    for ours, theirs in _PARTS:
        name = name.replace(ours, theirs)
    return name


def config_of(name: str, arch: Mapping[str, Any]) -> TokenizerConfig:
    """The config that the published `arch_cfg` entries describe.

    Raises:
        ValueError: They ask for something that was never published.
    """
    for key, known in _FIXED.items():
        if arch.get(key, known) != known:
            raise ValueError(f"{key}={arch[key]!r} is not supported, only {known!r}")
    values = 3 * math.prod(arch["patch_size"])
    for key in ("in_channels", "out_channels"):
        if arch.get(key, values) != values:
            raise ValueError(
                f"{key}={arch[key]} must be {values}, the values of a patch {arch['patch_size']}"
            )

    def stack(side: str) -> StackConfig:
        rms = arch[f"{side}_use_rms_norm"]
        return StackConfig(
            width=arch[f"{side}_model_channels"],
            heads=arch[f"{side}_num_heads"],
            layers=(GLOBAL,) * arch[f"{side}_num_blocks"],
            mlp_hidden=arch[f"{side}_mlp_channels"],
            qk_norm="affine" if arch[f"{side}_qk_rms_norm"] else False,
            norm="rms" if rms else "layer",
            bias=arch[f"{side}_use_bias"],
            **_BLOCK,
        )

    quantizer = QuantizerConfig(kind="kl", dim=arch["latent_channels"])
    if arch.get("use_quantizer"):
        books, size = arch["quantizer_num_codebooks"], arch["quantizer_codebook_size"]
        levels = FSQ_LEVELS.get(size, ())
        if books * len(levels) != arch["latent_channels"]:
            raise ValueError(
                f"{books} codebooks of {size} codes do not take {arch['latent_channels']} latent "
                f"channels; the channels of a codebook are known for {sorted(FSQ_LEVELS)} codes"
            )
        quantizer = QuantizerConfig(
            kind="fsq", dim=books * len(levels), levels=levels, num_codebooks=books
        )
    return TokenizerConfig(
        name=name,
        patch=tuple(arch["patch_size"]),
        encoder=stack("encoder"),
        decoder=stack("decoder"),
        quantizer=quantizer,
    )


def read_config(values: Mapping[str, Any]) -> TokenizerConfig:
    """The config in a file of our own.

    Raises:
        ValueError: It is not that of an AToken.
    """
    config = TokenizerConfig.from_dict(values)
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        free = ("width", "heads", "layers", "mlp_hidden", "qk_norm", "norm", "bias")
        chosen = {name: getattr(stack, name) for name in free}
        chosen["layers"] = (GLOBAL,) * stack.depth
        if stack != StackConfig(**chosen, **_BLOCK):
            raise ValueError(f"the blocks of its {side} are not those of an AToken")
    if config.quantizer.kind not in ("kl", "fsq"):
        raise ValueError(f"quantizer {config.quantizer.kind!r} is not that of an AToken")
    return config


def is_discrete(name: str) -> bool:
    """Whether a file or model of this name is So/D, whose tensors are those of So/C."""
    return re.search(r"(^|[^a-z])so[-_]?d([^a-z]|$)", name.lower()) is not None


def find_config(
    shapes: Mapping[str, Sequence[int]], name: str, source: str | Path
) -> TokenizerConfig:
    """The config of published weights, worked out from the shapes of their tensors.

    Args:
        shapes: By published name.
        name: Of the model or its file. Only this tells So/D, with its FSQ, from So/C.
        source: For messages.

    Raises:
        CheckpointError: A tensor that tells the config is missing or misshapen.
    """

    def size(tensor: str, axis: int) -> int:
        shape = shapes.get(tensor)
        if shape is None or len(shape) <= axis:
            found = "is missing" if shape is None else f"is {list(shape)}"
            raise CheckpointError(
                f"{source}: {tensor!r} {found}, so its config cannot be found; expected the "
                "weights of an AToken"
            )
        return shape[axis]

    arch: dict[str, Any] = {}
    tell = "decoder.blocks.0.attn.q_rms_norm.gamma"
    head = max(1, size(tell, 1)) if tell in shapes else HEAD_WIDTH
    for side in ("encoder", "decoder"):
        first = f"{side}.blocks.0."
        gains = f"{first}attn.q_rms_norm.gamma"
        width = size(f"{side}.input_layer.weight", 0)
        arch |= {
            f"{side}_model_channels": width,
            f"{side}_num_heads": max(1, width // head),
            f"{side}_num_blocks": _count_blocks(shapes, f"{side}."),
            f"{side}_mlp_channels": size(f"{first}mlp.mlp.0.weight", 0),
            f"{side}_qk_rms_norm": gains in shapes,
            f"{side}_use_bias": f"{first}attn.to_qkv.bias" in shapes,
            f"{side}_use_rms_norm": f"{first}norm1.bias" not in shapes,
        }
    values, latent = size("encoder.input_layer.weight", 1), size("decoder.input_layer.weight", 1)
    edge = math.isqrt(values // 12)
    if 12 * edge**2 != values:
        raise CheckpointError(
            f"{source}: 'encoder.input_layer.weight' takes {values} values, which are no patch of "
            "4 square frames"
        )
    arch |= {"patch_size": (4, edge, edge), "latent_channels": latent}
    if is_discrete(name):
        arch |= {
            "use_quantizer": True,
            "quantizer_codebook_size": 4096,
            "quantizer_num_codebooks": latent // 6,
        }
    told = (*(f"{side}.input_layer.weight" for side in ("encoder", "decoder")), tell)
    return _config(source, told, lambda: config_of(name, arch))


def _count_blocks(shapes: Iterable[str], start: str) -> int:
    """How many blocks there are in a row from the first on."""
    pattern = re.compile(rf"^{re.escape(start)}blocks\.(\d{{1,4}})\.")
    there = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    return next(n for n in range(len(there) + 1) if n not in there)


def _config(source: str | Path, tensors: Iterable[str], make: Callable[[], C]) -> C:
    try:
        return make()
    except ValueError as error:
        raise CheckpointError(
            f"{source} has shapes that make no config: {error}; look at {list(tensors)}"
        ) from error


def find_gaussian_config(shapes: Mapping[str, Sequence[int]], source: str | Path) -> GaussianConfig:
    """The config of a published Gaussian decoder, worked out from the shapes of its tensors.

    Raises:
        CheckpointError: A tensor that tells the config is missing or misshapen.
    """
    told = {"input_layer.weight": 2, "blocks.0.mlp.mlp.0.weight": 2, "out_layer.bias": 1}
    for tensor, axes in told.items():
        if len(shapes.get(tensor, ())) != axes:
            raise CheckpointError(
                f"{source}: {tensor!r} is missing or has not {axes} axes; expected a Gaussian "
                "decoder of AToken"
            )
    (width, latent), (hidden, _), (channels,) = (shapes[tensor] for tensor in told)
    depth, heads = _count_blocks(shapes, ""), width // GAUSSIAN_HEAD_WIDTH
    return _config(
        source,
        told,
        lambda: GaussianConfig(
            stack=gaussian_stack(width, heads, depth, hidden, GAUSSIAN_WINDOW),
            latent_channels=latent,
            num_gaussians=channels // sum(PARTS.values()),
        ),
    )


def to_ours(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    rename: Callable[[str], str],
    source: str | Path,
) -> dict[str, Tensor]:
    """Tensors by our names.

    Raises:
        CheckpointError: One is missing, left over or misshapen.
    """
    state = {rename(name): tensor for name, tensor in network.state_dict().items()}
    check_match(source, state, tensors)
    return {name: tensors[rename(name)] for name in network.state_dict()}


def _translate(published: Published) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    tensors = {n: tensor for n, tensor in published.tensors.items() if n not in IGNORED}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = find_config(shapes, published.name or published.path.stem, published.path)
    network = build(published.path, config, ATokenModel)
    return config, to_ours(tensors, network, published_name, published.path)


def _translate_gaussians(published: Published) -> tuple[GaussianConfig, dict[str, Tensor]]:
    tensors = {
        n: tensor for n, tensor in published.tensors.items() if not n.startswith(GAUSSIAN_IGNORED)
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = find_gaussian_config(shapes, published.path)
    network = build(published.path, config, GaussianDecoder)
    return config, to_ours(tensors, network, published_gaussian_name, published.path)


ATOKEN = System(
    name="atoken",
    marks=MARKS,
    translate=_translate,
    read_config=read_config,
    build=ATokenModel,
    wrap=ATokenTokenizer,
)
GAUSSIANS = System(
    name="atoken-gaussians",
    marks=GAUSSIAN_MARKS,
    translate=_translate_gaussians,
    read_config=GaussianConfig.from_dict,
    build=GaussianDecoder,
    wrap=lambda network, _: network,
)
