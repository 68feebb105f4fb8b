"""VisToG: visual tokens are grouped around learned semantic tokens.

Source: Huang et al. 2024, arXiv:2411.17773. Written from the paper alone, and no parity is
promised.

Shape suffixes: B batch, N visual tokens, S semantic tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def isolated(num_visual: int, num_semantic: int, device: torch.device | str = "cpu") -> Tensor:
    """[N + S, N + S] bool, True where attention is allowed: visual tokens see no semantic ones."""
    total = num_visual + num_semantic
    mask = torch.ones(total, total, dtype=torch.bool, device=device)
    mask[:num_visual, num_visual:] = False
    return mask


class VisualGrouping(nn.Module):
    """Each visual token joins the semantic token it is most like; each of these takes their mean.

    Args:
        width: Of the tokens.
        num_tokens: Semantic tokens.
    """

    def __init__(self, width: int, num_tokens: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.norm_tokens, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def append(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N + S, D], for an encoder that runs with the mask of `isolated`."""
        return torch.cat([x_BND, self.tokens.to(x_BND).expand(len(x_BND), -1, -1)], dim=1)

    def assign(self, semantic_BSD: Tensor, x_BND: Tensor) -> Tensor:
        """[B, S, N] of zeros and ones, one 1 for each visual token.

        In training drawn by Gumbel noise, with the gradient of the softmax; otherwise the best.
        """
        logits = self.query(self.norm_tokens(semantic_BSD)) @ self.key(self.norm(x_BND)).mT
        logits = logits * x_BND.shape[-1] ** -0.5
        if self.training:
            return F.gumbel_softmax(logits, dim=1, hard=True)
        return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1)

    def forward(self, encoded_BLD: Tensor) -> Tensor:
        """[B, N + S, D], visual tokens and then semantic ones as encoded, to [B, S, D]."""
        num_visual = encoded_BLD.shape[1] - len(self.tokens)
        x, semantic = encoded_BLD[:, :num_visual], encoded_BLD[:, num_visual:]
        weights = self.assign(semantic, x)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        y: Tensor = semantic + self.out(weights @ self.value(self.norm(x)))
        return y
