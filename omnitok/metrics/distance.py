"""Distances between two sets of features.

Shape suffixes: N and M samples, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUBSET = 1000  # samples of each side that a kernel distance compares at a time


class TooFewError(ValueError):
    """There are too few samples for a distance to mean anything."""


def frechet_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of two sets.

    Source: Heusel et al. 2017, arXiv:1706.08500, eq. 6.

    Raises:
        TooFewError: A set has fewer than twice as many samples as features.
    """
    width = a_ND.shape[1]
    if min(len(a_ND), len(b_MD)) < 2 * width:
        raise TooFewError(
            f"{min(len(a_ND), len(b_MD)):,} samples are too few for a covariance of {width:,} "
            f"features ({2 * width:,} at least)"
        )
    a, b = a_ND.double(), b_MD.double()
    covariances = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return float(gap + covariances[0].trace() + covariances[1].trace() - 2 * cross)


def kernel_distance(a_ND: Tensor, b_MD: Tensor, seed: int = 0) -> float:
    """Squared maximum mean discrepancy of two sets, for a cubic kernel; unbiased.

    Means over disjoint random subsets, the same for both sides where these are equally large, so
    that a feature is compared in the company of its own pair.

    Source: Bińkowski et al. 2018, arXiv:1801.01401, section 4.

    Raises:
        TooFewError: A set has fewer than 2 samples.
    """
    count = min(len(a_ND), len(b_MD))
    if count < 2:
        raise TooFewError(f"{count} samples are too few for a kernel distance (2 at least)")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = max(1, count // SUBSET)
    found = [_mmd(a_ND[i].double(), b_MD[i].double()) for i in order.tensor_split(parts)]
    return float(torch.stack(found).mean())


def _mmd(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    count = len(a_ND)
    same = [k.sum() - k.diagonal().sum() for k in (kernel(a_ND, a_ND), kernel(b_ND, b_ND))]
    return (same[0] + same[1]) / (count * (count - 1)) - 2 * kernel(a_ND, b_ND).mean()
