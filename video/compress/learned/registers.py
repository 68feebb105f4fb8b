"""Victor: registers that take over from all visual tokens after the first layers.

Source: Wen et al. 2024, arXiv:2410.14072. Written from the paper alone, and no parity is promised.

Shape suffixes: B batch, N visual tokens, S registers, L places, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Registers(nn.Module):
    """Learned tokens after the visual ones; past layer `layers` they stand for all of them.

    Args:
        width: Of the language model.
        num_registers: Registers.
        layers: Layers that see the visual tokens.
    """

    def __init__(self, width: int, num_registers: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.layers = layers
        self.tokens = nn.Parameter(torch.randn(num_registers, width) * 0.02)

    def append(self, visual_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N + S, D]."""
        return torch.cat(
            [visual_BND, self.tokens.to(visual_BND).expand(len(visual_BND), -1, -1)], 1
        )

    def discard(self, x_BLD: Tensor, start: int, num_visual: int) -> Tensor:
        """Drop the visual tokens at places `start` .. `start + num_visual`; registers stay."""
        return torch.cat([x_BLD[:, :start], x_BLD[:, start + num_visual :]], dim=1)

    def forward(
        self,
        x_BLD: Tensor,
        start: int,
        num_visual: int,
        blocks: Iterable[Callable[[Tensor], Tensor]],
    ) -> Tensor:
        """Run decoder blocks over [B, L, D] that holds visual tokens and then registers.

        Returns:
            [B, L - num_visual, D].
        """
        gone = False
        for number, block in enumerate(blocks):
            if number == self.layers:
                x_BLD, gone = self.discard(x_BLD, start, num_visual), True
            x_BLD = block(x_BLD)
        return x_BLD if gone else self.discard(x_BLD, start, num_visual)
