"""A linear probe: how much of a label a linear layer finds in frozen latents.

Shape suffixes: S samples, D features, c latent channels, t, h, w tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 4  # places along each side that latents are averaged in


def pool_latents(z_cthw: Tensor) -> Tensor:
    """Means of latents over time and in a 4 x 4 grid of places, and their spread, as one vector."""
    z = z_cthw.float()
    means = F.adaptive_avg_pool3d(z, (1, SIDE, SIDE)).flatten()
    return torch.cat([means, z.flatten(1).std(dim=1, correction=0)])


def split(labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of training and of test samples: of every class, a random `share` tests."""
    random = torch.Generator().manual_seed(seed)
    train, test = list[int](), list[int]()
    for label in sorted(set(labels)):
        own = [n for n, other in enumerate(labels) if other == label]
        own = [own[n] for n in torch.randperm(len(own), generator=random).tolist()]
        held = max(1, round(share * len(own))) if len(own) > 1 else 0
        test += own[:held]
        train += own[held:]
    return sorted(train), sorted(test)


def accuracy(
    train_SD: Tensor, train_S: Tensor, test_SD: Tensor, test_S: Tensor, decay: float = 1e-3
) -> float:
    """Share of test samples whose label a logistic regression finds.

    Args:
        train_SD: Features; scaled to mean 0 and variance 1 of the training samples.
        train_S: int64 labels from 0.
        test_SD: Features.
        test_S: Labels.
        decay: Factor on the mean square of the weights.
    """
    mean, std = train_SD.mean(0), train_SD.std(0, correction=0).clamp_min(1e-6)
    x, y = (train_SD - mean) / std, (test_SD - mean) / std
    classes = 1 + int(torch.cat([train_S, test_S]).max())
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(x), train_S) + decay * layer.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float((layer(y).argmax(1) == test_S).float().mean())
