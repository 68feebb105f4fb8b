"""The feed-forward half of a block.

Shape suffixes: D width, M hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.native import kernels
from omnitok.nn.linear import add, linear, takes, takes_half
from omnitok.nn.norm import Norm, needs_graph

HELD = 20 * 2**20  # bytes between the two layers: larger products are no faster
MLPS = ("swiglu", "geglu", "gelu_tanh")


class MLP(nn.Module):
    """Two linear layers with a non-linearity between them.

    Args:
        kind: "swiglu" or "geglu" (Shazeer 2020, arXiv:2002.05202, eq. 6), or "gelu_tanh". The first
            has its gate before its value, the second after it.
        width: Input and output width.
        hidden: Width between the two layers.
        bias: Whether the linear layers carry biases.
    """

    def __init__(self, kind: str, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        if kind not in MLPS:
            raise ValueError(f"unknown mlp {kind!r}; choose one of {list(MLPS)}")
        self.kind = kind
        # one matrix product for the gate and the value
        self.up = nn.Linear(width, hidden if kind == "gelu_tanh" else 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def gated(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """What the second layer takes after a gate, where there is no graph: [..., M]."""
        if takes(x, self.up):
            return kernels.linear(self.up, x, norm=norm, act=self.kind)
        if norm is not None:
            x = norm(x)
        if self.kind == "swiglu":
            gate, value = self.up(x).chunk(2, dim=-1)
            return F.silu(gate, inplace=True).mul_(value)
        biases = (None, None) if self.up.bias is None else self.up.bias.chunk(2)
        # halves that lie apart are faster to gate
        value, gate = map(F.linear, (x, x), self.up.weight.chunk(2), biases)
        torch.ops.aten.gelu_(gate)
        return gate.mul_(value)

    def forward(self, x: Tensor, norm: Norm | None = None, onto: Tensor | None = None) -> Tensor:
        """[..., D] to [..., D]: `onto` plus what the layers make of the normalised `x`."""
        if takes_half(x, self.up, self.down):
            return kernels.linear(self.up, x, norm=norm, act=self.kind, down=self.down, onto=onto)
        out = self._of(x if norm is None else norm(x))
        return out if onto is None else add(onto, out)

    def _of(self, x: Tensor) -> Tensor:
        if needs_graph(x):
            return self.down(self._activated(self.up(x)))  # type: ignore[no-any-return]
        if self.kind != "gelu_tanh":
            return linear(self.down, self.gated(x))
        some = max(1, HELD // (self.up.out_features * x.element_size()))
        if x.ndim < 2 or x.shape[-2] <= some:
            return linear(self.down, linear(self.up, x, gelu=True))
        out = torch.empty_like(x)
        for part, place in zip(torch.split(x, some, -2), torch.split(out, some, -2), strict=True):
            place.copy_(linear(self.down, linear(self.up, part, gelu=True)))
        return out

    def _activated(self, hidden: Tensor) -> Tensor:
        if self.kind == "gelu_tanh":
            return F.gelu(hidden, approximate="tanh")
        first, second = hidden.chunk(2, dim=-1)
        return F.silu(first) * second if self.kind == "swiglu" else first * F.gelu(second)
