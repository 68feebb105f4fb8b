"""Judges by the text that can be read.

Shape suffixes: T frames, C colours, H and W pixels.
"""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import Tensor

from tools.judges import Column, Once, percent, require

LOOKS = 3  # frames of a clip that are read, evenly spread: one may take seconds


class ReadText:
    """Share of the words read with all tokens that are read again, in the same frame."""

    name = f"read text (RapidOCR, {LOOKS} frames a clip)"
    columns: tuple[Column, ...] = (Column("words_kept", "words kept", percent),)
    empty = "no text"

    def __init__(self, device: str) -> None:
        del device  # the reader has a runtime of its own
        threads = torch.get_num_threads()
        self._reader = require("rapidocr_onnxruntime").RapidOCR(intra_op_num_threads=threads)
        self._seen = Once(self._words)

    def compare(self, full_TCHW: Tensor, compact_TCHW: Tensor) -> dict[str, float]:
        """The share of words that stay, over all frames that are read."""
        there = self._seen(full_TCHW)
        if not any(there):
            return {}
        left = self._words(compact_TCHW)
        kept = sum((a & b).total() for a, b in zip(there, left, strict=True))
        return {"words_kept": kept / sum(words.total() for words in there)}

    def _words(self, frames_TCHW: Tensor) -> list[Counter[str]]:
        """The words of each frame that is read, in small letters, and how often each occurs."""
        at = torch.linspace(0, len(frames_TCHW) - 1, min(LOOKS, len(frames_TCHW))).long()
        found = []
        for frame_CHW in frames_TCHW[at].flip(1):  # the reader takes blue first
            lines, _ = self._reader(frame_CHW.permute(1, 2, 0).contiguous().numpy())
            text = " ".join(text for _, text, _ in lines or ())
            found.append(Counter(re.findall(r"\w+", text.casefold())))
        return found
