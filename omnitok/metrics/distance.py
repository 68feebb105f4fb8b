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


def kernel_distance(a_ND: Tensor, b_ND: Tensor, seed: int = 0) -> float:
    """Squared maximum mean discrepancy of two sets, for a cubic kernel; unbiased.

    Samples of the same number may belong together (a picture and its reconstruction), so a sample
    is compared with all but its own partner: the distance of a set to itself is 0.

    Args:
        a_ND: One set.
        b_ND: The other, as large.
        seed: Of the division of large sets into parts, over which the mean is taken.

    Source: Gretton et al. 2012, JMLR 13, eq. 4, with the kernel of Bińkowski et al. 2018,
        arXiv:1801.01401, section 4.

    Raises:
        TooFewError: There are fewer than 2 samples.
    """
    count = len(a_ND)
    if count < 2:
        raise TooFewError(f"{count} samples are too few for a kernel distance (2 at least)")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = max(1, count // SUBSET)
    found = [_mmd(a_ND[i].double(), b_ND[i].double()) for i in order.tensor_split(parts)]
    return float(torch.stack(found).mean())


def _mmd(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    def mean(x: Tensor, y: Tensor) -> Tensor:
        kernel = (x @ y.T / x.shape[1] + 1) ** 3
        return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))

    return mean(a_ND, a_ND) + mean(b_ND, b_ND) - 2 * mean(a_ND, b_ND)
