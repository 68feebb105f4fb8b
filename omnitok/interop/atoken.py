"""AToken (Lu et al. 2025, arXiv:2509.14476): its config, its tensor names, its weights.

Source: the published inference code and weights of AToken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from omnitok.checkpoint import CheckpointError, hash_weights
from omnitok.config import StackConfig, TokenizerConfig
from omnitok.interop.atoken_gaussians import PARTS, GaussianConfig, GaussianDecoder, gaussian_stack
from omnitok.interop.atoken_net import ATokenModel
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.quantize.base import QuantizerConfig

C = TypeVar("C")
HEAD_WIDTH = 72  # where no tensor tells it
GAUSSIAN_HEAD_WIDTH = 64
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
    """The config that the published `arch_cfg` entries describe."""

    def stack(side: str) -> StackConfig:
        rms = arch[f"{side}_use_rms_norm"]
        return StackConfig(
            width=arch[f"{side}_model_channels"],
            heads=arch[f"{side}_num_heads"],
            layers=("global",) * arch[f"{side}_num_blocks"],
            mlp_hidden=arch[f"{side}_mlp_channels"],
            lookback=0,
            qk_norm="affine" if arch[f"{side}_qk_rms_norm"] else False,
            norm="rms" if rms else "layer",
            norm_affine=True,
            mlp="gelu_tanh",
            bias=arch[f"{side}_use_bias"],
        )

    quantizer = QuantizerConfig(kind="kl", dim=arch["latent_channels"])
    if arch.get("use_quantizer"):
        books, size = arch["quantizer_num_codebooks"], arch["quantizer_codebook_size"]
        levels = FSQ_LEVELS[size]
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


def recognise(names: Iterable[str], shapes: Mapping[str, Sequence[int]] | None = None) -> bool:
    """Whether tensors of these names are an AToken in the published layout.

    Args:
        names: Of all tensors; a prefix common to all does not matter.
        shapes: Not needed; the names say it all.
    """
    return _prefix(names, MARKS) is not None


def recognise_gaussians(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a Gaussian decoder of AToken in the published layout."""
    return _prefix(names, GAUSSIAN_MARKS) is not None


def _prefix(names: Iterable[str], marks: Sequence[str]) -> str | None:
    """What comes before the names of `marks`; None where they are not there."""
    known = set(names)
    for name in known:
        if name.endswith(marks[0]):
            prefix = name.removesuffix(marks[0])
            if all(prefix + mark in known for mark in marks):
                return prefix
    return None


def is_discrete(source: str) -> bool:
    """Whether a file or model of this name is So/D, whose tensors are those of So/C."""
    return re.search(r"(^|[^a-z])so[-_]?d([^a-z]|$)", _name_of(source).lower()) is not None


def find_config(shapes: Mapping[str, Sequence[int]], source: str) -> TokenizerConfig:
    """The config of published weights, worked out from the shapes of their tensors.

    Args:
        shapes: By published name, without a prefix.
        source: File or name. Only this tells So/D, with its FSQ, from So/C.

    Raises:
        CheckpointError: A tensor that tells the config is missing or misshapen.
    """

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name)
        if shape is None or len(shape) <= axis:
            found = "is missing" if shape is None else f"is {list(shape)}"
            raise CheckpointError(
                f"{source}: {name!r} {found}, so its config cannot be found; expected the weights "
                "of an AToken"
            )
        return shape[axis]

    arch: dict[str, Any] = {}
    tell = "decoder.blocks.0.attn.q_rms_norm.gamma"
    head = max(1, size(tell, 1)) if tell in shapes else HEAD_WIDTH
    for side in ("encoder", "decoder"):
        first = f"{side}.blocks.0."
        gains = f"{first}attn.q_rms_norm.gamma"
        width = size(f"{side}.input_layer.weight", 0)
        head = next(
            (shapes[n][-1] for n in (gains, gains.replace("en", "de", 1)) if n in shapes), 0
        )
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
    if is_discrete(source):
        arch |= {
            "use_quantizer": True,
            "quantizer_codebook_size": 4096,
            "quantizer_num_codebooks": latent // 6,
        }
    return _config(source, lambda: config_of(_name_of(source), arch))


