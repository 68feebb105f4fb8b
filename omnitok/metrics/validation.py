"""PSNR of a model on whole clips, as the training log and the tables report it.

Shape suffixes: B batch, C colours, T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from omnitok.model import Autoencoder


def clip_psnr(recon: Tensor, target: Tensor) -> Tensor:
    """[B] PSNR in dB of each clip as a whole, after rounding to 8 bits.

    Args:
        recon: [B, 3, T, H, W] in [-1, 1].
        target: [B, 3, T, H, W] in [-1, 1].
    """
    scale = 127.5
    a, b = (x.float().clamp(-1, 1).mul(scale).round() for x in (recon, target))
    mse = (a - b).square().flatten(1).mean(dim=1).clamp_min(1e-10)
    return 10 * torch.log10((2 * scale) ** 2 / mse)


@torch.no_grad()
def mean_psnr(reconstruct: Callable[[Tensor], Tensor], clips: Iterable[Tensor]) -> float:
    """Mean over clips of `clip_psnr`."""
    scores = [clip_psnr(reconstruct(clip), clip) for clip in clips]
    return float(torch.cat(scores).mean())


def validator(clips: dict[str, list[Tensor]]) -> Callable[[Autoencoder], dict[str, float]]:
    """A function that scores a model on named sets of clips, in bfloat16 as it trains."""

    def validate(model: Autoencoder) -> dict[str, float]:
        def reconstruct(clip: Tensor) -> Tensor:
            with torch.autocast(clip.device.type, torch.bfloat16):
                return model(clip).recon  # type: ignore[no-any-return]

        return {f"psnr_{k}": round(mean_psnr(reconstruct, v), 3) for k, v in clips.items()}

    return validate
