"""Distances between two sets of features.

Shape suffixes: N samples, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEPT = 8000  # samples of a set that kernel distances look at
SUBSET = 1000  # samples of each side that a kernel distance compares at a time


class TooFewError(ValueError):
    """There are too few samples for a distance to mean anything."""


class Samples:
    """Features that come bit by bit: moments of all of them, and an even choice of some.

    Attributes:
        count: Samples so far.
        square: [D, D] float64 sum of products.
        total: [D] float64 sum.
    """

    def __init__(self) -> None:
        self.count = 0
        self.square = self.total = torch.zeros((), dtype=torch.float64)
        self._rows: list[Tensor] = []
        self._stride = 1

    def add(self, x_ND: Tensor) -> None:
        """Count features on the CPU."""
        x = x_ND.double()
        self.square, self.total = self.square + x.T @ x, self.total + x.sum(0)
        self._rows.append(x_ND[-self.count % self._stride :: self._stride])
        self.count += len(x)
        while sum(map(len, self._rows)) > KEPT:
            self._rows, self._stride = [torch.cat(self._rows)[::2]], 2 * self._stride

    @property
    def kept(self) -> Tensor:
        """[N, D] every sample while there are at most `KEPT`, then every second, fourth, ..."""
        return torch.cat(self._rows)

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """[D] mean and [D, D] covariance of all samples, in float64."""
        mean = self.total / self.count
        covariance = (self.square - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean, covariance


def frechet_distance(a: Samples, b: Samples) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of two sets.

    Source: Heusel et al. 2017, arXiv:1706.08500, eq. 6.

    Raises:
        TooFewError: A set has fewer than twice as many samples as features.
    """
    width, count = a.total.numel(), min(a.count, b.count)
    if count < 2 * width:
        raise TooFewError(
            f"{count:,} samples are too few for a covariance of {width:,} features "
            f"({2 * width:,} at least)"
        )
    (mean_a, covariance_a), (mean_b, covariance_b) = a.gaussian(), b.gaussian()
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp_min(0).sqrt().sum()
    gap = (mean_a - mean_b).square().sum()
    return float(gap + covariance_a.trace() + covariance_b.trace() - 2 * cross)


def kernel_distance(a: Samples, b: Samples, seed: int = 0) -> float:
    """Squared maximum mean discrepancy of two sets, for a cubic kernel; unbiased.

    Samples of the same number may belong together (a picture and its reconstruction), so a sample
    is compared with all but its own partner: the distance of a set to itself is 0.

    Args:
        a: One set.
        b: The other, as large.
        seed: Of the division of large sets into parts, over which the mean is taken.

    Source: Gretton et al. 2012, JMLR 13, eq. 4, with the kernel of Bińkowski et al. 2018,
        arXiv:1801.01401, section 4.

    Raises:
        TooFewError: There are fewer than 2 samples.
    """
    if a.count < 2:
        raise TooFewError(f"{a.count} samples are too few for a kernel distance (2 at least)")
    a_ND, b_ND = a.kept, b.kept
    order = torch.randperm(len(a_ND), generator=torch.Generator().manual_seed(seed))
    parts = max(1, len(a_ND) // SUBSET)
    found = [_mmd(a_ND[i].double(), b_ND[i].double()) for i in order.tensor_split(parts)]
    return float(torch.stack(found).mean())


def _mmd(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    def mean(x: Tensor, y: Tensor) -> Tensor:
        kernel = (x @ y.T / x.shape[1] + 1) ** 3
        return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))

    return mean(a_ND, a_ND) + mean(b_ND, b_ND) - 2 * mean(a_ND, b_ND)
