"""How OmniTokenizer was trained, against recorded pieces of the published code."""

from __future__ import annotations

import re
from math import isqrt

import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from omnitok.interop.omnitokenizer import published_name
from omnitok.interop.omnitokenizer_config import COLOURS, EMA_EPS, OmniTokenizerConfig
from omnitok.interop.omnitokenizer_inflate import inflate
from omnitok.interop.omnitokenizer_net import CountedVQ, OmniTokenizerNet
from omnitok.losses.adversarial import discriminator_loss
from omnitok.losses.discriminator import PatchDiscriminator
from omnitok.losses.perceptual import lpips
from omnitok.losses.sharing import Draws
from omnitok.losses.trunk import Trunk, shapes
from omnitok.quantize import QuantizerConfig
from tests.parity.omnitokenizer_goldens import (
    ABSENT,
    COMMITMENT,
    FOLDER,
    perplexity,
    same,
    settings,
    shares,
)

PIECES = FOLDER / "training_pieces.safetensors"


def piece(start: str) -> dict[str, Tensor]:
    """Recorded tensors whose names start with `start`, without it."""
    if not PIECES.exists():
        pytest.skip(ABSENT)
    with safe_open(PIECES, "pt") as file:
        return {
            n.removeprefix(start): file.get_tensor(n) for n in file.keys() if n.startswith(start)
        }


BUFFERS = {
    "embeddings": "codebook",
    "N": "cluster_size",
    "z_avg": "embed_sum",
    "codebook_usage": "frequencies",
}


def codebook_of(buffers: dict[str, Tensor]) -> CountedVQ:
    size, dim = buffers["embeddings"].shape
    config = QuantizerConfig(
        kind="vq", dim=dim, codebook_size=size, ema=True, ema_eps=EMA_EPS, ema_restart=False
    )
    quantizer = CountedVQ(config).train()
    quantizer.initialised.fill_(True)
    for theirs, ours in BUFFERS.items():
        buffer = getattr(quantizer, ours)
        buffer.copy_(buffers[theirs].view_as(buffer))
    return quantizer


def test_the_codebook_is_learned_as_published():
    """Step after step on one object, and every step from its recorded start."""
    recorded = piece("ema/")
    going: CountedVQ | None = None
    for step in sorted({name.split("/")[0] for name in recorded}):
        want = piece(f"ema/{step}/")
        before = {name: want[f"before/{name}"] for name in BUFFERS}
        alone = codebook_of(before)
        alone._counted = going is not None
        going = going or codebook_of(before)
        for quantizer in (going, alone):
            quantized = quantizer(rearrange(want["z"], "b c t y x -> b t y x c"))
            assert quantized.codes is not None
            same(quantized.codes, want["indices"])
            same(rearrange(quantized.z_q, "b t y x c -> b c t y x"), want["quant_st"])
            same(COMMITMENT * quantized.losses["commitment"], want["commitment_loss"])
            same(perplexity(quantized.codes, quantizer.codebook_size), want["perplexity"])
            same(shares(quantized.codes, quantizer.codebook_size), want["batch_usage"])
            for theirs, ours in BUFFERS.items():
                same(getattr(quantizer, ours), want[f"after/{theirs}"])
            often = quantizer.frequencies > 1 / quantizer.codebook_size
            same(often.float().mean(), want["avg_usage"])


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_discriminator_loss_is_the_published_one(kind: str):
    want = piece("loss/")
    same(discriminator_loss(want["real"], want["fake"], kind), want[f"{kind}_d"])


def discriminator_of(state: dict[str, Tensor], axes: int) -> PatchDiscriminator:
    """Theirs has an idle part in some stages, which shifts the names of what follows."""
    stages = sorted({name.split(".")[0] for name in state if name.startswith("model")})
    ours = {"noise.strength": state["noise.weight"]}
    for stage, theirs in enumerate(stages):
        parts = sorted({name.split(".")[1] for name in state if name.startswith(f"{theirs}.")})
        for part, index in enumerate(parts):
            start = f"{theirs}.{index}."
            for name in [name for name in state if name.startswith(start)]:
                ours[f"stages.{stage}.{part}.{name.removeprefix(start)}"] = state[name]
    width = ours["stages.0.0.weight"].shape[0]
    discriminator = PatchDiscriminator(axes, width, depth=len(stages) - 2)
    discriminator.load_state_dict(ours)
    return discriminator


@pytest.mark.parametrize("axes", [2, 3])
def test_the_discriminators_are_the_published_ones(axes: int, monkeypatch: pytest.MonkeyPatch):
    want = piece(f"d{axes}/")
    discriminator = discriminator_of(piece(f"d{axes}/sd/"), axes)
    monkeypatch.setattr(Draws, "normal", lambda *_: want["noise"])
    for mode in ("eval", "train"):
        discriminator.train(mode == "train")
        features = discriminator(want["in"])
        assert len(features) == sum(name.startswith(f"{mode}/feat") for name in want)
        for number, feature in enumerate(features):
            same(feature, want[f"{mode}/feat{number}"])
    after = discriminator_of(piece(f"d{axes}/sd/") | piece(f"d{axes}/after_train/"), axes)
    for name, buffer in discriminator.named_buffers():
        same(buffer, after.get_buffer(name))


def test_the_perceptual_loss_is_the_published_one():
    """Its convolutions are drawn, as the recorded ones were."""
    want = piece("lpips/")
    seed = settings().get(PIECES.name, {}).get("lpips_seed", 81)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes("lpips-vgg").items():
        if name.startswith("head"):
            tensors[name] = want[name.replace("head.", "lin")]
        elif name.endswith("weight"):
            spread = (2 / (9 * shape[1])) ** 0.5
            tensors[name] = torch.randn(shape, generator=generator) * spread
        else:
            tensors[name] = 0.05 * torch.randn(shape, generator=generator)
    drawn = [tensor for name, tensor in tensors.items() if re.match(r"conv.*weight", name)]
    if abs(sum(float(tensor.double().sum()) for tensor in drawn) - want["weight_checksum"]) > 1e-2:
        pytest.skip("random numbers of this PyTorch differ from the recorded ones")
    trunk = Trunk("lpips-vgg", tensors)
    maps = [trunk(want[name].float() / 255 - 0.5) for name in ("x_u8", "y_u8")]
    same(lpips(trunk, *maps), want["out"])


@pytest.mark.parametrize("how", ["average", "first"])
def test_parts_for_clips_begin_as_published(how):
    given, want = piece("inflate/in/"), piece(f"inflate/{how}/")
    width, values = given["encoder.to_patch_emb_first_frame.2.weight"].shape
    side = isqrt(values // COLOURS)
    patch = (want["encoder.to_patch_emb.2.weight"].shape[1] // values, side, side)
    quantizer = QuantizerConfig(kind="vq", dim=4, codebook_size=8)
    sizes = {"width": width, "heads": 2, "head_width": 8, "mlp_hidden": 8, "temporal_depth": 1}
    config = OmniTokenizerConfig(
        name="a", patch=patch, encoder="t", decoder="t", quantizer=quantizer, **sizes
    )
    model = OmniTokenizerNet(config)
    state = model.state_dict()
    first = {n: given[published_name(n)] for n in state if published_name(n) in given}
    model.load_state_dict(state | {n: x for n, x in first.items() if "first" in n})
    inflate(model, how)
    ours = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    assert want
    for name, tensor in want.items():
        assert torch.equal(ours[name], tensor), name
