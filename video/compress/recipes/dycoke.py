"""DyCoke: temporal token "merging", which prunes.

Source: Tao et al. 2025, arXiv:2411.15024. Unlike in the published code, an odd last frame is kept
and short clips work.
"""

import torch
from torch import Tensor

from video.compress.budget import evenly
from video.compress.plan import Plan
from video.compress.score import deciding, norms


class DyCoke:
    """Decides on one frame after another; holds on to the two that the next ones may refer to.

    Args:
        frames: Frames that are to come.
        tokens: Tokens of each.
        keep: As `dycoke` takes it, and all that follows.
        k: See `dycoke`.
        upstream_ends: See `dycoke`.
    """

    def __init__(
        self,
        frames: int,
        tokens: int,
        keep: int | None = None,
        *,
        k: float = 0.7,
        upstream_ends: bool = False,
    ) -> None:
        T, N = frames, tokens
        period = 4
        while keep is not None and -(-T // period) * N > keep and period < T:
            period *= 2
        dropped = T % 2 if upstream_ends and T > 1 else 0
        self._reference = [t - 1 if t % 2 else t - t % period for t in range(T - dropped)]
        if upstream_ends and T % 4 == 0:
            self._reference[T - 2] = T - 2
        between = [t for t, other in enumerate(self._reference) if t != other]
        self._counts = [0 if t >= T - dropped else N for t in range(T)]
        whole = (T - dropped - len(between)) * N
        rest = len(between) * int((1 - k) * N) if keep is None else max(0, keep - whole)
        if keep is not None and keep < whole:  # period >= T: the first frame is the only whole one
            self._counts[0] = keep
        for t, count in zip(between, evenly(rest, len(between)), strict=True):
            self._counts[t] = count
        self._next = 0
        self._held: dict[int, tuple[Tensor, Tensor]] = {}  # frames and their lengths

    def __call__(self, x_BND: Tensor) -> Tensor:
        """[B, count] places of the next frame that stay, from the most changed to the least."""
        t, self._next = self._next, self._next + 1
        N, count = x_BND.shape[1], self._counts[t]
        other = self._reference[t] if t < len(self._reference) else t
        length = norms(x_BND)
        if other == t:
            self._held = {t: (x_BND, length)}
            index = torch.arange(count, device=x_BND.device) * N // max(count, 1)  # evenly
            return index.expand(len(x_BND), -1)
        before, length_before = self._held[other]
        score = (deciding(x_BND) * deciding(before)).sum(-1) / (length * length_before)
        first = min(self._held)  # whole, and of use until the next whole one
        self._held = {first: self._held[first], t: (x_BND, length)}
        return score.argsort(dim=1, stable=True)[:, :count]


def dycoke(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    k: float = 0.7,
    upstream_ends: bool = False,
) -> Plan:
    """Keep whole frames at intervals, and of those between what changed most since.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly. Whole frames then come every 4, or every 8, 16 ..
            where the budget does not reach for more.
        k: Without `keep`: share of a frame between that goes.
        upstream_ends: Do as the published code at the end of a clip: drop an odd last frame, and
            keep the third frame of the last group of four whole where the clip ends with it.

    Returns:
        Outputs of a frame follow each other from the most changed to the least.
    """
    _, T, N, _ = x_BTND.shape
    walk = DyCoke(T, N, keep, k=k, upstream_ends=upstream_ends)
    index = torch.cat([walk(x_BTND[:, t]) + t * N for t in range(T)], dim=1)
    return Plan.keep(index, T * N)
