"""From an OmniTokenizer that has seen images alone to one for clips.

Frame 0 has a patch embedding and a head of its own, and those are all that images ever meet: an
image comes back as it did, whatever the parts of moving patches hold. Those parts are the only ones
that need first weights. What else images leave alone keeps its own: the taps of the convolutions
that look back in time, and queries and keys over time.

Source: Wang et al. 2024, arXiv:2406.09399, and the published code, whose arithmetic "average" and
"first" follow. It tiles a patch (colour, row, column) as (frame, colour, row, column), though a
moving one is (colour, frame, row, column), and divides norm, linear layer and head, so that a clip
begins dark and with mixed colours. "still" is what was meant: a clip that stands still enters as
its first frame does, and every frame of a group leaves as a first frame would.

Shape suffixes: P values of a patch.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from omnitok.interop.omnitokenizer_config import COLOURS
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet

MOVING = ("encoder.embed.", "decoder.head.")  # what only moving patches meet


@torch.no_grad()
def inflate(model: OmniTokenizerNet, how: str) -> None:
    """Give the parts of moving patches the weights of those of still ones.

    Args:
        model: Changed in place.
        how: "average" or "first" as published, or "still".
    """
    frames, still = model.config.inner_patch[0], model.encoder.embed_first.state_dict()
    for name in ("norm_in.weight", "norm_in.bias"):
        still[name] = _spread(still[name], frames, how)
    still["linear.weight"] = _spread(still["linear.weight"].T, frames, how, mean=True).T
    model.encoder.embed.load_state_dict(still)
    head = model.decoder.head_first.state_dict()
    model.decoder.head.load_state_dict({n: _spread(x, frames, how) for n, x in head.items()})


def _spread(x_P: Tensor, frames: int, how: str, mean: bool = False) -> Tensor:
    """[P, ...] of a still patch to [frames * P, ...]; `mean` where values of all frames add up."""
    if how == "still":
        spread = repeat(x_P, "(c p) ... -> (c f p) ...", c=COLOURS, f=frames)
        return spread / frames if mean else spread
    if how == "average":
        return repeat(x_P, "p ... -> (f p) ...", f=frames) / frames
    return torch.cat([x_P, x_P.new_zeros((frames - 1) * len(x_P), *x_P.shape[1:])])
