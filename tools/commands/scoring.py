"""Scores of tokenizers on clips, and the baselines of equal size that they have to beat."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands.errors import InputError
from tools.commands.planning import is_media
from tools.commands.stopping import check

if TYPE_CHECKING:
    from torch import Tensor

    from omnitok import Tokenizer
    from omnitok.metrics.baselines import LinearTokenizer
    from video.datasets import ClipSampler

DRAWS = 48  # batches of the training mix that baselines are fitted to
SETS = ("video", "image")
Coded = tuple["Tensor", int, float]  # frames that came back, tokens, bits in all


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a clip, or a set of clips on average, comes back.

    Attributes:
        psnr: Decibels of all frames of a clip together.
        frame_psnr: Mean over frames of their decibels.
        ssim: Mean over frames.
        flicker: Mean absolute difference of the frame-to-frame changes, in 8-bit steps.
        bits_per_pixel: Of what is stored.
        tokens: Of a clip; 0 if there are none.
    """

    psnr: float
    frame_psnr: float
    ssim: float
    flicker: float
    bits_per_pixel: float
    tokens: float


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to score: uint8 [T, 3, H, W] frames under a name."""

    name: str
    frames: Tensor


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of one method on one set.

    Attributes:
        data: "video" or "image".
        method: Tokenizer or baseline.
        mean: Over the items.
        items: Score of each item, by its name.
        gain: Decibels over the baseline, if this is a tokenizer that has one.
    """

    data: str
    method: str
    mean: Score
    items: dict[str, Score]
    gain: float | None = None


def score(frames: Tensor, recon: Tensor, tokens: int, bits: float) -> Score:
    """Compare uint8 [T, 3, H, W] frames with what came back from `bits` bits in `tokens` tokens."""
    from omnitok.metrics.pixel import MAX_PSNR, flicker, psnr, ssim

    error = float((recon.float() - frames.float()).square().mean())
    return Score(
        psnr=10 * math.log10(255**2 / error) if error else MAX_PSNR,
        frame_psnr=float(psnr(recon, frames).mean()),
        ssim=float(ssim(recon, frames).mean()),
        flicker=flicker(recon, frames),
        bits_per_pixel=bits / (len(frames) * math.prod(frames.shape[2:])),
        tokens=tokens,
    )


def score_all(
    data: str, method: str, items: Sequence[Item], code: Callable[[Item], Coded]
) -> Result:
    """Score a method on a set of clips."""
    scores = {}
    for item in items:
        check()
        scores[item.name] = score(item.frames, *code(item))
    names = [field.name for field in fields(Score)]
    means = {name: sum(getattr(s, name) for s in scores.values()) / len(scores) for name in names}
    return Result(data=data, method=method, mean=Score(**means), items=scores)


def held_out(corpus: Path, frames: int, size: int) -> dict[str, list[Item]]:
    """The clips and images of a corpus that training never saw."""
    from video.datasets import Corpus, centre_clip

    split = Corpus(corpus / "val")
    sets = {}
    for data, pixels in zip(SETS, (split.videos, split.images), strict=True):
        names = [e["key"] for e in json.loads((corpus / "val" / f"{data}s.json").read_text())]
        clips = [centre_clip(item, frames, size).transpose(0, 1) for item in pixels]
        sets[data] = [Item(name=n, frames=c) for n, c in zip(names, clips, strict=True)]
    return sets


def from_folder(folder: str, frames: int, size: int) -> dict[str, list[Item]]:
    """The videos and images of a folder and its subfolders."""
    from video import open_video
    from video.datasets import centre_clip

    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    sets: dict[str, list[Item]] = {data: [] for data in SETS}
    for path in sorted(filter(is_media, paths)):
        check()
        with open_video(path, size=size, chunk=frames) as reader:
            pixels, _ = next(iter(reader))
        clip = centre_clip(pixels.permute(0, 2, 3, 1).numpy(), frames, size).transpose(0, 1)
        sets[SETS[len(clip) == 1]].append(Item(name=os.path.relpath(path, folder), frames=clip))
    if not any(sets.values()):
        raise InputError(f"{folder} holds no videos or images; name a folder that does")
    return sets


