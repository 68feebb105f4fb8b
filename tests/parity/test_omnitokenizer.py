"""OmniTokenizer against recorded outputs and intermediate tensors of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from omnitok.interop.omnitokenizer_config import EMA_EPS
from omnitok.interop.omnitokenizer_net import CountedVQ
from omnitok.quantize import QuantizerConfig
from tests.parity.omnitokenizer_goldens import (
    ABSENT,
    COMMITMENT,
    FOLDER,
    Golden,
    every_case,
    goldens,
    in_token_order,
    load,
    perplexity,
    reconstruct,
    settings,
    shares,
)

TOLERANCE = 1e-4


def same(got: Tensor, want: Tensor) -> None:
    if want.is_floating_point():
        torch.testing.assert_close(got.reshape(want.shape), want, atol=TOLERANCE, rtol=0)
    else:
        assert torch.equal(got.reshape(want.shape), want)


@every_case()
@pytest.mark.parametrize("training", [False, True], ids=["inference", "graph"])
def test_results_and_tensors_on_the_way_equal_those_of_the_published_code(
    golden: Golden, training: bool
):
    """With and without a graph, since the network computes differently for each."""
    tok = load(golden.weights, golden.explicit)
    with torch.set_grad_enabled(training):
        got = reconstruct(golden, tok)
    if "pre_vq" in got:
        got["z"] = F.normalize(got["pre_vq"], dim=1)
    recorded = golden.recorded()
    given = {"in_u8", "eps"} if "in_u8" in recorded else {"indices"}
    assert recorded - given <= set(got)
    for name in sorted(recorded - given):
        want = golden.tensor(name)
        out = in_token_order(tok.model, name, got[name], want) if "blk." in name else got[name]
        same(out, want)


@every_case()
def test_the_tokenizer_gives_the_recorded_results(golden: Golden):
    """Through the public face, where frames need no padding."""
    tok, recorded = load(golden.weights, golden.explicit), golden.recorded()
    if "in_u8" not in recorded:
        codes = golden.tensor("indices")
        same(tok.decode(tok.dequantize(codes)) / 2, golden.tensor("recon_from_indices"))
        return
    x = golden.x()
    assert not any(side % many for side, many in zip(x.shape[3:], tok.multiple, strict=True))
    z = tok.encode(x)
    if tok.codebook_size is None:
        same(z, golden.tensor("moments").chunk(2, dim=1)[0])
        same(tok.decode(z, size=x.shape[2:]) / 2, golden.tensor("recon_mean"))
        return
    same(tok.quantize(z), golden.tensor("indices"))
    same(tok.decode(tok.dequantize(tok.quantize(z)), size=x.shape[2:]) / 2, golden.tensor("recon"))
    window, tok.window = tok.window, None  # take clips as a whole, as published
    frames = golden.tensor("in_u8") if x.shape[2] > 1 else golden.tensor("in_u8")[:, :, None]
    for clip, codes in zip(frames.transpose(1, 2), golden.tensor("indices"), strict=True):
        same(tok.tokenize(clip).codes, codes)
    tok.window = window


def test_every_case_that_is_listed_is_there():
    listed = {
        (Path(name).stem, case) for name, of in settings().items() for case in of.get("cases", ())
    }
    if not listed:
        pytest.skip(ABSENT)
    assert listed == {(golden.weights.stem, golden.case) for golden in goldens()}


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
