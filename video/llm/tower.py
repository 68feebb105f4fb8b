"""Attention of a vision tower, for methods that rank by it, without eager attention.

While a tower runs, its attention goes through a function that works the last layers' attention out
besides; frames are then taken to the tokens of the language model as their features are.

Shape suffixes: n patches of a frame, N tokens of a frame, T frames, H heads, K head width.
"""

from __future__ import annotations

import importlib
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from video.llm.forms import base_of

NAME = "omnitok_watched"
_LOCK = threading.RLock()  # the names of kinds of attention are the same for all models
_DEPTH = 2  # the last layers that are watched: that before the last ranks, unless it sees windows


def tower_of(model: Any) -> Any:
    """The vision tower."""
    base = base_of(model)
    for name in ("vision_tower", "visual", "vision_model"):
        if hasattr(base, name):
            return getattr(base, name)
    raise ValueError(f"{type(base).__name__} has no vision tower that is known")


class Watch:
    """Attention of the last layers of a tower.

    Args:
        tower: The vision tower.
        eager: Whether it attends by its own code, and not by PyTorch's kernels.

    Attributes:
        frames: For each watched layer, [n, n] of every sequence it saw, the mean over heads.
    """

    def __init__(self, tower: Any, eager: bool) -> None:
        modules = [m for m in tower.modules() if type(m).__name__.endswith("Attention")]
        sdpa = importlib.import_module("transformers.integrations.sdpa_attention")
        self._attend = sdpa.sdpa_attention_forward
        if eager:
            self._attend = sys.modules[type(modules[-1]).__module__].eager_attention_forward
        self.frames: dict[int, list[Tensor]] = {id(m): [] for m in modules[-_DEPTH:]}

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Any:
        """Attend as always, and note what was attended to."""
        if id(module) in self.frames:
            scale = options.get("scaling") or query.shape[-1] ** -0.5
            self._note(self.frames[id(module)], query, key, attention_mask, scale)
        return self._attend(module, query, key, value, attention_mask, **options)

    @torch.no_grad()  # checkpoints of gradients run without a watch, and must save as much
    def _note(
        self, frames: list[Tensor], query: Tensor, key: Tensor, masks: Tensor | None, scale: float
    ) -> None:
        for b, (q, k) in enumerate(zip(query, key, strict=True)):  # one frame at a time
            logits = q.float() @ k.float().transpose(1, 2) * scale
            if masks is not None:
                mask = masks[min(b, len(masks) - 1)]
                if mask.dtype == torch.bool:
                    mask = torch.zeros(mask.shape).to(q).masked_fill(~mask, -torch.inf)
                logits = logits + mask
            frames.append(logits.softmax(-1).mean(0))

    def of(self, sizes: list[int]) -> list[Tensor]:
        """[n, n] of each frame.

        Args:
            sizes: Patches of each frame.
        """
        for frames in self.frames.values():
            have = [len(a) for a in frames]
            if have in (sizes, [n + 1 for n in sizes]):
                return frames
        raise ValueError(
            f"this vision tower attends over {[len(a) for a in frames]} patches at a time and not "
            f"over frames of {sizes}; choose a method that needs no attention"
        )


@contextmanager
def watched(model: Any) -> Iterator[Watch]:
    """Watch the vision tower while it runs in this block."""
    transformers = importlib.import_module("transformers")
    masks = importlib.import_module("transformers.masking_utils")
    tower = tower_of(model)
    with _LOCK:
        before = tower.config._attn_implementation
        eager = before == "eager"
        watch = Watch(tower, eager)
        transformers.AttentionInterface.register(NAME, watch)
        mask = masks.eager_mask if eager else masks.sdpa_mask
        transformers.AttentionMaskInterface.register(NAME, mask)
        tower.config._attn_implementation = NAME
        try:
            yield watch
        finally:
            tower.config._attn_implementation = before


def of_tokens(
    frame_nn: Tensor, grid: tuple[int, int], merged: bool, bilinear: bool, matrix: bool = False
) -> Tensor:
    """Take attention over patches to attention over tokens.

    Args:
        frame_nn: Queries before keys; a class token may come first.
        grid: Rows and columns of tokens.
        merged: Patches of a token follow each other; otherwise patches are in raster order.
        bilinear: Tokens are resampled patches; otherwise means of them.
        matrix: Leave a class token out.

    Returns:
        [N] what the class token pays, or [N, N] where there is none, or for `matrix`.
    """
    h, w = grid
    has_class = math.isqrt(len(frame_nn)) ** 2 != len(frame_nn) and not merged
    n = len(frame_nn) - has_class
    if merged:
        pool = torch.eye(h * w, device=frame_nn.device).repeat_interleave(n // (h * w), 1)
    else:
        side = math.isqrt(n)
        patches = torch.eye(n, device=frame_nn.device).view(n, 1, side, side)
        tokens = (
            F.interpolate(patches, size=grid, mode="bilinear")
            if bilinear
            else F.adaptive_avg_pool2d(patches, grid)
        )
        pool = tokens.view(n, h * w).T
    pool = pool / pool.sum(1, keepdim=True)
    if has_class and not matrix:
        row = pool @ frame_nn[0, 1:]
        return row / row.sum()
    tokens = pool @ frame_nn[has_class:, has_class:] @ pool.T
    return tokens / tokens.sum(1, keepdim=True)


def patches_of(model: Any, tokens: int, mrope: bool) -> int:
    """Patches that `tokens` tokens of a frame are made of."""
    tower = tower_of(model)
    if mrope:
        return tokens * int(tower.spatial_merge_size) ** 2
    size, patch = tower.config.image_size, tower.config.patch_size
    size, patch = (v if isinstance(v, int) else v[0] for v in (size, patch))
    return int((size // patch) ** 2)


def window_order(model: Any, grid_thw: Tensor) -> Tensor | None:
    """Tokens in the order that the tower has them in, where it sorts them by windows."""
    tower = tower_of(model)
    index = getattr(sys.modules[type(tower).__module__], "get_vision_window_index", None)
    if index is None:
        return None
    order: Tensor
    order, _ = index(
        grid_thw,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return order
