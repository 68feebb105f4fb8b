"""STA: tokens that repeat what came before go first.

Source: Ding et al. 2023, arXiv:2308.04549.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from video.compress.assign import best_match, rows_of
from video.compress.budget import evenly
from video.compress.plan import Plan
from video.compress.score import TINY, deciding


class Walk:
    """Decides on one frame after another; remembers what was kept of the last one.

    Args:
        counts: Outputs of each frame, in the order in which the frames come.
    """

    def __init__(self, counts: Iterable[int]) -> None:
        self._counts = iter(counts)
        self._told: Tensor | None = None  # how much each token kept of the frame before is repeated
        self._before: Tensor | None = None

    def __call__(self, x_BND: Tensor, metric_BNC: Tensor | None = None) -> Tensor:
        """[B, count] places of the next frame that stay, from the least to the most redundant.

        Args:
            x_BND: Tokens, for how strong each is.
            metric_BNC: What similarity is measured on; the tokens by default.
        """
        count = next(self._counts)
        m = F.normalize(deciding(x_BND if metric_BNC is None else metric_BNC), dim=-1, eps=TINY)
        if self._told is None or self._before is None:
            self._before, self._told = m, torch.ones_like(m[..., 0])
            return _least_repeated(m)[:, :count]
        repeated = (m @ self._before.transpose(1, 2)).softmax(dim=1) @ self._told[..., None]
        worst = repeated[..., 0] * (1 - _strength(x_BND))
        kept = worst.argsort(dim=1, stable=True)[:, :count]
        if count:
            told = repeated[..., 0].gather(1, kept)
            self._told = told / told.sum(1, keepdim=True)
            self._before = rows_of(m, kept)
        return kept


def sta_stage(
    x_BTND: Tensor, metric_BTNC: Tensor, counts: list[int], reverse: bool = False
) -> Plan:
    """Walk through the frames, and keep of each what the one before does not tell.

    Args:
        x_BTND: Tokens, for how strong each is.
        metric_BTNC: What similarity is measured on.
        counts: Outputs of each frame, in the order of time.
        reverse: Walk from the last frame to the first.

    Returns:
        Frames in the order of time, outputs of a frame from the least to the most redundant.
    """
    _, T, N, _ = x_BTND.shape
    order = list(reversed(range(T))) if reverse else list(range(T))
    walk = Walk(counts[t] for t in order)
    kept = {t: walk(x_BTND[:, t], metric_BTNC[:, t]) + t * N for t in order}
    return Plan.keep(torch.cat([kept[t] for t in range(T)], dim=1), T * N)


def _strength(x_BND: Tensor) -> Tensor:
    """The sum of magnitudes of each token, from 0 to 1 in its frame."""
    strength = deciding(x_BND).abs().sum(-1)
    low, high = strength.amin(1, keepdim=True), strength.amax(1, keepdim=True)
    return (strength - low) / (high - low).clamp(min=TINY)


def _least_repeated(metric_BNC: Tensor) -> Tensor:
    """Odd places, then even ones from the least to the most similar to an odd one."""
    B, N, _ = metric_BNC.shape
    odd = torch.arange(1, N, 2, device=metric_BNC.device).expand(B, -1)
    if N == 1:
        return torch.zeros_like(metric_BNC[..., 0], dtype=torch.long)
    best, _ = best_match(metric_BNC[:, ::2], metric_BNC[:, 1::2])
    return torch.cat([odd, 2 * best.argsort(dim=1, stable=True)], dim=1)


def sta(
    x_BTND: Tensor, keep: int | None = None, *, r: int | None = None, metric: Tensor | None = None
) -> Plan:
    """Keep of each frame what the frames before do not already tell, in one walk.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly.
        r: Without `keep`: tokens that go of each frame; a quarter by default.
        metric: [B, T, N, C] what similarity is measured on, e.g. keys; the tokens by default.
    """
    _, T, N, _ = x_BTND.shape
    counts = _counts(T, N, keep, r)
    return sta_stage(x_BTND, x_BTND if metric is None else metric, counts)


def sta_walk(frames: int, tokens: int, keep: int | None = None, *, r: int | None = None) -> Walk:
    """`sta` for frames that come one after another."""
    return Walk(_counts(frames, tokens, keep, r))


def _counts(frames: int, tokens: int, keep: int | None, r: int | None) -> list[int]:
    left = max(1, tokens - (tokens // 4 if r is None else r))
    return evenly(frames * left if keep is None else keep, frames)
