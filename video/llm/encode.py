"""Visual tokens of a prompt as its model encodes them, clip by clip.

Shape suffixes: R rows of a modality (all its tokens in the prompt, in order), D width, B batch,
L places of the prompt.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from video.llm.forms import PIXELS, Form, base_of
from video.llm.tower import Watch, of_tokens, patches_of, watched, window_order

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video or an image within the rows of its modality.

    Attributes:
        rows: [t * h * w] int64, its rows; separators in between are not among them.
        grid: (t, h, w) tokens.
        sample: The prompt of the batch that it is in.
    """

    rows: Tensor
    grid: Grid
    sample: int


@dataclass(kw_only=True)
class Encoded:
    """All tokens of one modality.

    Attributes:
        rows: [R, D] tokens at the width of the language model.
        levels: More tokens for the same places, [R, D] each, which join at deeper layers.
        clips: What they belong to.
        lengths: Rows of each item as the model returns them.
        places: [R, 2] int64 sample and place of each row in the prompt.
        output: What the model's encoder returned.
        form: "block" or "list".
        attention: Of the tower, for each clip: [T, N] of a class token or [T, N, N]; empty unless
            asked for.
    """

    rows: Tensor
    levels: list[Tensor]
    clips: list[Clip]
    lengths: list[int]
    places: Tensor
    output: Any
    form: str
    attention: list[Tensor]

    def replaced(self, kept_R: Tensor, rows_RD: Tensor, levels: list[Tensor]) -> Any:
        """The encoder's output with only some of the rows, as the model takes it."""
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        counts = [int(kept_R[a:b].sum()) for a, b in zip(starts, ends, strict=True)]

        def parts(x_RD: Tensor) -> Any:
            rows = x_RD[kept_R]
            if self.form == "list":
                return torch.split(rows, counts)
            samples = set(torch.bincount(self.places[kept_R, 0]).tolist())
            if len(set(counts)) == 1:
                return rows.view(len(counts), -1, rows.shape[1])
            return rows.view(-1, samples.pop() if len(samples) == 1 else len(rows), rows.shape[1])

        output = copy.copy(self.output)
        output.pooler_output = parts(rows_RD)
        if levels:
            output.deepstack_features = [parts(level) for level in levels]
        return output


def has_pixels(inputs: dict[str, Any]) -> bool:
    """Whether a call brings images or videos."""
    return any(inputs.get(name) is not None for names in PIXELS.values() for name in names)


def ids_of(inputs: dict[str, Any]) -> Tensor:
    """[B, L] ids of a call.

    Raises:
        ValueError: It has none.
    """
    ids: Tensor | None = inputs.get("input_ids")
    if ids is None:
        raise ValueError("compact needs input_ids to know where the visual tokens go; pass them")
    return ids


def encoder_arguments(model: Any, modality: str) -> list[str]:
    """Arguments of the model's encoder of a modality, by name."""
    encoder = getattr(base_of(model), f"get_{modality}_features")
    return [name for name in inspect.signature(encoder).parameters if name != "kwargs"]


def encode(
    model: Any,
    form: Form,
    inputs: dict[str, Any],
    attention: tuple[str, ...] = (),
    matrix: bool = False,
) -> dict[str, Encoded]:
    """Run the vision tower on the images and videos of a call.

    Args:
        model: A model of `transformers`.
        form: How it takes visual tokens.
        inputs: Arguments of `forward` or `generate`.
        attention: Modalities whose attention in the tower is wanted.
        matrix: Whether that of every query is, even where there is a class token.

    Raises:
        ValueError: Ids are missing, or have not one placeholder for each token.
    """
    ids = ids_of(inputs)
    encoded = {}
    for modality, kind in form.doors.items():
        if all(inputs.get(name) is None for name in PIXELS[modality]):
            continue
        names = encoder_arguments(model, modality)
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        encoder = getattr(base_of(model), f"get_{modality}_features")
        with watched(model) if modality in attention else nullcontext() as watch:
            output = encoder(**given, return_dict=True)
        items = [item.flatten(0, -2) for item in output.pooler_output]
        levels = getattr(output, "deepstack_features", None) or []
        rows_RD = torch.cat(items)
        places = (ids == getattr(model.config, f"{modality}_token_id")).nonzero()
        if len(places) != len(rows_RD):
            raise ValueError(
                f"the prompt has {len(places)} {modality} placeholders and the encoder made "
                f"{len(rows_RD)} tokens; make both with the processor of this model"
            )
        lengths = [len(item) for item in items]
        free_R = _free(model, form, rows_RD)
        free = [int(part.sum()) for part in torch.split(free_R, lengths)]
        grids = _grids(model, form, modality, inputs, places, lengths, free)
        encoded[modality] = Encoded(
            rows=rows_RD,
            levels=[torch.cat(list(level)) for level in levels],
            clips=list(_clips(grids, free_R, places)),
            lengths=lengths,
            places=places,
            output=output,
            form=kind,
            attention=[]
            if watch is None
            else _attention(model, form, modality, grids, watch, inputs, matrix),
        )
    return encoded


