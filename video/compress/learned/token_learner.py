"""TokenLearner and TokenFuser: a few tokens as learned weighted sums of many, and back.

Source: Ryoo et al. 2021, arXiv:2106.11297, and its released code, versions 1 and 1.1.

Shape suffixes: B batch, N tokens, S tokens that come out, D width, h w rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of layer norms, as published


class Masking(nn.Sequential):
    """Two linear layers with a tanh-approximated gelu between them.

    Args:
        width: In.
        hidden: Between.
        out: Out.
        bias: Whether the layers carry biases.
    """

    def __init__(self, width: int, hidden: int, out: int, bias: bool = True) -> None:
        super().__init__(
            nn.Linear(width, hidden, bias=bias),
            nn.GELU(approximate="tanh"),
            nn.Linear(hidden, out, bias=bias),
        )


class TokenLearnerConv(nn.Module):
    """Version 1: maps by convolutions, between 0 and 1.

    Args:
        width: Of the tokens.
        num_tokens: Tokens that come out.
        mean: Divide each sum by the number of places.
    """

    def __init__(self, width: int, num_tokens: int, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.convs = nn.ModuleList(
            nn.Conv2d(width if i == 0 else num_tokens, num_tokens, 3, padding=1, bias=False)
            for i in range(4)
        )

    def weights(self, x_BhwD: Tensor) -> Tensor:
        """[B, S, h * w] weights of every place in every output."""
        maps = self.norm(x_BhwD).movedim(-1, 1)
        for i, conv in enumerate(self.convs):
            maps = conv(maps if i == 0 else F.gelu(maps, approximate="tanh"))
        weights: Tensor = maps.sigmoid().flatten(2)
        return weights / weights.shape[2] if self.mean else weights

    def forward(self, x_BhwD: Tensor) -> Tensor:
        """[B, h, w, D] to [B, S, D]."""
        return self.weights(x_BhwD) @ x_BhwD.flatten(1, 2)


class TokenLearner(nn.Module):
    """Version 1.1: each output is a mean of the tokens, weighted by an MLP and a softmax.

    Args:
        width: Of the tokens.
        num_tokens: Tokens that come out.
        hidden: Of the MLP.
    """

    def __init__(self, width: int, num_tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.masking = Masking(width, hidden, num_tokens)

    def weights(self, x_BND: Tensor) -> Tensor:
        """[B, S, N] weights, which sum to 1 over the tokens."""
        weights: Tensor = self.masking(self.norm(x_BND)).transpose(1, 2).softmax(-1)
        return weights

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, S, D]."""
        return self.weights(x_BND) @ x_BND


class TokenLearnerAttention(nn.Module):
    """The variant in which learned queries attend to the tokens.

    Args:
        width: Of the tokens.
        num_tokens: Tokens that come out.
        heads: Of the attention.
    """

    def __init__(self, width: int, num_tokens: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, S, D]."""
        queries = self.tokens.expand(len(x_BND), -1, -1)
        y: Tensor = self.attn(queries, x_BND, x_BND, need_weights=False)[0]
        return y


class TokenFuser(nn.Module):
    """Spread a few tokens over the places they came from; the caller adds the result to them.

    Args:
        width: Of the tokens.
        num_tokens: Tokens that come in.
        hidden: Of the MLP that decides which place takes what.
    """

    def __init__(self, width: int, num_tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width, eps=EPS)
        self.mix = nn.Linear(num_tokens, num_tokens)
        self.norm_out = nn.LayerNorm(width, eps=EPS)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.masking = Masking(width, hidden, num_tokens)

    def forward(self, tokens_BSD: Tensor, x_BND: Tensor) -> Tensor:
        """[B, S, D] tokens and [B, N, D] places to [B, N, D]."""
        mixed = self.mix(self.norm_in(tokens_BSD).transpose(1, 2)).transpose(1, 2)
        weights = self.masking(self.norm(x_BND)).sigmoid()
        y: Tensor = weights @ self.norm_out(mixed)
        return y
