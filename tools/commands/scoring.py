"""Scores of one method on one clip, and of all clips together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.commands.eval_data import Item
from tools.commands.protocol import Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from omnitok.losses.trunk import Trunk
    from omnitok.metrics.codebook import CodebookStats
    from omnitok.metrics.mobile_net import MobileNet


@dataclass(frozen=True, kw_only=True)
class Coded:
    """What came back of a clip.

    Attributes:
        frames: uint8 [T, 3, H, W].
        bits: Of what is stored.
        tokens: How many; 0 if there are none.
        codes: int64 codes; None if there are none.
        encode_s: Seconds, where they are measured.
        decode_s: Seconds, where they are measured.
    """

    frames: Tensor
    bits: float
    tokens: int = 0
    codes: Tensor | None = None
    encode_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one clip comes back.

    Attributes:
        frames: Of the clip.
        pixels: Of all frames.
        mse: Mean squared error of all frames together, of 8-bit values.
        psnr: The same in decibels.
        frame_psnr: Mean over frames of their decibels.
        ssim: Mean over frames.
        lpips: Mean over frames; None without a network.
        flicker: Mean absolute difference of the frame-to-frame changes, in 8-bit steps.
        bits_per_pixel: Of what is stored.
        tokens: Of the clip; 0 if there are none.
        tokens_per_second: Of video; None for pictures, or if there are none.
        encode_s: Seconds, where they are measured.
        decode_s: Seconds, where they are measured.
    """

    frames: int
    pixels: int
    mse: float
    psnr: float
    frame_psnr: float
    ssim: float
    lpips: float | None
    flicker: float
    bits_per_pixel: float
    tokens: int
    tokens_per_second: float | None
    encode_s: float | None
    decode_s: float | None


class Networks:
    """The networks that scores look through; those that are missing are told of in `notes`.

    Args:
        folder: Where `python -m tools.feature_nets` put them.
        protocol: Says which.
        device: Where to compute.
    """

    def __init__(self, folder: Path, protocol: Protocol, device: str) -> None:
        from omnitok.checkpoint import CheckpointError
        from omnitok.losses.trunk import load_trunk
        from omnitok.metrics.features import load_mobilenet

        self.protocol, self.device = protocol, device
        self.notes: list[str] = []
        self.facts: dict[str, str] = {}
        self.trunk: Trunk | None = None
        self.mobilenet: MobileNet | None = None
        advice = "python -m tools.feature_nets fetches it"
        try:
            self.trunk = load_trunk(folder / f"lpips-{protocol.lpips}.safetensors").to(device)
            self.facts[self.trunk.name] = self.trunk.sha256
        except CheckpointError as error:
            self.notes.append(f"no LPIPS: {error}; {advice}")
        try:
            self.mobilenet = load_mobilenet(folder / "mobilenet-v2.safetensors").to(device)
            self.facts["mobilenet-v2"] = self.mobilenet.sha256
        except CheckpointError as error:
            self.notes.append(f"no Fréchet and kernel distances: {error}; {advice}")

    def lpips(self, a: Tensor, b: Tensor) -> float | None:
        """Mean over frames of uint8 [T, 3, H, W] clips; None without a network."""
        import torch

        from omnitok.losses.perceptual import lpips
        from omnitok.pixels import to_float

        if self.trunk is None:
            return None
        if min(a.shape[2:]) < self.trunk.least:
            note = f"no LPIPS: frames have less than the {self.trunk.least} pixels that it needs"
            if note not in self.notes:
                self.notes.append(note)
            return None
        parts = []
        with torch.no_grad():
            for pair in zip(torch.split(a, 8), torch.split(b, 8), strict=True):
                x, y = (to_float(frames.to(self.device), torch.float32) for frames in pair)
                parts.append(lpips(self.trunk, self.trunk(x), self.trunk(y)))
        return float(torch.cat(parts).mean())

    def features(self, frames: Tensor) -> tuple[Tensor, Tensor] | None:
        """Of the pictures and of the clip (see `clip_features`); None without a network."""
        from omnitok.metrics.features import clip_features

        if self.mobilenet is None:
            return None
        return clip_features(self.mobilenet, frames, self.protocol.crops)

    def score(self, item: Item, coded: Coded) -> Score:
        """Compare a clip with what came back."""
        from omnitok.metrics.pixel import MAX_PSNR, flicker, psnr, ssim

        frames, recon = item.frames, coded.frames
        pairs = zip(frames, recon, strict=True)
        mse = sum(float((a.float() - b.float()).square().mean()) for a, b in pairs) / len(frames)
        seconds = len(frames) / item.fps if item.fps else None
        return Score(
            frames=len(frames),
            pixels=item.pixels,
            mse=mse,
            psnr=_decibels(mse, MAX_PSNR),
            frame_psnr=float(psnr(recon, frames).mean()),
            ssim=float(ssim(recon, frames).mean()),
            lpips=self.lpips(recon, frames),
            flicker=flicker(recon, frames),
            bits_per_pixel=coded.bits / item.pixels,
            tokens=coded.tokens,
            tokens_per_second=coded.tokens / seconds if seconds and coded.tokens else None,
            encode_s=coded.encode_s,
            decode_s=coded.decode_s,
        )


