"""OmniTokenizer against recorded outputs and intermediate tensors of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.parity.omnitokenizer_goldens import (
    ABSENT,
    Golden,
    every_case,
    goldens,
    in_token_order,
    load,
    reconstruct,
    same,
    settings,
)


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
    given = {"in_u8", "eps"} if "in_u8" in recorded else {"indices", "z"}
    if not training:
        given |= {name for name in recorded if name.startswith("blk.")}
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
        if tok.codebook_size is None:
            same(tok.decode(golden.tensor("z")) / 2, golden.tensor("recon_z"))
        else:
            z = tok.dequantize(golden.tensor("indices"))
            same(tok.decode(z) / 2, golden.tensor("recon_from_indices"))
        return
    x = golden.x()
    assert not any(side % many for side, many in zip(x.shape[3:], tok.multiple, strict=True))
    z = tok.encode(x)
    if tok.codebook_size is None:
        if "moments" in recorded:
            same(z, golden.tensor("moments").chunk(2, dim=1)[0])
        got = {"recon_mean": tok.decode(z, size=x.shape[2:]) / 2}
    else:
        codes = tok.quantize(z)
        got = {"indices": codes, "recon": tok.decode(tok.dequantize(codes), x.shape[2:]) / 2}
        window, tok.window = tok.window, None  # take clips as a whole, as published
        frames = golden.tensor("in_u8")
        frames = frames if frames.ndim == 5 else frames[:, :, None]
        tokens = tok.tokenize(list(frames.transpose(1, 2)))
        tok.window = window
        same(torch.stack([clip.codes for clip in tokens]), codes)
    assert recorded & set(got)
    for name in recorded & set(got):
        same(got[name], golden.tensor(name))


def test_every_case_that_is_listed_is_there():
    listed = {
        (Path(name).stem, case) for name, of in settings().items() for case in of.get("cases", ())
    }
    if not listed:
        pytest.skip(ABSENT)
    assert listed <= {(golden.weights.stem, golden.case) for golden in goldens()}
