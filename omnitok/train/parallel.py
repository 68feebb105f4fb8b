"""Several processes as one: who we are, how a model is spread, how numbers come together.

`torchrun` starts the processes; on one process everything here is the identity.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        device: Where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether it holds on any process."""
        if self.size == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def union(self, values: dict[str, str]) -> dict[str, str]:
        """What the processes hold together."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values)
        return {key: value for part in parts for key, value in part.items()}

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(device: str | None = None) -> World:
    """Join the processes that `torchrun` started, or be the only one.

    Args:
        device: Where to compute; None is this process's GPU, or the CPU where there is none.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device is None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(rank, size, place)


def leave() -> None:
    """The end of what `join` began, once no trainer is in use any more.

    A wrapped model that lived on would keep the group's threads, which abort an interpreter that
    ends.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def spread(model: nn.Module, blocks: list[nn.Module], world: World, shard: bool) -> nn.Module:
    """What to call instead of the model: itself, or it wrapped for many processes.

    Args:
        model: Equal on every process. Sharding changes it in place.
        blocks: Parts to shard one by one.
        world: The processes.
        shard: Spread weights (FSDP2) instead of copying them (DDP).
    """
    if world.size == 1:
        return model
    if not shard:
        # a batch of images does not touch what only videos need
        return DistributedDataParallel(model, find_unused_parameters=True)
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A full copy on the CPU of a tensor that may be sharded; every process must ask."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().clone()


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Write a full tensor into one that may be sharded."""
    value = value.to(target.device, target.dtype)
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(value, target.device_mesh, target.placements))
    else:
        target.copy_(value)
