"""BLIP-3-Video: all frames of a video in 16 to 128 tokens.

Source: Ryoo et al. 2024, arXiv:2410.16267, and its released code, whose names of weights are kept.

Shape suffixes: B batch, T frames, N tokens of a frame, S tokens that come out, M tokens of the
memory, G groups, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionPool(nn.Module):
    """Learned attention pooling, over all frames at once or frame by frame.

    Args:
        dim: Width of the tokens.
        num_target_tokens: Tokens that come out.
    """

    def __init__(self, dim: int, num_target_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * num_target_tokens, bias=False),
            nn.GELU(),
            nn.Linear(2 * num_target_tokens, num_target_tokens, bias=False),
        )

    def weights(self, x: Tensor) -> Tensor:
        """[..., S, N] weights, which sum to 1 over the tokens."""
        weights: Tensor = self.mlp(self.norm(x)).transpose(-1, -2).softmax(-1)
        return weights

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, D] to [..., S, D]."""
        return self.weights(x) @ x


class Attention(nn.Module):
    """Self-attention after a norm, without biases and without an output projection.

    Args:
        dim: Width of the tokens.
        heads: Heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, D] to [..., N, D]."""
        x = self.norm(x)
        q, k, v = (
            to(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)


class Layer(nn.Sequential):
    """Attention and an MLP, each after a norm and with a residual.

    Args:
        dim: Width of the tokens.
        heads: Of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim, bias=False),
            nn.GELU(),
            nn.Linear(4 * dim, dim, bias=False),
        )
        super().__init__(Attention(dim, heads), mlp)

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, D] to [..., N, D]."""
        for part in self:
            x = x + part(x)
        return x


class Unit(nn.Module):
    """What happens at one step: read, process, write, and give out.

    Args:
        dim: Width of the tokens.
        memory_size: Tokens of the memory.
        process_size: Tokens that are processed; None to process all that is read.
        output_size: Tokens that come out; None for none.
        layers: Of attention and MLP.
        heads: Of the attention.
    """

    def __init__(
        self,
        dim: int,
        memory_size: int,
        process_size: int | None,
        output_size: int | None,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        if process_size is not None:
            self.read_layer = AttentionPool(dim, process_size)
        self.process_layers = nn.Sequential(*[Layer(dim, heads) for _ in range(layers)])
        self.write_layer = AttentionPool(dim, memory_size)
        if output_size is not None:
            self.output_layer = AttentionPool(dim, output_size)

    def forward(self, memory: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., M, D] memory and [..., N, D] tokens to the new memory and what was processed."""
        z = torch.cat([memory, x], dim=-2)
        if hasattr(self, "read_layer"):
            z = self.read_layer(z)
        z = self.process_layers(z)
        return self.write_layer(torch.cat([memory, z], dim=-2)), z


class SinePositions(nn.Module):
    """Sine and cosine of the frame number, in turns.

    Args:
        dim: Width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, dim, 2) / dim))

    def forward(self, frames: int) -> Tensor:
        """[T, D]."""
        assert isinstance(self.inv_freq, Tensor)
        angles = torch.arange(frames, device=self.inv_freq.device)[:, None] * self.inv_freq
        waves: Tensor = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return waves


class VideoTuringMachine(nn.Module):
    """Their Token Turing Machine.

    Unlike the first one, the memory is learned, and what is written is learned from the memory and
    what was processed, without the input.

    Args:
        dim: Width of the tokens.
        memory_size: Tokens of the memory.
        process_size: Tokens that are processed at each step.
        output_size: Tokens that come out at each step.
        result: "concat" for the outputs of all steps, "final" for that of the last one, "memory"
            for the memory at the end.
        positions: Add frame positions to the tokens.
        layers: Of attention and MLP.
        heads: Of the attention.
    """

    def __init__(
        self,
        dim: int,
        memory_size: int = 128,
        process_size: int = 128,
        output_size: int = 16,
        result: str = "concat",
        positions: bool = False,
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if result not in ("concat", "final", "memory"):
            raise ValueError(f"result={result!r}; choose of 'concat', 'final', 'memory'")
        self.result = result
        self.initial_memory = nn.Parameter(torch.randn(memory_size, dim) * 0.02)
        self.pos_emb = SinePositions(dim) if positions else None
        self.ttm_unit = Unit(dim, memory_size, process_size, output_size, layers, heads)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """[B, T, N, D] to [B, S, D]."""
        if self.pos_emb is not None:
            x_BTND = x_BTND + self.pos_emb(x_BTND.shape[1])[:, None].to(x_BTND)
        memory = self.initial_memory.expand(len(x_BTND), -1, -1)
        outs = []
        for x in x_BTND.unbind(1):
            memory, z = self.ttm_unit(memory, x)
            outs.append(self.ttm_unit.output_layer(z))
        if self.result == "memory":
            outs = [memory]
        return torch.cat(outs if self.result == "concat" else outs[-1:], dim=1)


class GroupedTuringMachine(nn.Module):
    """A small memory for each place of a frame; the result is the mean of each.

    Args:
        dim: Width of the tokens.
        num_groups: Tokens of a frame.
        memory_size: Tokens of each memory.
        layers: Of attention and MLP.
        heads: Of the attention.
    """

    def __init__(
        self, dim: int, num_groups: int = 128, memory_size: int = 4, layers: int = 1, heads: int = 4
    ) -> None:
        super().__init__()
        self.initial_memory = nn.Parameter(torch.randn(num_groups, memory_size, dim) * 0.02)
        self.pos_emb = SinePositions(dim)
        self.ttm_unit = Unit(dim, memory_size, None, None, layers, heads)

    def forward(self, x_BTGD: Tensor) -> Tensor:
        """[B, T, G, D] to [B, G, D]."""
        x_BTGD = x_BTGD + self.pos_emb(x_BTGD.shape[1])[:, None].to(x_BTGD)
        memory = self.initial_memory.expand(len(x_BTGD), -1, -1, -1)
        for x in x_BTGD.unbind(1):
            memory, _ = self.ttm_unit(memory, x[:, :, None])
        return memory.mean(2)
