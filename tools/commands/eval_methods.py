"""What is compared: tokenizers, and what they have to beat at as many numbers or bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands import media_codecs
from tools.commands.eval_data import Item
from tools.commands.scoring import Coded
from tools.commands.stopping import check

if TYPE_CHECKING:
    from torch import Tensor

    from omnitok import Tokenizer
    from omnitok.metrics.baselines import LinearTokenizer

DRAWS = 48  # batches of training clips that linear tokenizers are fitted to
SIDE = 128  # pixels of their crops
MIX = (
    ("images", 0.2, 32, 1),
    ("pans", 0.35, 6, 17),
    ("videos", 0.65, 6, 17),
)  # weight, clips, frames
SEED, ENDLESS = 0, 1 << 40


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Attributes:
        name: Of the row.
        model: Of the tokenizer that it is, or is compared with.
        kinds: "video", "image" or both.
        code: Codes an item; given the bits that the tokenizers before it took.
        base: Name of the method it has to beat, if any.
        codebook: (codes, codebooks) of a discrete tokenizer.
    """

    name: str
    model: str
    kinds: tuple[str, ...] = ("video", "image")
    code: Callable[[Item, Mapping[str, float]], Coded]
    base: str | None = None
    codebook: tuple[int, int] | None = None


def methods(
    models: Mapping[str, Tokenizer], linear: LinearBaselines | None, note: Callable[[str], None]
) -> list[Method]:
    """Every tokenizer, its linear baseline before it and codecs of the same bytes behind it."""
    found: dict[str, Method] = {}
    for name, tok in models.items():
        base = None if linear is None else linear.of(name, tok)
        if base is not None:
            found.setdefault(base.name, base)
        elif linear is not None:
            note(f"no PCA beside {name}: frame 0 is no group of its own there")
        found[name] = Method(
            name=name,
            model=name,
            code=_tokenizer(tok),
            base=base.name if base else None,
            codebook=(tok.codebook_size, tok.model.quantizer.num_codebooks)
            if tok.codebook_size is not None
            else None,
        )
        if tok.codebook_size is not None:
            found |= {method.name: method for method in _codecs(name, note)}
    return list(found.values())


def _codecs(model: str, note: Callable[[str], None]) -> Iterator[Method]:
    """Common codecs with the bytes of a tokenizer."""
    for kind, names in media_codecs.FOR.items():
        for codec in names:
            if not media_codecs.available(codec):
                note(f"no {codec} beside {model}: this build of the media libraries lacks it")
                continue
            row = f"{codec}, bytes of {model}"
            yield Method(name=row, model=model, kinds=(kind,), code=_codec(codec, model))


def _tokenizer(tok: Tokenizer) -> Callable[[Item, Mapping[str, float]], Coded]:
    def code(item: Item, _: Mapping[str, float]) -> Coded:
        start = time.perf_counter()
        tokens = tok.tokenize(item.frames)
        middle = time.perf_counter()
        recon = tok.detokenize(tokens)
        return Coded(
            frames=recon,
            bits=tokens.num_tokens * tokens.bits_per_token,
            tokens=tokens.num_tokens,
            codes=tokens.codes,
            encode_s=middle - start,
            decode_s=time.perf_counter() - middle,
        )

    return code


def _codec(codec: str, model: str) -> Callable[[Item, Mapping[str, float]], Coded]:
    def code(item: Item, bits: Mapping[str, float]) -> Coded:
        frames, num_bytes = media_codecs.code(codec, item, bits[model] / 8)
        return Coded(frames=frames, bits=8 * num_bytes)

    return code


