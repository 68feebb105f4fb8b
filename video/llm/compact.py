"""`with compact(model, method="dycoke", budget=0.25):` a video language model sees fewer tokens.

Nothing of the model's code is patched: its own encoder runs, a method makes the tokens fewer, the
prompt loses the places of those that vanished, and the model is called with the rest through
`mm_encoder_outputs`, the door it has for encoded images and videos.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from video.compress import METHODS, Plan, plan
from video.compress.budget import check_budget
from video.compress.registry import choices
from video.llm.encode import Encoded, encode, encoder_arguments, has_pixels, ids_of
from video.llm.forms import Form, base_of, form_of
from video.llm.generate import Generate
from video.llm.inside import Inside
from video.llm.prompt import IGNORED, Shrunk, count_positions, places_of, shrink
from video.llm.ranking import INSIDE

Planner = Callable[[Tensor, Any], Plan]  # tokens [T, N, D] and the budget
_ALWAYS_GONE = ("mm_token_type_ids", "second_per_grid_ts")  # only say what the full prompt was


@dataclass(kw_only=True)
class Report:
    """What became of the last call.

    Attributes:
        tokens: Visual tokens of the full prompts.
        kept: Visual tokens that the language model got (methods inside it start with all).
        places: Places of the full prompts that are no padding, text included.
        seconds: Time the method took, without the encoder; on a GPU only true where `timed`.
        plans: One for each clip.
        layers: Places, text included, that each layer got in a prompt, where a method is inside.
    """

    tokens: int = 0
    kept: int = 0
    places: int = 0
    seconds: float = 0.0
    plans: list[Plan] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)


@contextmanager
def compact(
    model: nn.Module,
    method: str | Planner = "dycoke",
    budget: float | int | None = 0.25,
    *,
    positions: str = "keep",
    modalities: Sequence[str] = ("image", "video"),
    form: Form | None = None,
    timed: bool = False,
    **options: Any,
) -> Iterator[Report]:
    """Give a model of `transformers` fewer visual tokens in every call of this block.

    `generate` and `forward` are called as always and return what they always do: sequences start
    with the whole prompt. Logits of `forward` are those of the shorter prompt. Calls of `generate`
    from several threads wait for each other.

    Args:
        model: A model for conditional generation; see `video.llm.FORMS` for the classes.
        method: A name of `video.compress.METHODS` (before the language model) or of
            `video.llm.INSIDE` (inside it), or a function of tokens [T, N, D] and the budget that
            returns a `Plan`.
        budget: Share (float) or number (int) of each clip's tokens that stay; 1.0 for all. None for
            what a method before the language model was published with.
        positions: "keep" leaves every token its place in the full prompt, so that distances in
            time and space stay; "renumber" counts what is left (not for multimodal rotary, where
            the position is the time).
        modalities: What is made fewer: "image", "video" or both.
        form: How the model takes visual tokens, for a class that is not known.
        timed: Wait for a GPU before and after the method.
        **options: Settings of the method.

    Yields:
        A report, up to date after each call.

    Raises:
        KeyError: There is no such method.
        ValueError: The class of the model is not known, or something does not fit.
    """
    work = Compact(model, method, budget, positions, modalities, form, options)
    work.timed = timed
    with work:
        yield work.report


def compact_call(
    model: Any,
    inputs: dict[str, Any],
    method: str | Planner = "dycoke",
    budget: float | int | None = 0.25,
    *,
    positions: str = "keep",
    modalities: Sequence[str] = ("image", "video"),
    form: Form | None = None,
    **options: Any,
) -> tuple[dict[str, Any], Shrunk | None]:
    """The arguments that `forward` gets within `compact`, and which places of the prompt are left.

    Args:
        model: As `compact` takes it, and all that follows.
        inputs: Arguments of `forward`.
        method: Not one inside the language model.
        budget: See `compact`.
        positions: See `compact`.
        modalities: See `compact`.
        form: See `compact`.
        **options: Settings of the method.
    """
    work = Compact(model, method, budget, positions, modalities, form, options)
    return work.shorten(dict(inputs), generating=False)[:2]


class Compact:
    """Takes the place of `generate` and goes before `forward`, until it is closed."""

    def __init__(
        self,
        model: Any,
        method: str | Planner,
        budget: float | int | None,
        positions: str,
        modalities: Sequence[str],
        form: Form | None,
        options: dict[str, Any],
    ) -> None:
        self.form = form or form_of(model)
        if positions not in ("keep", "renumber") or (positions != "keep" and self.form.mrope):
            raise ValueError(
                f"positions={positions!r}; choose 'keep'"
                + (
                    ": in this model they are times and places"
                    if self.form.mrope
                    else " or 'renumber'"
                )
            )
        if unknown := sorted(set(modalities) - {"image", "video"}):
            raise ValueError(f"modalities hold {unknown[0]!r}; choose of 'image' and 'video'")
        if isinstance(method, str) and method not in METHODS and method not in INSIDE:
            raise KeyError(f"unknown method {method!r}; {choices(method, {*METHODS, *INSIDE})}")
        if isinstance(method, str) and (budget is not None or method in INSIDE):
            check_budget(budget)
        self.lock = threading.RLock()
        self.model, self.method, self.budget = model, method, budget
        self.positions, self.modalities, self.options = positions, modalities, options
        known = METHODS.get(method) if isinstance(method, str) else None
        self.needs, self.matrix = (known.needs, known.matrix) if known else ((), False)
        self.report, self.timed = Report(), False
        self.inside: Inside | None = None
        if isinstance(method, str) and method in INSIDE:
            self.inside = Inside(model, INSIDE[method](budget, **options), tuple(modalities))
            self.report.layers = self.inside.layers

    def __enter__(self) -> Compact:
        model = self.model
        self._generate = vars(model).get("generate")
        if isinstance(self._generate, Generate):
            raise ValueError("this model is compact already; leave the other block first")
        self._deltas = getattr(base_of(model), "rope_deltas", None)
        if self.inside is not None:
            self.inside.open()
        model.generate = Generate(self)
        self._hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.inside is not None:
            self.inside.close()
        self._hook.remove()
        del self.model.generate
        if self._generate is not None:
            self.model.generate = self._generate
        if self.form.mrope:
            base_of(self.model).rope_deltas = self._deltas

    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **inputs}
        if not has_pixels(given):
            return None
        with self.lock:
            short, _, deltas = self.shorten(given, generating=False)
        if self.form.mrope:
            base_of(model).rope_deltas = deltas  # where a loop by hand goes on
        return (), short

    def shorten(
        self, inputs: dict[str, Any], generating: bool
    ) -> tuple[dict[str, Any], Shrunk | None, Tensor | None]:
        """The same call with fewer tokens.

        Returns:
            Its arguments, which places of the prompt are left if not all, and [B, 1] how far the
            next position is ahead of the number of places.
        """
        ids = ids_of(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask is {list(mask.shape)}; compact needs [B, L]")
        attended = torch.ones_like(ids) if mask is None else mask
        watched = tuple(self.modalities) if "attention" in self.needs else ()
        self.encoded = encoded = encode(self.model, self.form, inputs, watched, self.matrix)
        report = self.report
        report.tokens, report.kept, report.seconds, report.plans = 0, 0, 0.0, []
        report.places = int(attended.sum())
        drop = torch.zeros_like(ids, dtype=torch.bool)
        outputs = {}
        for modality, tokens in encoded.items():
            kept_R, rows_RD, levels = self._compress(modality, tokens, inputs)
            gone = tokens.places[~kept_R.to(tokens.places.device)]
            drop[gone[:, 0], gone[:, 1]] = True
            outputs[modality] = tokens.replaced(kept_R, rows_RD, levels)
            report.tokens += len(kept_R)
            report.kept += len(kept_R) - len(gone)
        shrunk = shrink(attended.bool(), drop) if bool(drop.any()) else None
        short = {"input_ids": ids, "attention_mask": attended}
        short["position_ids"] = positions = self._positions(inputs, attended, generating)
        labels = inputs.get("labels")
        if self.inside is not None:
            self._expect(ids, attended, labels, generating)
        if shrunk is not None:
            attended = shrunk.mask.to(attended.dtype)
            short |= {
                "input_ids": shrunk.take(ids, self.pad_id()),
                "attention_mask": attended,
                "position_ids": shrunk.take(positions),
            }
            if labels is not None:
                short["labels"] = shrunk.take(labels, IGNORED)
            if self.positions == "renumber":
                short["position_ids"] = count_positions(shrunk.mask)
        deltas = None
        if self.form.mrope:
            places = short["position_ids"][-3:]
            # the row in front tells packed prompts from whole ones
            short["position_ids"] = torch.cat([count_positions(attended)[None], places])
            end = attended.cumsum(1).argmax(1)[None, :, None].expand(3, -1, -1)
            deltas = places.gather(2, end).amax(0) + 1 - attended.sum(1, keepdim=True)
        gone_names = {n for m in self.form.doors for n in encoder_arguments(self.model, m)}
        rest = {k: v for k, v in inputs.items() if k not in {*gone_names, *_ALWAYS_GONE}}
        return {**rest, **short, "mm_encoder_outputs": outputs}, shrunk, deltas

    def _compress(
        self, modality: str, tokens: Encoded, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Which rows stay, and the rows and further levels with what became of them."""
        kept_R = torch.ones(len(tokens.rows), dtype=torch.bool, device=tokens.rows.device)
        rows_RD, levels = tokens.rows, tokens.levels
        if self.inside is not None or modality not in self.modalities:
            return kept_R, rows_RD, levels
        whole = (rows_RD, *levels)
        made = [x.clone() for x in whole]
        for number, clip in enumerate(tokens.clips):
            start = self._now(rows_RD)
            plan_ = self._plan(tokens, number, inputs)
            places = clip.rows[places_of(plan_.rep[0], len(clip.rows))]
            kept_R[clip.rows] = False
            kept_R[places] = True
            for old, new in zip(whole, made, strict=True):
                new[places] = plan_.apply(old[clip.rows][None])[0]
            self.report.seconds += self._now(rows_RD) - start
            self.report.plans.append(plan_)
        return kept_R, made[0], made[1:]

    def _plan(self, tokens: Encoded, number: int, inputs: dict[str, Any]) -> Plan:
        clip = tokens.clips[number]
        t, h, w = clip.grid
        x_TND = tokens.rows[clip.rows].view(t, h * w, -1)
        if not isinstance(self.method, str):
            return self.method(x_TND, self.budget).in_order()
        given = dict(self.options)
        if "attention" in self.needs:
            given["attention"] = tokens.attention[number]
        if "text" in self.needs:
            given["text"] = self._text(inputs, clip.sample)
        return plan(self.method, x_TND, self.budget, grid=clip.grid, **given)

    def _text(self, inputs: dict[str, Any], sample: int) -> Tensor:
        """[L, D] embeddings of a prompt's words."""
        ids = inputs["input_ids"][sample]
        mask = inputs.get("attention_mask")
        words = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[sample].bool()
        for modality in self.form.doors:
            words = words & (ids != getattr(self.model.config, f"{modality}_token_id"))
        text: Tensor = self.model.get_input_embeddings()(ids[words])
        return text

    def _positions(self, inputs: dict[str, Any], attended: Tensor, generating: bool) -> Tensor:
        """[B, L] or [3, B, L] positions in the full prompt, as the model itself gives them."""
        if inputs.get("position_ids") is not None:
            given: Tensor = inputs["position_ids"]
            return given
        if self.form.mrope:
            if inputs.get("mm_token_type_ids") is None:
                raise ValueError(
                    "positions of this model need mm_token_type_ids; pass all that its processor "
                    "returns"
                )
            index = base_of(self.model).get_rope_index
            names = inspect.signature(index).parameters
            positions, _ = index(**{k: v for k, v in inputs.items() if k in names})
            return positions  # type: ignore[no-any-return]
        if generating:
            return count_positions(attended)
        return torch.arange(attended.shape[1], device=attended.device).expand(attended.shape)

    def _expect(
        self, ids: Tensor, attended: Tensor, labels: Tensor | None, generating: bool
    ) -> None:
        """Tell the hooks inside the language model what is coming."""
        assert self.inside is not None
        if labels is not None:
            raise ValueError(
                f"{self.method} works inside the language model, where labels cannot follow; train "
                "with a method before it"
            )
        if not generating and not bool(attended.all()):
            raise ValueError(
                f"{self.method} works inside the language model and needs prompts of equal length; "
                "give them to forward one by one (generate does so by itself)"
            )
        self.inside.expect(ids, attended.bool(), self.encoded)

    def pad_id(self) -> int:
        """What fills places that are no part of a prompt."""
        config = self.model.generation_config
        ids = (config.pad_token_id, config.eos_token_id, 0)
        pad = next(i for i in ids if i is not None)
        return int(pad[0] if isinstance(pad, list) else pad)

    def _now(self, x: Tensor) -> float:
        """Seconds on a steady clock, once the device has done its work if that is to be timed."""
        if self.timed and x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()
