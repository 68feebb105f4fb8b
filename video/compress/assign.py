"""Where tokens that do not stay go.

Shape suffixes: P independent problems (frames, or whole videos), N tokens, D width.
"""

import torch
from torch import Tensor

from video.compress.score import blocks, deciding, norms
from video.compress.select import top


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


def chains(patch_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of the same place, one after the other in time.

    Args:
        patch_BN: The place of each token in its frame; -1 for tokens that are of none.

    Returns:
        [B, N] int64 order in which chains follow each other, and [B, N] bool in that order, true
        where a token follows another of its place.
    """
    order = patch_BN.argsort(dim=1, stable=True)
    patch = patch_BN.gather(1, order)
    follows = torch.zeros_like(patch, dtype=torch.bool)
    follows[:, 1:] = (patch[:, 1:] == patch[:, :-1]) & (patch[:, 1:] >= 0)
    return order, follows


def runs(order_BN: Tensor, joins_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Collapse every run of tokens that join the one before them into its first token.

    Args:
        order_BN: Tokens in the order of their chains.
        joins_BN: In that order: whether a token joins the one before.

    Returns:
        [B, N] int64 the output of each token, and [B, N] bool whether it is the first of its run;
        outputs are in the order of the first tokens.
    """
    step = torch.arange(order_BN.shape[1], device=order_BN.device)
    start = step.where(~joins_BN, 0).cummax(dim=1).values
    head = torch.empty_like(order_BN).scatter(1, order_BN, order_BN.gather(1, start))
    is_head = torch.empty_like(joins_BN).scatter(1, order_BN, ~joins_BN)
    return (is_head.cumsum(1) - 1).gather(1, head), is_head


def density_peaks(
    x_PND: Tensor, count: int, k: int, mask_PN: Tensor | None = None, upstream_ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Cluster around tokens that are dense and far from denser ones (DPC-KNN).

    Source: Du et al. 2016, doi:10.1016/j.knosys.2016.02.001, as Zeng et al. 2022, arXiv:2204.08680.
    Distances are made in blocks; of a long video they are made twice, and never held whole.

    Args:
        x_PND: Tokens.
        count: Clusters, at most N.
        k: Neighbours that density is measured on, the token itself included.
        mask_PN: False for tokens that neither count nor become a centre.
        upstream_ties: Of equal peaks take those that `torch.topk` happens to, as the published
            code does, and not the first.

    Returns:
        [P, count] int64 centres, best first, and [P, N] int64 the cluster of each token.
    """
    P, N, _ = x_PND.shape
    centres = torch.empty(P, count, dtype=torch.long, device=x_PND.device)
    labels = torch.empty(P, N, dtype=torch.long, device=x_PND.device)
    for part in blocks(P, N * min(N, 2**12), x_PND):
        x = deciding(x_PND[part])
        distances = _Distances(x)
        peaks = _peaks(distances, min(k, N), None if mask_PN is None else mask_PN[part])
        if upstream_ties:
            centres[part] = peaks.topk(count, dim=1).indices
        else:
            centres[part] = top(peaks, count, order="score")
        labels[part] = distances.nearest(centres[part])
    own = torch.arange(count, device=x_PND.device).expand(P, count)
    return centres, labels.scatter(1, centres, own)


class _Distances:
    """Squared distances of all pairs, in blocks of rows; held where one block is enough."""

    def __init__(self, x_PND: Tensor) -> None:
        self.x = x_PND
        P, N, _ = x_PND.shape
        self.square = norms(x_PND).square()
        self.blocks = list(blocks(N, P * N, x_PND, scale=64))
        self.held: Tensor | None = None

    def __getitem__(self, rows: slice) -> Tensor:
        """[P, rows, N]; 0 from a token to itself."""
        if self.held is not None:
            return self.held
        d = torch.baddbmm(
            self.square[:, None], self.x[:, rows], self.x.transpose(1, 2), alpha=-2
        ).add_(self.square[:, rows, None])
        d.diagonal(rows.start, 1, 2)[:, : rows.stop - rows.start] = 0
        if len(self.blocks) == 1:  # two nearest to each other are equally dense, to the bit
            self.held = d = torch.minimum(d, d.transpose(1, 2))
        return d

    def nearest(self, centres_PK: Tensor) -> Tensor:
        """The nearest of some of the tokens, the first where equal."""
        if self.held is None:
            return nearest(self.x, rows_of(self.x, centres_PK))
        return rows_of(self.held, centres_PK).argmin(dim=1)


def _peaks(distances: _Distances, k: int, mask: Tensor | None) -> Tensor:
    """Density times the distance to the nearest denser token: [P, N]."""
    P, N, D = distances.x.shape
    furthest, density = distances.square.new_zeros(P), distances.square.new_empty(P, N)
    for rows in distances.blocks:
        d = distances[rows]
        furthest = furthest.maximum(d.amax((1, 2)))
        if mask is not None:
            d = d.masked_fill(~mask[:, None], torch.inf)
        near = d.topk(k, dim=2, largest=False, sorted=False).values.clamp(min=0)
        density[:, rows] = (-near.mean(2) / D).exp()
    if mask is not None:
        density = density * mask
    far = torch.empty_like(density)
    for rows in distances.blocks:
        denser = density[:, None] > density[:, rows, None]
        far[:, rows] = distances[rows].where(denser, furthest[:, None, None]).amin(2)
    return (far.clamp(min=0) / D).sqrt() * density


def nearest(x_PND: Tensor, centres_PKD: Tensor) -> Tensor:
    """The nearest centre of each token, the first where equal: [P, N] int64, below K."""
    x, c = deciding(x_PND), deciding(centres_PKD)
    square = c.square().sum(-1)[:, None]
    parts = [
        torch.baddbmm(square, x[:, rows], c.transpose(1, 2), alpha=-2).argmin(2)
        for rows in blocks(x.shape[1], len(x) * c.shape[1], x, scale=64)
    ]
    return torch.cat(parts, dim=1)


def rows_of(x_PND: Tensor, index_PK: Tensor) -> Tensor:
    """The tokens at indices: [P, K, D]."""
    return x_PND[torch.arange(len(x_PND), device=x_PND.device)[:, None], index_PK]


def best_matches(x_PND: Tensor, of_PK: Tensor, count: int) -> Tensor:
    """For some of the tokens, the `count` others most similar by cosine: [P, K, count] int64."""
    x = deciding(x_PND) / norms(x_PND)[..., None]
    similarity = (rows_of(x, of_PK) @ x.transpose(1, 2)).scatter(2, of_PK[..., None], -torch.inf)
    return similarity.argsort(dim=2, descending=True, stable=True)[..., :count]
