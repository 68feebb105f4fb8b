"""Linear tokenizers of the same patches: what a learned one has to beat.

Shape suffixes: B batch, C colours, T frames, H and W pixels, S samples, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from omnitok.metrics.transform_code import TransformCode
from omnitok.nn.patch import Patch, grid_of, pad_frames, patchify, unpatchify
from omnitok.train.pca import PCA, split_patches


@dataclass
class LinearTokenizer:
    """Principal components of first-frame patches and of group patches, quantized or not.

    Attributes:
        patch: (frames, height, width) in pixels.
        still: For the first frame.
        moving: For the groups after it.
        rank: Components kept, where they are not quantized.
        num_patches: How many patches of each kind it was fitted to.
    """

    patch: Patch
    still: PCA | TransformCode
    moving: PCA | TransformCode
    rank: int
    num_patches: tuple[int, int]

    @classmethod
    def fit(
        cls, clips: Iterable[Tensor], patch: Patch, rank: int, bits: int | None = None
    ) -> LinearTokenizer:
        """Fit to clips.

        Args:
            clips: [B, 3, T, H, W] in [-1, 1], of whole groups, some with more than one frame.
            patch: (frames, height, width) in pixels.
            rank: Components of each patch, unless `bits` are given.
            bits: Quantize the components with this many bits for each patch.
        """
        parts = [torch.cat(patches) for patches in split_patches(clips, patch)]
        codes: list[PCA | TransformCode] = []
        for patches in parts:
            pca = PCA.fit(torch.split(patches, 65536))
            codes.append(pca if bits is None else TransformCode.fit(pca, patches, bits))
        return cls(patch, codes[0], codes[1], rank, (len(parts[0]), len(parts[1])))

    def reconstruct(self, x_BCTHW: Tensor) -> Tensor:
        """[B, 3, T, H, W] in [-1, 1] to the same shape, of any size."""
        frames, height, width = x_BCTHW.shape[2:]
        t, h, w = self.patch
        padded = pad_frames(x_BCTHW, self.patch, 1 + -(-(frames - 1) // t) * t)
        grid = grid_of((height, width), self.patch)
        parts = []
        cuts = (
            (self.still, padded[:, :, :1], (1, h, w)),
            (self.moving, padded[:, :, 1:], (t, h, w)),
        )
        for code, x, patch in cuts:
            if x.shape[2]:
                parts.append(unpatchify(self._code(code, patchify(x, patch)), patch, grid))
        return torch.cat(parts, dim=2)[:, :, :frames, :height, :width]

    def _code(self, code: PCA | TransformCode, patches: Tensor) -> Tensor:
        if isinstance(code, TransformCode):
            return code.reconstruct(patches)
        return code.reconstruct(code.project(patches, self.rank))
