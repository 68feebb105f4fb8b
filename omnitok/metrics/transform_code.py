"""Transform coding of patches: principal components and optimal scalar quantizers.

The reference that a learned discrete tokenizer has to beat at the same number of bits.

Shape suffixes: S samples, R components, P values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnitok.train.pca import PCA

MAX_BITS = 7  # of one coefficient


def lloyd_max(x: Tensor, levels: int, iterations: int = 30) -> Tensor:
    """The `levels` values that quantize samples with the least mean squared error.

    Args:
        x: [S] samples.
        levels: Number of values.
        iterations: Of Lloyd's algorithm, from equally filled cells.

    Returns:
        [levels], increasing.

    Source: Lloyd 1982, Least squares quantization in PCM.
    """
    x = x.sort().values
    values = torch.quantile(x, (torch.arange(levels, dtype=x.dtype) + 0.5) / levels)
    total = torch.cat([x.new_zeros(1), x.cumsum(0)])
    for _ in range(iterations):
        edges = torch.searchsorted(x, (values[1:] + values[:-1]) / 2)
        bounds = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(x))])
        count = bounds.diff()
        mean = total[bounds].diff() / count.clamp_min(1)
        values = torch.where(count > 0, mean, values)
    return values


def nearest(x: Tensor, values: Tensor) -> Tensor:
    """Each sample replaced by the nearest of the increasing `values`."""
    return values[torch.bucketize(x, (values[1:] + values[:-1]) / 2)]


@dataclass
class TransformCode:
    """A PCA and a scalar quantizer for each of its leading components.

    Attributes:
        pca: The transform.
        values: Per component the values it may take; their number is a power of two.
    """

    pca: PCA
    values: list[Tensor]

    @classmethod
    def fit(cls, pca: PCA, patches: Tensor, bits: int) -> TransformCode:
        """Give `bits` bits out one by one, each where it lowers the error most.

        Args:
            pca: A PCA of the patches.
            patches: [S, P] samples to fit the quantizers to.
            bits: Of a patch.
        """
        columns = pca.project(patches, bits).double().T.contiguous()
        rank = len(columns)
        candidates: list[list[Tensor]] = [[columns[r].mean()[None]] for r in range(rank)]
        for r in range(rank):
            for b in range(1, MAX_BITS + 1):
                candidates[r].append(lloyd_max(columns[r], 2**b))
        errors = torch.tensor(
            [
                [
                    float((nearest(columns[r], v) - columns[r]).square().mean())
                    for v in candidates[r]
                ]
                for r in range(rank)
            ]
        )
        given = [0] * rank
        for _ in range(bits):
            gain = [
                float(errors[r, given[r]] - errors[r, given[r] + 1]) if given[r] < MAX_BITS else 0.0
                for r in range(rank)
            ]
            given[max(range(rank), key=gain.__getitem__)] += 1
        return cls(pca, [candidates[r][given[r]].float() for r in range(rank)])

    def reconstruct(self, patches: Tensor) -> Tensor:
        """[..., P] patches after the code."""
        coefficients = self.pca.project(patches, len(self.values))
        columns = [nearest(coefficients[..., r].contiguous(), v) for r, v in enumerate(self.values)]
        return self.pca.reconstruct(torch.stack(columns, dim=-1))
