"""Chat-UniVi: clusters of tokens, at several levels, of events.

Source: Jin et al. 2024, arXiv:2311.08046.
"""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from video.compress.assign import density_peaks
from video.compress.budget import Keep, Pick, evenly, per_frame
from video.compress.merge import partition
from video.compress.plan import Plan


def cluster(
    x_PND: Tensor,
    count: int,
    k: int,
    weight_PN: Tensor | None = None,
    mask_PN: Tensor | None = None,
    upstream_ties: bool = False,
) -> Plan:
    """Average clusters around density peaks, the best peak first.

    Args:
        x_PND: Tokens.
        count: Clusters; as many as tokens where there are fewer.
        k: Neighbours that density is measured on; fewer where there are fewer clusters.
        weight_PN: Weights in the averages.
        mask_PN: False for tokens that do not count.
        upstream_ties: As `density_peaks` takes it.
    """
    count = min(count, x_PND.shape[1])
    k = k if k <= count else min(3, max(count // 2, 1))
    centres, labels = density_peaks(x_PND, count, k, mask_PN, upstream_ties)
    if mask_PN is not None:
        weight_PN = (1 if weight_PN is None else weight_PN) * mask_PN.float()
        labels = labels.where(mask_PN, 0)
    return partition(labels, centres, weight_PN)


def levels(
    x_PND: Tensor, counts: Sequence[int], k: Sequence[int], upstream_ties: bool = False
) -> list[Plan]:
    """Clusters of the tokens, clusters of those, and so on: a plan for each level."""
    plans: list[Plan] = []
    for count, neighbours in zip(counts, k, strict=True):
        y = plans[-1].apply(x_PND) if plans else x_PND
        step = cluster(y, count, neighbours, upstream_ties=upstream_ties)
        plans.append(plans[-1].then(step) if plans else step)
    return plans


def dpc_knn(x_BTND: Tensor, keep: Keep | None = None, *, k: int = 5) -> Plan:
    """Average clusters of each frame around its density peaks.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample (or frame), exactly; 64 of each frame by default.
        k: Neighbours that density is measured on.
    """
    B, T, N, _ = x_BTND.shape

    def decide(pick: Pick, count: int) -> Plan:
        return cluster(pick(x_BTND), count, k)

    return per_frame(B, T, N, T * min(64, N) if keep is None else keep, decide)


def chat_univi(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    spatial: Sequence[int] = (64, 32, 16),
    temporal: float = 1 / 16,
    k: Sequence[int] = (5, 3, 3, 5),
    upstream_ties: bool = False,
) -> Plan:
    """Cluster frames into events, and the tokens of every event at several levels.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly, shared over events by their frames and over levels
            in proportion to `spatial`.
        spatial: Without `keep`: clusters at each level, of every frame and then of every event;
            fewer, for half of the tokens, where there are not as many tokens.
        temporal: Events per frame.
        k: Neighbours that density is measured on at each level, and among frames.
        upstream_ties: As `density_peaks` takes it.

    Returns:
        Events in the order of their first frames, and level by level. A token is in every level.
    """
    if len(k) != len(spatial) + 1:
        raise ValueError(
            f"k={k} has {len(k)} numbers for {len(spatial)} levels; give one for each level and "
            "one for frames"
        )
    _, T, N, _ = x_BTND.shape
    num_events = max(1, ceil(T * temporal))
    if keep is None and sum(spatial) * num_events > T * N:
        keep = max(1, T * N // 2)
    plans = []
    for x_TND in x_BTND:
        parts = []
        means = x_TND.mean(1)[None]
        events = cluster(means, num_events, k[-1], upstream_ties=upstream_ties)
        label = events.source()[0].tolist()
        frames = [[t for t in range(T) if label[t] == e] for e in dict.fromkeys(label)]
        of_frame = None if keep is None else evenly(keep, T)
        for of in frames:
            budget = None if of_frame is None else sum(of_frame[t] for t in of)
            counts = _level_counts(spatial, budget)
            event = _event(x_TND[of], counts, spatial, k, upstream_ties)
            tokens = torch.tensor(of, device=x_TND.device)[:, None] * N
            index = (tokens + torch.arange(N, device=x_TND.device)).flatten()[None]
            parts.append(Plan.keep(index, T * N).then(event))
        plans.append(Plan.concat(parts))
    return Plan.stack(plans)


def _level_counts(spatial: Sequence[int], budget: int | None) -> list[int]:
    """Clusters of an event at each level: as many as `budget` in all, the rest to the first."""
    if budget is None:
        return list(spatial)
    counts = [budget * count // sum(spatial) for count in spatial]
    return [budget - sum(counts[1:]), *counts[1:]]


def _event(
    x_TND: Tensor,
    counts: list[int],
    spatial: Sequence[int],
    k: Sequence[int],
    upstream_ties: bool,
) -> Plan:
    """Clusters of the frames of an event at each level, and clusters of all of those."""
    T = len(x_TND)
    of_frame = [max(n, -(-count // T)) for n, count in zip(spatial, counts, strict=True)]
    parts = []
    for frame, count, near in zip(
        levels(x_TND, of_frame, k[:-1], upstream_ties), counts, k, strict=False
    ):
        tokens = frame.apply(x_TND).flatten(0, 1)[None]
        if count:
            step = cluster(tokens, count, near, upstream_ties=upstream_ties)
            parts.append(frame.fold(T).then(step))
    return Plan.concat(parts)