def _attention(
    model: Any,
    form: Form,
    modality: str,
    grids: list[tuple[int, Grid | None]],
    watch: Watch,
    inputs: dict[str, Any],
    matrix: bool,
) -> list[Tensor]:
    """What the tower attended to, for each clip."""
    frames: list[tuple[int, int]] = []
    for length, grid in grids:
        if grid is None:
            raise ValueError(
                f"an image of {length} tokens in tiles has no one frame to attend over; leave "
                "images as they are with modalities=('video',), or choose a method without "
                "attention"
            )
        frames += [(grid[1], grid[2])] * grid[0]
    seen = watch.of([patches_of(model, h * w, form.mrope) for h, w in frames])
    order = window_order(model, inputs[f"{modality}_grid_thw"]) if form.mrope else None
    tokens = []
    for a, frame in zip(seen, frames, strict=True):
        bilinear = model.config.model_type == "llava_onevision"
        a = of_tokens(a, frame, form.mrope, bilinear, matrix)
        if order is not None:
            back = order[: len(a)].argsort()
            a, order = a[back][:, back], order[len(a) :]
        tokens.append(a)
    ends = torch.tensor([grid[0] for _, grid in grids if grid]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [torch.stack(tokens[i:j]) for i, j in zip(starts, ends, strict=True)]


def _free(model: Any, form: Form, rows_RD: Tensor) -> Tensor:
    """[R] bool, False for rows that separate others."""
    newline = getattr(base_of(model), "image_newline", None) if form.newline else None
    if newline is None:
        return torch.ones(len(rows_RD), dtype=torch.bool, device=rows_RD.device)
    free: Tensor = (rows_RD != newline.to(rows_RD)).any(-1)
    return free


def _grids(
    model: Any,
    form: Form,
    modality: str,
    inputs: dict[str, Any],
    places: Tensor,
    lengths: list[int],
    free: list[int],
) -> list[tuple[int, Grid | None]]:
    """Rows of each clip, one after another, and its grid; None for tokens of no regular grid.

    Of the `lengths` of the items, `free` are no separators.
    """
    if form.mrope:
        merge = base_of(model).visual.spatial_merge_size
        sizes = inputs[f"{modality}_grid_thw"].tolist()
        return [(t * h * w // merge**2, (t, h // merge, w // merge)) for t, h, w in sizes]
    if form.frames_are_images:
        return _runs(places)
    if modality == "image":
        return [(length, None) for length in lengths]
    frames = inputs[PIXELS[modality][0]].shape[1]
    return [
        (length, _frames(frames, tokens // frames))
        for length, tokens in zip(lengths, free, strict=True)
    ]


def _runs(places: Tensor) -> list[tuple[int, Grid | None]]:
    """Clips of a prompt whose videos are images: runs of equal length that follow each other."""
    samples, columns = places.unbind(1)
    breaks = ((columns.diff() != 1) | (samples.diff() != 0)).nonzero().flatten() + 1
    edges = [0, *breaks.tolist(), len(places)]
    runs = [(int(samples[a]), b - a) for a, b in pairwise(edges) if b > a]
    clips: list[tuple[int, Grid | None]] = []
    for (_, length), group in groupby(runs):
        frames = len(list(group))
        clips.append((frames * length, _frames(frames, length)))
    return clips


def _frames(frames: int, length: int) -> Grid:
    side = math.isqrt(length)
    return (frames, side, side) if side * side == length else (frames, 1, length)


def _clips(grids: list[tuple[int, Grid | None]], free_R: Tensor, places: Tensor) -> Iterator[Clip]:
    start = 0
    for length, grid in grids:
        rows = start + free_R[start : start + length].nonzero().flatten()
        sample = int(places[start, 0])
        yield Clip(rows=rows, grid=grid or (1, 1, len(rows)), sample=sample)
        start += length