def _decibels(mse: float, most: float) -> float:
    return min(most, 10 * math.log10(255**2 / mse)) if mse else most


class Features:
    """Features of many clips."""

    def __init__(self) -> None:
        from omnitok.metrics.distance import Samples

        self.sets = {"pictures": Samples(), "clips": Samples()}

    def add(self, pair: tuple[Tensor, Tensor] | None, kind: str) -> None:
        """Count those of a clip, or of a picture, which is no clip."""
        if pair is not None:
            self.sets["pictures"].add(pair[0])
            if kind == "video":
                self.sets["clips"].add(pair[1])

    def distances(self, other: Features, kind: str, notes: list[str]) -> dict[str, float | None]:
        """Fréchet and kernel distances of pictures, and of clips if there are any."""
        from omnitok.metrics.distance import TooFewError, frechet_distance, kernel_distance

        found: dict[str, float | None] = {}
        for what, own in self.sets.items():
            for name, distance in (("frechet", frechet_distance), ("kernel", kernel_distance)):
                key = f"{name}_{what}"
                found[key] = None
                if not own.count:
                    continue
                try:
                    found[key] = distance(own, other.sets[what])
                except TooFewError as error:
                    spoken = {"frechet": "Fréchet"}.get(name, name)
                    note = f"no {spoken} distance of {kind} {what}: {error}"
                    if note not in notes:
                        notes.append(note)
        return found


class Tally:
    """All scores of one method on clips of one kind."""

    def __init__(self, book: CodebookStats | None) -> None:
        self.scores: dict[str, Score] = {}
        self.features = Features()
        self.book = book

    def add(
        self,
        item: Item,
        score: Score,
        features: tuple[Tensor, Tensor] | None,
        codes: Tensor | None,
    ) -> None:
        """Count a clip."""
        self.scores[item.name] = score
        self.features.add(features, item.kind)
        if self.book is not None and codes is not None:
            self.book.add(codes)

    def summary(self) -> dict[str, Any]:
        """Means over clips, over frames, and over everything."""
        from omnitok.metrics.pixel import MAX_PSNR

        scores = list(self.scores.values())
        frames = sum(s.frames for s in scores)
        pixels = sum(s.pixels for s in scores)
        mse = sum(s.mse * s.pixels for s in scores) / pixels
        rates = [s.tokens_per_second for s in scores if s.tokens_per_second is not None]
        distances = [s.lpips for s in scores if s.lpips is not None]
        return {
            "clips": len(scores),
            "frames": frames,
            "psnr": _mean([s.psnr for s in scores]),
            "psnr_frames": sum(s.frame_psnr * s.frames for s in scores) / frames,
            "psnr_all": _decibels(mse, MAX_PSNR),
            "ssim": _mean([s.ssim for s in scores]),
            "ssim_frames": sum(s.ssim * s.frames for s in scores) / frames,
            "lpips": _mean(distances) if len(distances) == len(scores) else None,
            "flicker": _mean([s.flicker for s in scores]),
            "bits_per_pixel": sum(s.bits_per_pixel * s.pixels for s in scores) / pixels,
            "tokens": _mean([s.tokens for s in scores]) or None,
            "tokens_per_second": _mean(rates) if rates else None,
            "encode_fps": _speed(scores, "encode_s"),
            "decode_fps": _speed(scores, "decode_s"),
            **self._codes(),
        }

    def _codes(self) -> dict[str, Any]:
        """Figures of the codebooks: means over them."""
        if self.book is None:
            return {"codes_used": None, "entropy": None, "perplexity": None}
        usage = self.book.usage()
        return {
            "codes_used": _mean(list(usage.share)),
            "entropy": _mean(list(usage.entropy)),
            "perplexity": _mean(list(usage.perplexity)),
        }


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values)


def _speed(scores: list[Score], name: str) -> float | None:
    """Frames a second; the first clip of several warms up."""
    timed = [s for s in scores if getattr(s, name) is not None]
    timed = timed[1:] or timed
    total = sum(getattr(s, name) for s in timed)
    return sum(s.frames for s in timed) / total if total else None
