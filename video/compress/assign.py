"""Where tokens that do not stay go.

Shape suffixes: P independent problems (frames, or whole videos), N tokens, D width.
"""

import torch
from torch import Tensor

from video.compress.score import blocks, deciding, norms


def best_match(from_PND: Tensor, to_PMD: Tensor) -> tuple[Tensor, Tensor]:
    """For each token the most similar of others by cosine; the lowest index where equal.

    The matrix of similarities is made in blocks of rows, and never held whole.

    Returns:
        [P, N] cosines and [P, N] int64 indices into `to_PMD`.
    """
    P, N, _ = from_PND.shape
    M = to_PMD.shape[1]
    a, b = deciding(from_PND), deciding(to_PMD)
    inverse_b = 1 / norms(b)[:, None]
    best = a.new_empty(P, N)
    partner = torch.empty(P, N, dtype=torch.long, device=a.device)
    for samples in blocks(P, min(N * M, 2**24), a, scale=64):
        for rows in blocks(N, M * (samples.stop - samples.start), a, scale=64):
            dots = a[samples, rows] @ b[samples].transpose(1, 2)
            found = (dots * inverse_b[samples]).max(dim=2)
            best[samples, rows], partner[samples, rows] = found
    return best / norms(a), partner