def _name_of(source: str) -> str:
    """The model's name: that of the file without folder and ending."""
    return re.sub(r"^.*[/\\]|\.\w+$", "", source) or "atoken"


def _count_blocks(shapes: Iterable[str], start: str) -> int:
    pattern = re.compile(rf"^{re.escape(start)}blocks\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})


def _config(source: str, make: Callable[[], C]) -> C:
    try:
        return make()
    except ValueError as error:
        raise CheckpointError(f"{source} has shapes that make no config: {error}") from error


def load(
    tensors: dict[str, Tensor],
    source: str,
    *,
    config: TokenizerConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ATokenTokenizer:
    """A tokenizer from published weights.

    Args:
        tensors: By published name; emptied one by one, so that no second copy is held.
        source: File or name, for `find_config` and for messages.
        config: What the weights are of; None finds it.
        device: Where to compute.
        dtype: What to compute in; None means float32.

    Raises:
        CheckpointError: A tensor is missing, too many or misshapen.
    """
    _strip(tensors, MARKS, source)
    for name in IGNORED:
        tensors.pop(name, None)
    config = config or find_config({n: t.shape for n, t in tensors.items()}, source)
    with torch.device("meta"):
        model = ATokenModel(config)
    digest = _fill(model, tensors, published_name, source, device, dtype)
    return ATokenTokenizer(model, digest)


def load_gaussians(
    tensors: dict[str, Tensor],
    source: str,
    *,
    config: GaussianConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> GaussianDecoder:
    """A Gaussian decoder from published weights; see `load`."""
    _strip(tensors, GAUSSIAN_MARKS, source)
    for name in [n for n in tensors if n.startswith(GAUSSIAN_IGNORED)]:
        del tensors[name]
    if config is None:
        shapes = {n: t.shape for n, t in tensors.items()}
        try:
            width, latent = shapes["input_layer.weight"]
            channels = shapes["out_layer.bias"][0]
            hidden = shapes["blocks.0.mlp.mlp.0.weight"][0]
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"{source}: the tensor {error} is missing or misshapen"
            ) from error
        config = _config(
            source,
            lambda: GaussianConfig(
                stack=gaussian_stack(
                    width, width // GAUSSIAN_HEAD_WIDTH, _count_blocks(shapes, ""), hidden, 8
                ),
                latent_channels=latent,
                num_gaussians=channels // sum(PARTS.values()),
            ),
        )
    with torch.device("meta"):
        model = GaussianDecoder(config)
    _fill(model, tensors, published_gaussian_name, source, device, dtype)
    return model


def _strip(tensors: dict[str, Tensor], marks: Sequence[str], source: str) -> None:
    """Take a common prefix off the names."""
    prefix = _prefix(tensors, marks)
    if prefix is None:
        missing = next(mark for mark in marks if mark not in tensors)
        raise CheckpointError(f"{source} lacks the tensor {missing!r}; it is not an AToken")
    for name in [n for n in tensors if prefix and n.startswith(prefix)]:
        tensors[name.removeprefix(prefix)] = tensors.pop(name)


def _fill(
    model: nn.Module,
    tensors: dict[str, Tensor],
    rename: Callable[[str], str],
    source: str,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> str:
    """Move tensors into a model without storage; returns the hash of what was in the file."""
    wanted = {rename(ours): (ours, tensor) for ours, tensor in model.state_dict().items()}
    for name in sorted(set(wanted) | set(tensors)):
        if name not in tensors:
            raise CheckpointError(f"{source} lacks the tensor {name!r}")
        if name not in wanted:
            raise CheckpointError(f"{source} holds {name!r}, which an AToken has no place for")
        shape, found = wanted[name][1].shape, tensors[name]
        if found.shape != shape or not found.is_floating_point():
            raise CheckpointError(
                f"{source}: {name!r} is {str(found.dtype)[6:]} {list(found.shape)}; expected "
                f"floating-point {list(shape)}"
            )
    digest = hash_weights({ours: tensors[name] for name, (ours, _) in wanted.items()})
    state = {}
    for name, (ours, _) in wanted.items():
        state[ours] = tensors.pop(name).to(device, dtype or torch.float32)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()
    return digest
