"""Train the 3D stage alone: `python -m tools.train_shapes`; run again to go on where it stopped.

Starts from the shipped `tiny-kl` and trains on the shapes of the corpus (`python -m tools.corpus
--meshes`): only the embedding and the heads of 3D assets, so that pictures and videos keep their
tokens to the bit; with --trunk-lr also the rest, with clips and pictures in between so that they
are not forgotten. Longer curricula are those of `omnitok train`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from omnitok.checkpoint import load_checkpoint, save_checkpoint
from omnitok.hub import find_weights
from omnitok.losses.pixel import rmse_per_clip
from omnitok.model import Autoencoder
from omnitok.pixels import to_float
from omnitok.planes import PlaneResult
from omnitok.planes_start import start_planes
from omnitok.presets import preset
from shapes.datasets import Prepared, ShapeSampler

WEIGHTS = {"inside": 1.0, "overlap": 0.3, "color": 0.3, "roughness": 1e-5, "kl": 1e-6}
SCORED = 10_000  # queries of a held-out shape
CLIP = (4, 9, 128)  # clips of a batch, their frames and the side of their frames


def shape_files(corpus: Path, split: str) -> list[Path]:
    """Prepared shapes of a split."""
    entries = json.loads((corpus / split / "shapes.json").read_text())
    return [corpus / split / entry["file"] for entry in entries]


def total_loss(result: PlaneResult) -> Tensor:
    """The number that is minimised."""
    terms = {**result.losses, **result.quantized.losses}
    return torch.stack([terms[name] * w for name, w in WEIGHTS.items() if name in terms]).sum()


@torch.no_grad()
def mean_iou(model: Autoencoder, files: list[Path]) -> float:
    """Mean over shapes of the IoU at points spread evenly over the box."""
    assert model.planes is not None
    scores = []
    for path in files:
        shape = Prepared.load(path)
        even = torch.nonzero(shape.weights == 1)[:SCORED, 0]
        with torch.autocast("cpu", torch.bfloat16):
            z = model.quantizer(model.encode_planes(shape.raster.planes()[None])).z_q
            field, _ = model.planes.field_at(
                model.decode_planes(z), shape.points[even].float()[None]
            )
        found, truth = field[0] > 0, shape.inside[even]
        scores.append(float((found & truth).sum() / (found | truth).sum().clamp_min(1)))
    return sum(scores) / len(scores)


def first_model(start: str, name: str) -> Autoencoder:
    """The preset with the trunk of other weights; only the 3D parts are fresh."""
    torch.manual_seed(0)
    model = Autoencoder(preset(name))
    if start == "none":
        return model
    trained, _ = load_checkpoint(find_weights(start))
    missing, unexpected = model.load_state_dict(trained.state_dict(), strict=False)
    if unexpected or any(not key.startswith("planes.") for key in missing):
        raise ValueError(f"the weights {start} do not fit {name}: {[*missing, *unexpected][:3]}")
    return model


class Clips:
    """Random crops of the corpus: pictures and videos by turns."""

    def __init__(self, corpus: Path) -> None:
        self._kinds = []
        for kind in ("videos", "images"):
            data = np.memmap(corpus / "train" / f"{kind}.bin", np.uint8, "r")
            self._kinds.append((data, json.loads((corpus / "train" / f"{kind}.json").read_text())))

    def batch(self, step: int) -> Tensor:
        """[B, 3, T, H, W] in [-1, 1]; every fourth batch is of pictures."""
        rng = np.random.default_rng([1, step])
        still = step % 4 == 3
        data, entries = self._kinds[still]
        count, frames, side = (16, 1, CLIP[2]) if still else CLIP
        clips: list[np.ndarray] = []
        while len(clips) < count:
            entry = entries[rng.integers(len(entries))]
            shape = (entry.get("frames", 1), entry["height"], entry["width"], 3)
            room = [n - m for n, m in zip(shape, (frames, side, side), strict=False)]
            if min(room) < 0:
                continue
            t, y, x = (int(rng.integers(n + 1)) for n in room)
            at = entry["offset"]
            clip = data[at : at + int(np.prod(shape))].reshape(shape)
            clips.append(np.array(clip[t : t + frames, y : y + side, x : x + side]))
        return to_float(torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3), torch.float32)


def clip_loss(model: Autoencoder, clips: Tensor) -> Tensor:
    """The loss that pictures and videos were trained with."""
    with torch.autocast("cpu", torch.bfloat16):
        result = model(clips)
    kl = result.quantized.losses.get("kl", clips.new_zeros(()))
    loss: Tensor = rmse_per_clip(result.recon, clips) + WEIGHTS["kl"] * kl
    return loss


def rasters(files: list[Path], most: int = 160) -> list[Tensor]:
    """Rasters of some training shapes, for the first weights."""
    every = max(1, len(files) // most)
    return [Prepared.load(path).raster.planes()[None] for path in files[::every]]


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path("corpus"))
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-3d"))
    parser.add_argument("--preset", default="tiny-3d")
    parser.add_argument("--start", default="tiny-kl")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the 3D parts")
    parser.add_argument("--trunk-lr", type=float, default=0.0, help="of all else; 0 freezes it")
    parser.add_argument("--replay", type=int, default=4, help="every nth step is of clips")
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--eval-every", type=int, default=200)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files, held_out = (shape_files(args.corpus, split) for split in ("train", "val"))
    sampler = ShapeSampler(files, batch=args.batch, points=args.points)
    model = first_model(args.start, args.preset).train()
    state_file = args.out / "state.pt"
    if not state_file.exists():
        start_planes(model, rasters(files))
        print(f"step 0: IoU {mean_iou(model.eval(), held_out):.4f}", flush=True)
        model.train()
    if not args.trunk_lr:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("planes." in name)
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if ("planes." in name) == own],
            "peak": rate,
        }
        for own, rate in ((True, args.lr), (False, args.trunk_lr))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0)
    clips = Clips(args.corpus) if args.trunk_lr else None
    average = AveragedModel(
        model,
        multi_avg_fn=get_ema_multi_avg_fn(0.99),  # type: ignore[no-untyped-call]
    )
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step = state["step"]
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(state[name])
    for group, rate in zip(optimizer.param_groups, (args.lr, args.trunk_lr), strict=True):
        group["peak"] = rate
    started, resumed = time.monotonic(), step
    while step < args.steps and time.monotonic() - started < args.seconds:
        up, down = (step - resumed + 1) / args.warmup, 2 * (args.steps - step) / args.steps
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, up, down)
        terms: list[float] = []
        if args.trunk_lr and step % args.replay == args.replay - 1:
            assert clips is not None
            loss = clip_loss(model, clips.batch(step // args.replay))
        else:
            batch = sampler.batch(step)
            with torch.autocast("cpu", torch.bfloat16):
                result = model.forward_planes(batch)
            loss = total_loss(result)
            terms = [round(term.item(), 5) for term in result.losses.values()]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        row = [step, round(time.monotonic() - started, 1), round(loss.item(), 5)]
        row += [round(norm.item(), 3), *terms]
        if step % args.eval_every == 0 or step == args.steps:
            averaged: Autoencoder = average.module.eval()  # type: ignore[assignment]
            row.append(round(mean_iou(averaged, held_out), 4))
            state = {"step": step, "model": model.state_dict(), "average": average.state_dict()}
            torch.save({**state, "optimizer": optimizer.state_dict()}, f"{state_file}.tmp")
            os.replace(f"{state_file}.tmp", state_file)
            save_checkpoint(args.out / "weights.safetensors", averaged)
        with (args.out / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow(row)


if __name__ == "__main__":
    main()