class LinearBaselines:
    """Linear tokenizers fitted to the training split of a corpus, each once.

    Args:
        corpus: The corpus folder.
        note: Called with a line about what takes long.
    """

    def __init__(self, corpus: Path, note: Callable[[str], None]) -> None:
        self._corpus, self._note = corpus, note
        self._fitted: dict[str, LinearTokenizer] = {}

    def of(self, model: str, tok: Tokenizer) -> Method | None:
        """The one with as many numbers, or bits, as a tokenizer has; None if it has no like."""
        from omnitok.token_facts import token_bits

        if not tok.causal:
            return None
        rank, bits = tok.model.quantizer.dim, None
        name = f"PCA, {rank} numbers"
        if tok.codebook_size is not None:
            bits = math.ceil(token_bits(tok.codebook_size, tok.model.quantizer.num_codebooks))
            name = f"PCA quantized to {bits} bits"
        if tok.patch != (4, 8, 8):
            name += " per {}x{}x{}".format(*tok.patch)

        def code(item: Item, _: Mapping[str, float]) -> Coded:
            import torch

            from omnitok.groups import num_groups
            from omnitok.nn.patch import grid_of
            from omnitok.pixels import to_float, to_uint8

            linear = self._fit(name, tok.patch, rank, bits)
            frames = item.frames
            recon = linear.reconstruct(to_float(frames.transpose(0, 1)[None], torch.float32))
            grid = grid_of((frames.shape[2], frames.shape[3]), tok.patch)
            tokens = num_groups(len(frames), tok.patch[0]) * math.prod(grid)
            decoded = to_uint8(recon[0]).transpose(0, 1)
            return Coded(frames=decoded, bits=tokens * (bits or 32 * rank), tokens=tokens)

        return Method(name=name, model=model, code=code)

    def _fit(
        self, name: str, patch: tuple[int, int, int], rank: int, bits: int | None
    ) -> LinearTokenizer:
        import torch

        from omnitok.metrics.baselines import LinearTokenizer
        from omnitok.pixels import to_float

        if name not in self._fitted:
            self._note(f"fitting {name}")
            clips = (to_float(x, torch.float32) for x in training_clips(self._corpus, patch, DRAWS))
            self._fitted[name] = LinearTokenizer.fit(clips, patch, rank, bits)
        return self._fitted[name]

    def facts(self) -> list[dict[str, Any]]:
        """What they were fitted to."""
        return [
            {
                "name": name,
                "still_patches": linear.num_patches[0],
                "moving_patches": linear.num_patches[1],
                "seed": SEED,
            }
            for name, linear in self._fitted.items()
        ]


def training_clips(
    corpus: Path, patch: tuple[int, int, int], draws: int | None
) -> Iterator[Tensor]:
    """Batches of crops of a corpus' training split, [B, 3, T, H, W] uint8 of whole patches.

    Pictures, pictures with a moving camera and videos, mixed as the shipped weights' training does.

    Args:
        corpus: The corpus folder.
        patch: (frames, height, width) in pixels.
        draws: How many; None never ends.
    """
    from omnitok.train.config import DatasetConfig, SourceConfig, StageConfig, TrainConfig
    from omnitok.train.sampler import Sampler
    from video.data.datasets import find_items

    def whole(frames: int) -> tuple[int, int, int]:
        t, h, w = patch
        return 1 + -(-(frames - 1) // t) * t, -(-SIDE // h) * h, -(-SIDE // w) * w

    mix = [
        SourceConfig(kind=kind, weight=weight, batch=batch, sizes=[whole(frames)], stride=(1, 1))
        for kind, weight, batch, frames in MIX
    ]
    stage = StageConfig(name="crops", steps=draws or ENDLESS, mix=mix)
    config = TrainConfig(model={}, stages=[stage], seed=SEED)
    items = find_items(DatasetConfig(path=str(corpus / "train"), format="corpus"))
    sampler = Sampler(config, {"corpus": items})
    for number in range(len(sampler)):
        check()
        yield sampler[number].tensors["pixels"]


def codebook_use(tok: Tokenizer, corpus: Path, tokens: int) -> dict[str, Any]:
    """How evenly a discrete tokenizer uses its codes on at least `tokens` training tokens."""
    from dataclasses import asdict

    import torch

    from omnitok.metrics.codebook import CodebookStats
    from omnitok.pixels import to_float

    assert tok.codebook_size is not None
    stats = CodebookStats(tok.codebook_size, tok.model.quantizer.num_codebooks)
    for clips in training_clips(corpus, tok.patch, None):
        stats.add(tok.quantize(tok.encode(to_float(clips, torch.float32))))
        if stats.num_tokens >= tokens:
            break
    return asdict(stats.usage())
