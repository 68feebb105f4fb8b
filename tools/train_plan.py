"""What a run would do, before it does it: files, tokens, parameters, memory, time."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from omnitok.train.config import SourceConfig, TrainConfig
from omnitok.train.network import Network, Objectives, run_batch
from omnitok.train.sampler import Item, Sampler
from omnitok.train.stages import StageModels


def plan_run(
    config: TrainConfig,
    items: Mapping[str, Mapping[str, Sequence[Item]]],
    device: torch.device,
) -> dict[str, Any]:
    """Facts about a run. Times are of one real batch of every source, here, on one process.

    Raises:
        ConfigError: The run would be refused.
    """
    sampler = Sampler(config, items)
    objectives = Objectives(config.stages, device)
    models = StageModels(config, sampler, device)
    if config.start_from is not None:
        models.first()
    stages, first = [], 0
    for number, stage in enumerate(config.stages):
        model = models.fresh(number)
        network = Network(model)
        rows: list[dict[str, Any]] = []
        for place, source in enumerate(stage.mix):
            numbers = range(first, first + stage.steps * stage.accumulate)
            drawn = next((n for n in numbers if sampler.choose(n)[0] == place), None)
            if drawn is None:
                continue
            size = sampler.choose(drawn)[2]
            losses = objectives.of(stage, source)
            for _ in range(2):  # the first time pays for buffers
                batch = sampler[drawn]
                begin = time.monotonic()
                result, _ = run_batch(network, model, batch, losses, device, 0, config.autocast)
                result.total.backward()  # type: ignore[no-untyped-call]
                seconds = time.monotonic() - begin
            rows.append(
                {
                    "kind": source.kind,
                    "share": source.weight / sum(s.weight for s in stage.mix),
                    "clips": source.batch_of(size),
                    "size": list(size),
                    "tokens": _tokens(model, source, size),
                    "seconds": round(seconds, 3),
                }
            )
        each = stage.accumulate * sum(r["share"] * r["seconds"] for r in rows)
        stages.append(
            {
                "name": stage.name,
                "steps": stage.steps,
                "batches": stage.accumulate,
                "inflate": stage.inflate,
                "sources": rows,
                "seconds": round(stage.steps * each),
            }
        )
        first += stage.steps * stage.accumulate
    parameters = sum(p.numel() for p in model.parameters())
    seconds = sum(s["seconds"] for s in stages)
    return {
        "files": {
            name: {kind: len(files) for kind, files in kinds.items()}
            for name, kinds in items.items()
        },
        "parameters": parameters,
        "state_bytes": 20 * parameters,  # weights, gradients, two moments, average: 4 bytes each
        "peak_bytes": _peak_bytes(device),
        "device": str(device),
        "stages": stages,
        "steps": config.steps,
        "seconds": seconds if config.seconds is None else min(seconds, round(config.seconds)),
    }


def _peak_bytes(device: torch.device) -> int:
    """The most memory that this process, or its GPU, has needed."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _tokens(model: Any, source: SourceConfig, size: tuple[int, int, int]) -> int:
    """Tokens of a batch."""
    if source.kind == "meshes":
        return source.batch_of(size) * 3 * int(model.config.planes.side) ** 2
    t, h, w = model.config.patch
    groups = 1 + math.ceil((size[0] - 1) / t)
    return int(source.batch_of(size) * groups * -(-size[1] // h) * -(-size[2] // w))


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan for a person."""
    lines = [
        f"data {name}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        for name, kinds in plan["files"].items()
    ]
    lines.append(
        f"model: {plan['parameters'] / 1e6:.1f} M parameters; weights, gradients, moments and "
        f"average take {plan['state_bytes'] / 2**20:.0f} MiB; trying every batch once took "
        f"{plan['peak_bytes'] / 2**20:.0f} MiB"
    )
    for stage in plan["stages"]:
        lines.append(
            f"stage {stage['name']!r}: {stage['steps']} steps of {stage['batches']} batches, about "
            f"{stage['seconds'] / 60:.1f} min"
        )
        if stage["inflate"] is not None:
            lines.append(
                "  patches of moving frames begin with what still ones have learned, "
                f"{stage['inflate']!r}; images come back as before"
            )
        lines += [
            f"  {100 * row['share']:3.0f} % {row['kind']}: {row['clips']} clips of "
            f"{'x'.join(map(str, row['size']))}, {row['tokens']} tokens, {row['seconds']} s"
            for row in stage["sources"]
        ]
    lines.append(
        f"{plan['steps']} steps, about {plan['seconds'] / 60:.0f} min on {plan['device']} as it is "
        "now, one process, without compile"
    )
    return lines
