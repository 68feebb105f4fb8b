"""Recorded tensors of OmniTokenizer's published code, and what our network makes of the inputs.

Every *.safetensors file of the folder that holds weights (`sd/...`) is a model with its cases,
whose settings are in `cases.json`; a *.ckpt is a model whose cases are in the file that
`cases.json` names as its outputs (or in that of the same name).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from omnitok.hub import SYSTEMS
from omnitok.interop.loading import Opened, Published, open_weights
from omnitok.interop.omnitokenizer import OMNITOKENIZER, OmniTokenizer, translate
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet, Stage
from omnitok.losses import bottleneck
from omnitok.quantize import KL
from omnitok.quantize.kl import kl_divergence, reparameterise
from tests.parity.conftest import golden_folder

FOLDER = golden_folder() / "omnitokenizer"
ABSENT = f"no recorded data at {FOLDER}; set OMNITOK_GOLDEN to the folder that holds it"
KL_LOSS = bottleneck.KL(bottleneck.KLConfig(reduction="sample"))
COMMITMENT = 0.25  # whatever `commitment_weight` the published settings name
TOLERANCE = 1e-4
BRANCHES = {"peg": "peg", "attn": "attention", "ff": "mlp"}


@dataclass(frozen=True)
class Golden:
    """One case of one model."""

    weights: Path
    outputs: Path
    case: str

    def __str__(self) -> str:
        return f"{self.weights.stem}-{self.case}"

    @property
    def explicit(self) -> bool:
        """Whether it was recorded with additive biases."""
        stated = settings().get(self.weights.name, {}).get("attention")
        return self.case.startswith("math.") or stated == "explicit"

    def tensor(self, name: str) -> Tensor:
        with safe_open(self.outputs, "pt") as file:
            return file.get_tensor(f"{self.case}/{name}")

    def recorded(self) -> set[str]:
        start = f"{self.case}/"
        return {name.removeprefix(start) for name in _names(self.outputs) if name.startswith(start)}

    def x(self) -> Tensor:
        """The input, [B, 3, T, H, W] in [-1, 1]."""
        x = self.tensor("in_u8").float() / 127.5 - 1
        return x if x.ndim == 5 else x[:, :, None]


@cache
def _names(path: Path) -> tuple[str, ...]:
    with safe_open(path, "pt") as file:
        return tuple(file.keys())


@cache
def settings() -> dict[str, dict[str, Any]]:
    """`cases.json`: settings by file."""
    path = FOLDER / "cases.json"
    return json.loads(path.read_text()) if path.exists() else {}


def goldens() -> list[Golden]:
    found = []
    for path in sorted(FOLDER.glob("*.safetensors")):
        if any(name.startswith("sd/") for name in _names(path)):
            found.append((path, path))
    for path in sorted(FOLDER.glob("*.ckpt")):
        outputs = settings().get(path.name, {}).get("outputs", f"{path.stem}.safetensors")
        found.append((path, FOLDER / outputs))
    return [
        Golden(weights, outputs, case)
        for weights, outputs in found
        for case in sorted({name.split("/")[0] for name in _names(outputs)} - {"sd"})
    ]


def every_case() -> pytest.MarkDecorator:
    absent = pytest.param(None, marks=pytest.mark.skip(reason=ABSENT))
    return pytest.mark.parametrize("golden", goldens() or [absent], ids=str)


def weights_of(path: Path) -> dict[str, Tensor]:
    """Published names and tensors."""
    with safe_open(path, "pt") as file:
        return {name[3:]: file.get_tensor(name) for name in file.keys() if name.startswith("sd/")}


@lru_cache(maxsize=8)
def load(weights: Path, explicit: bool) -> OmniTokenizer:
    """The tokenizer of a model, whose settings are in its file or beside it."""
    if weights.suffix == ".ckpt":
        opened = open_weights(weights, SYSTEMS)
        assert opened.system is OMNITOKENIZER
        config, tensors = opened.config, opened.tensors
    else:
        args = argparse.Namespace(**settings().get(weights.name, {}))
        contents = {"hyper_parameters": {"args": args}}
        tensors = weights_of(weights)
        config, tensors = translate(
            Published(path=weights, name=None, tensors=tensors, contents=contents)
        )
    config = replace(config, attention="explicit" if explicit else "fused")
    return Opened(path=weights, system=OMNITOKENIZER, config=config, tensors=tensors).load()


@contextmanager
def listening(model: OmniTokenizerNet) -> Iterator[dict[str, Tensor]]:
    """What the network computes on the way, by the names of the recorded tensors.

    Branches of blocks only with a graph: without one they work on a few sequences at a time.
    """
    heard: dict[str, Tensor] = {}
    hooks = []

    def listen(module: torch.nn.Module, name: str, layout: str | None = None) -> None:
        def hook(_module: Any, _args: Any, out: Tensor) -> None:
            out = out.clone()
            heard[name] = out if layout is None else rearrange(out, f"b t y x d -> {layout}")

        hooks.append(module.register_forward_hook(hook))

    encoder, decoder = model.encoder, model.decoder
    hooks.append(
        encoder.spatial.register_forward_pre_hook(
            lambda _module, args: heard.__setitem__("patch_tokens", args[0].clone())
        )
    )
    listen(encoder, "enc_out", "b d t y x")
    listen(model.from_latent, "post_vq", "b d t y x")
    listen(model.to_latent, "moments" if isinstance(model.quantizer, KL) else "pre_vq", "b d t y x")
    for side, half in (("enc", encoder), ("dec", decoder)):
        listen(half.spatial, f"{side}_spatial", "(b t) (y x) d")
        listen(half.temporal, f"{side}_temporal", "(b y x) t d")
        for axis in ("spatial", "temporal"):
            for i, block in enumerate(getattr(half, axis).blocks):
                for theirs, ours in BRANCHES.items() if torch.is_grad_enabled() else ():
                    if getattr(block, ours) is not None:
                        listen(getattr(block, ours), f"blk.{side}_{axis}.{i}.{theirs}")
    yield heard
    for hook in hooks:
        hook.remove()


def in_token_order(model: OmniTokenizerNet, name: str, out: Tensor, want: Tensor) -> Tensor:
    """A branch's output in the published layout of tokens."""
    side, axis = name.split(".")[1].split("_")
    stage: Stage = getattr(model.encoder if side == "enc" else model.decoder, axis)
    if stage.blocks[int(name.split(".")[2])].kind == "w":
        y = x = int(want.shape[1] ** 0.5)
        out = stage._from_windows(out, y, x)
    return out.reshape(want.shape)


