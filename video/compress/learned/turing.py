"""Token Turing Machine: a memory of tokens that reads a video step by step.

Source: Ryoo et al. 2023, arXiv:2211.09119, and its released code.

Shape suffixes: B batch, T steps, N tokens of a step, M tokens of the memory, S tokens processed,
W writes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from video.compress.learned.token_learner import EPS, Masking, TokenLearner


class AddEraseWrite(nn.Module):
    """Write to a memory as a neural Turing machine does.

    The released code adds the mean of `1 - weight * new` and does not bound what it erases; so does
    this.

    Args:
        width: Of the tokens.
        num_inputs: Tokens that are written.
        num_writes: Writes.
        hidden: Of the MLPs.
    """

    def __init__(self, width: int, num_inputs: int, num_writes: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm_where = nn.LayerNorm(width, eps=EPS)
        self.where = Masking(width, hidden, num_writes)
        self.norm_erase = nn.LayerNorm(width, eps=EPS)
        self.erase_tokens = Masking(num_inputs, hidden, num_writes)
        self.erase = Masking(width, hidden, width)
        self.norm_add = nn.LayerNorm(width, eps=EPS)
        self.add_tokens = Masking(num_inputs, hidden, num_writes)
        self.add = Masking(width, hidden, width)

    def forward(self, memory_BMD: Tensor, x_BND: Tensor) -> Tensor:
        """[B, M, D] memory and [B, N, D] what is written to [B, M, D]."""
        where = self.where(self.norm_where(memory_BMD)).transpose(1, 2).softmax(-1)[..., None]
        erase = self.erase_tokens(self.norm_erase(x_BND).transpose(1, 2)).transpose(1, 2)
        erase = self.erase(erase)[:, :, None]
        add = self.add_tokens(self.norm_add(x_BND).transpose(1, 2)).transpose(1, 2)
        add = self.add(add)[:, :, None]
        kept = memory_BMD * (1 - where * erase).prod(1)
        y: Tensor = kept + (1 - where * add).mean(1)
        return y


class Processor(nn.Module):
    """Layers of norm and MLP, without residuals, and a last norm.

    Args:
        width: Of the tokens.
        hidden: Of the MLPs.
        layers: How many.
    """

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for _ in range(layers + 1))
        self.mlps = nn.ModuleList(Masking(width, hidden, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        for norm, mlp in zip(self.norms, self.mlps, strict=False):
            x = mlp(norm(x))
        y: Tensor = self.norms[-1](x)
        return y


class TokenTuringMachine(nn.Module):
    """Read, process, write, for every step of a video; the memory starts as zeros.

    Args:
        width: Of the tokens.
        memory_size: Tokens of the memory.
        process_size: Tokens that are processed, and come out, at each step.
        num_inputs: Tokens of a step; only needed to write by "add_erase".
        process: What processes them; `layers` of norm and MLP by default.
        write: "learner" (the memory is learned anew from all there is) or "add_erase".
        mlp_hidden: Of the default processor.
        layers: Of the default processor.
    """

    def __init__(
        self,
        width: int,
        memory_size: int,
        process_size: int,
        num_inputs: int | None = None,
        process: nn.Module | None = None,
        write: str = "learner",
        mlp_hidden: int = 512,
        layers: int = 1,
    ) -> None:
        super().__init__()
        if write not in ("learner", "add_erase"):
            raise ValueError(f"write={write!r}; choose of 'learner', 'add_erase'")
        if write == "add_erase" and num_inputs is None:
            raise ValueError("write='add_erase' needs num_inputs, the tokens of a step")
        self.memory_size = memory_size
        self.read = TokenLearner(width, process_size)
        self.process = Processor(width, mlp_hidden, layers) if process is None else process
        self.write: nn.Module = (
            TokenLearner(width, memory_size)
            if write == "learner"
            else AddEraseWrite(width, process_size + (num_inputs or 0), memory_size)
        )

    def step(self, memory_BMD: Tensor, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the new memory [B, M, D], and what comes out [B, S, D]."""
        read = torch.cat([memory_BMD, x_BND], dim=1)
        out = self.process(self.read(read))
        if isinstance(self.write, AddEraseWrite):
            return self.write(memory_BMD, torch.cat([x_BND, out], dim=1)), out
        return self.write(torch.cat([read, out], dim=1)), out

    def forward(self, x_BTND: Tensor) -> Tensor:
        """[B, T, N, D] to [B, T, S, D]."""
        memory = x_BTND.new_zeros(len(x_BTND), self.memory_size, x_BTND.shape[-1])
        outs = []
        for x_BND in x_BTND.unbind(1):
            memory, out = self.step(memory, x_BND)
            outs.append(out)
        return torch.stack(outs, dim=1)
