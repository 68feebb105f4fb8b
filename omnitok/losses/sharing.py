"""What losses need where processes share a batch, so that they are those of one process.

Shape suffixes: N samples, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over processes, without gradient."""
    values = values.detach()
    if processes() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= processes()
    return values


class Draws:
    """Random numbers for the samples of a batch: a function of its seed and of the sample alone.

    Args:
        seed: Of the batch; None takes one from torch's own generator when it is first needed.
        part: Which of the equal parts of the batch is here.
    """

    def __init__(self, seed: int | None = None, part: int = 0) -> None:
        self._seed, self._part, self._times = seed, part, 0

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """[N, ...] from N(0, 1), others each time; the first axis is that of the samples."""
        if self._seed is None:
            self._seed = int(torch.randint(1 << 62, ()))
        self._times += 1
        numbers = torch.empty(shape, device=device)
        # tensors without values have no generators
        generator = torch.Generator("cpu" if device.type == "meta" else device)
        for n, row in enumerate(numbers, self._part * len(numbers)):
            generator.manual_seed(hash((self._seed, self._times, n)) % 2**63)
            row.normal_(generator=generator)
        return numbers


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm of [N, C, ...] over the samples of all processes, on any device."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same shape."""
        if not self.training or processes() == 1:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        total = processes() * x.numel() / x.shape[1]
        mean_C = all_reduce(x.sum(axes)) / total  # type: ignore[no-untyped-call]
        centred = x - mean_C.reshape(shape)
        variance_C = all_reduce(centred.square().sum(axes)) / total  # type: ignore[no-untyped-call]
        with torch.no_grad():
            own, unbiased_C = self.momentum or 0.0, variance_C * total / (total - 1)
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean_C, own)
            self.get_buffer("running_var").lerp_(unbiased_C, own)
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        scaled: Tensor = centred * scale_C.reshape(shape) + self.bias.reshape(shape)
        return scaled