class Baselines:
    """Linear tokenizers fitted to the training split of a corpus, each once.

    Args:
        corpus: The corpus folder.
    """

    def __init__(self, corpus: Path) -> None:
        self._sampler = training_sampler(corpus)
        self._fitted: dict[tuple[Any, ...], LinearTokenizer] = {}

    def of(self, tok: Tokenizer) -> tuple[str, Callable[[Item], Coded]]:
        """Name and function of the one with as many numbers, or bits, as the tokenizer has."""
        import torch

        from omnitok.groups import num_groups
        from omnitok.metrics.baselines import LinearTokenizer
        from omnitok.nn.patch import grid_of
        from omnitok.pixels import to_float, to_uint8

        rank, bits = tok.model.quantizer.dim, None
        name = f"PCA, {rank} numbers"
        if tok.codebook_size is not None:
            bits = math.ceil(math.log2(tok.codebook_size) * tok.model.quantizer.num_codebooks)
            name = f"PCA quantized to {bits} bits"
        key = (name, tok.patch)
        if key not in self._fitted:
            clips = (to_float(self._sampler.draw(n), torch.float32) for n in range(DRAWS))
            self._fitted[key] = LinearTokenizer.fit(clips, tok.patch, rank, bits)
        linear = self._fitted[key]

        def code(item: Item) -> Coded:
            frames = item.frames
            recon = linear.reconstruct(to_float(frames.transpose(0, 1)[None], torch.float32))
            size = (frames.shape[2], frames.shape[3])
            tokens = num_groups(len(frames), tok.patch[0]) * math.prod(grid_of(size, tok.patch))
            return to_uint8(recon[0]).transpose(0, 1), tokens, tokens * (bits or 32 * rank)

        return name, code

    def facts(self) -> list[dict[str, Any]]:
        """What they were fitted to."""
        return [
            {
                "name": name,
                "still_patches": linear.num_patches[0],
                "moving_patches": linear.num_patches[1],
                "seed": self._sampler.config.seed,
            }
            for (name, _), linear in self._fitted.items()
        ]


def training_sampler(corpus: Path) -> ClipSampler:
    """Batches of the training split, mixed as in the second stage of training."""
    from tools.train_weights import recipe
    from video.datasets import ClipSampler, Corpus

    config = recipe("tiny")
    return ClipSampler(Corpus(corpus / "train"), replace(config, stages=config.stages[-1:]))


def codebook_use(tok: Tokenizer, corpus: Path, tokens: int) -> dict[str, Any]:
    """How evenly a discrete tokenizer uses its codes on at least `tokens` training tokens."""
    import torch

    from omnitok.metrics.codebook import CodebookStats
    from omnitok.pixels import to_float

    assert tok.codebook_size is not None
    stats = CodebookStats(tok.codebook_size, tok.model.quantizer.num_codebooks)
    sampler, step = training_sampler(corpus), 0
    while stats.num_tokens < tokens:
        check()
        clips = to_float(sampler.draw(step % sampler.config.steps), torch.float32)
        stats.add(tok.quantize(tok.encode(clips)))
        step += 1
    return asdict(stats.usage())


def _x264(result: Result) -> Callable[[Item], Coded]:
    """H.264 with at most as many bytes for each item as there were in a result."""
    from tools.commands import x264

    def code(item: Item) -> Coded:
        pixels = item.frames.numel() / 3
        data = x264.within(item.frames, result.items[item.name].bits_per_pixel * pixels / 8)
        return x264.decode(data), 0, 8 * len(data)

    return code


def evaluate(
    sets: dict[str, list[Item]],
    models: dict[str, Tokenizer],
    baselines: Baselines | None,
    note: Callable[[str], None],
) -> list[Result]:
    """Scores of all methods on all sets, a tokenizer's baseline before it."""
    results: dict[tuple[str, str], Result] = {}
    for data, items in ((data, items) for data, items in sets.items() if items):
        for name, tok in models.items():

            def code(item: Item, tok: Tokenizer = tok) -> Coded:
                tokens = tok.tokenize(item.frames)
                bits = tokens.num_tokens * tokens.bits_per_token
                return tok.detokenize(tokens), tokens.num_tokens, bits

            base = None
            if baselines is not None:
                base_name, base_code = baselines.of(tok)
                if (data, base_name) not in results:
                    note(f"scoring {base_name}: {len(items)} {data}s")
                    results[data, base_name] = score_all(data, base_name, items, base_code)
                base = results[data, base_name].mean.psnr
            note(f"scoring {name}: {len(items)} {data}s")
            result = score_all(data, name, items, code)
            gain = None if base is None else result.mean.psnr - base
            results[data, name] = replace(result, gain=gain)
            if tok.codebook_size is not None:
                codec = f"x264, bytes of {name}"
                note(f"scoring {codec}: {len(items)} {data}s")
                results[data, codec] = score_all(data, codec, items, _x264(result))
    return list(results.values())
