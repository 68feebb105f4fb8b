"""The adaptive weight of an adversary that judges some frames of a clip."""

import torch

from omnitok import losses
from omnitok.losses import LossInputs
from omnitok.losses.sharing import Draws


def test_an_adaptive_weight_is_of_the_frames_that_are_judged():
    torch.manual_seed(0)
    heads = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)  # of the first frame, and of the other
    target = torch.rand(1, 3, 2, 16, 16)
    frames = target.movedim(1, -1).split(1, dim=1)
    recon = torch.cat([h(x) for h, x in zip(heads, frames, strict=True)], dim=1).movedim(-1, 1)
    game = losses.build({"gan2d": {"adaptive": True, "width": 4}, "l1": {}})
    for seed in range(8):  # one of the two is drawn
        given = LossInputs(recon, target, last_layer=[h.weight for h in heads], draws=Draws(seed))
        assert float(game(given).terms["gan2d_factor"]) < 1e3
