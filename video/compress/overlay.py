"""Which tokens of a clip were kept, shown on its frames."""

import torch
from torch import Tensor

from omnitok.token_plan import TokenPlan

DROPPED, MERGED, KEPT = 0, 1, 2
DIM = 0.25  # brightness of what was dropped
TINT = (70, 130, 255)  # colour of what went into another token, half and half with the picture


def kinds_of(plan: TokenPlan, grid: tuple[int, int, int]) -> Tensor:
    """[t, h, w] uint8 what became of each token: `DROPPED`, `MERGED` into another, or `KEPT`."""
    kinds = (plan.source >= 0).to(torch.uint8)
    kinds[plan.place] = KEPT
    return kinds.view(grid)


def show_kept(frame_CHW: Tensor, kinds_hw: Tensor, patch: tuple[int, int]) -> Tensor:
    """Darken what was dropped and tint what was merged.

    Args:
        frame_CHW: uint8 picture.
        kinds_hw: Kind of each token of its time group.
        patch: Rows and columns of a token in pixels.

    Returns:
        [3, H, W] uint8.
    """
    _, H, W = frame_CHW.shape
    kinds = kinds_hw.repeat_interleave(patch[0], 0).repeat_interleave(patch[1], 1)[:H, :W]
    picture = frame_CHW.float()
    tint = torch.tensor(TINT, dtype=torch.float32, device=frame_CHW.device)[:, None, None]
    shown = torch.where(kinds == MERGED, (picture + tint) / 2, picture)
    shown = torch.where(kinds == DROPPED, picture * DIM, shown)
    return shown.round().to(torch.uint8)