def reconstruct(golden: Golden, tok: OmniTokenizer) -> dict[str, Tensor]:
    """All that a case may have recorded, by name."""
    model = tok.model
    got: dict[str, Tensor] = {}
    if "in_u8" in golden.recorded():
        with listening(model) as heard:
            recon, quantized = vars(model(golden.x() / 2)).values()
        got |= heard | {"recon": recon, "recon_mean": recon}
        if isinstance(model.quantizer, KL):
            got |= _of_kl(golden, model, got["moments"], quantized)
        else:
            got |= _of_codes(tok, quantized)
    if "indices" in golden.recorded():
        z = model.quantizer.codes_to_latents(golden.tensor("indices"))
        got["recon_from_indices"] = model.decode(z)
    elif "in_u8" not in golden.recorded():
        got["recon_z"] = model.decode(rearrange(golden.tensor("z"), "b c t y x -> b t y x c"))
    return got


def _of_kl(
    golden: Golden, model: OmniTokenizerNet, moments: Tensor, quantized: Any
) -> dict[str, Tensor]:
    moments = golden.tensor("moments") if "moments" in golden.recorded() else moments
    mean, logvar = model.quantizer.posterior(rearrange(moments, "b c t y x -> b t y x c"))
    got = {
        "kl_raw": kl_divergence(mean, logvar).sum(dim=(1, 2, 4)),
        "kl_loss_w1e-6": 1e-6 * KL_LOSS(SimpleNamespace(quantized=quantized)),
    }
    if "eps" in golden.recorded():
        noise = rearrange(golden.tensor("eps"), "b c t y x -> b t y x c")
        z = reparameterise(mean, logvar, noise)
        got |= {"z": rearrange(z, "b t y x c -> b c t y x"), "recon_z": model.decode(z)}
    return got


def _of_codes(tok: OmniTokenizer, quantized: Any) -> dict[str, Tensor]:
    return {
        "indices": quantized.codes,
        "quant_st": rearrange(quantized.z_q, "b t y x c -> b c t y x"),
        "commitment_loss": COMMITMENT * quantized.losses["commitment"],
        "perplexity": perplexity(quantized.codes, tok.codebook_size or 0),
    }


def shares(codes: Tensor, size: int) -> Tensor:
    """How often each code occurs."""
    return torch.bincount(codes.flatten(), minlength=size) / codes.numel()


def perplexity(codes: Tensor, size: int) -> Tensor:
    """As published."""
    p = shares(codes, size)
    return (-(p * (p + 1e-10).log()).sum()).exp()


def same(got: Tensor, want: Tensor) -> None:
    if want.is_floating_point():
        torch.testing.assert_close(got.reshape(want.shape), want, atol=TOLERANCE, rtol=0)
    else:
        assert torch.equal(got.reshape(want.shape), want)
