"""Fewer tokens from layer to layer inside a language model.

Hooks before the decoder layers take places out of the hidden states, the rotary embedding and the
mask; each layer then keeps keys and values of what it saw. Kept tokens keep their positions. Works
without padding (batches of prompts of equal length); `generate` runs prompts of unequal length one
by one.

Shape suffixes: B batch, L places of the prompt, N places that are left, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from video.compress import Plan
from video.llm.attention import attention_received, attention_rows, cached_attention
from video.llm.encode import Encoded
from video.llm.forms import layers_of, text_of


@dataclass
class View:
    """What a method sees before a layer runs.

    Attributes:
        layer: The decoder layer.
        x: [B, N, D] its input.
        rotary: Cosines and sines of the positions.
        patch: [B, N] place of each visual token in its frame, another for each clip; -1 for what
            must stay.
        words: [B, N] bool, text of the prompt.
        index: [B, N] places in the full prompt.
    """

    layer: Any
    x: Tensor
    rotary: tuple[Tensor, Tensor]
    patch: Tensor
    words: Tensor
    index: Tensor

    def rows(self, at_BQ: Tensor) -> Tensor:
        """[B, H, Q, N] attention that this layer would pay from some places."""
        return attention_rows(self.layer, self.x, self.rotary, at_BQ)

    def only(self, sample: int) -> View:
        """A single sample of it."""
        one = slice(sample, sample + 1)
        cos, sin = (r[one] if len(r) > 1 else r for r in self.rotary)
        parts = (p[one] for p in (self.patch, self.words, self.index))
        return View(self.layer, self.x[one], (cos, sin), *parts)

    def received(self) -> Tensor:
        """[B, N] attention that each place would get."""
        return attention_received(self.layer, self.x, self.rotary)

    def cached(self, keys: Tensor) -> Tensor:
        """[B, past + 1] attention of a new word to all before it, the mean over heads."""
        return cached_attention(self.layer, self.x, self.rotary, keys)


class Method:
    """Decides inside a language model; one of its own for every prompt."""

    def start(self, num_layers: int) -> None:
        """Take note of how many layers there are."""

    def before(self, number: int, view: View) -> Plan | None:
        """Decide which places go before layer `number` runs, if any."""
        return None

    def seen(self, number: int, view: View) -> None:
        """Look at what layer `number` is going to see."""

    def cache(self, number: int, view: View, cache: Any) -> Any:
        """The cache as layer `number` may see it for the next word."""
        return cache


@dataclass(kw_only=True)
class _Prompt:
    """A prompt on its way through the layers."""

    method: Method
    patch: Tensor
    words: Tensor
    length: int
    index: Tensor  # [B, N] places that are left, in the full prompt
    levels: list[Tensor]  # [B, N, D] further levels of visual tokens, zero elsewhere
    cache: Any
    decoding: bool = False
    seen: list[Tensor] = field(default_factory=list)  # `index` of each layer
    cut: dict[int, Any] = field(default_factory=dict)


class Inside:
    """Hooks on a model's decoder layers.

    Args:
        model: The model.
        method: Copied for every prompt.
        modalities: What may go.
    """

    def __init__(self, model: Any, method: Method, modalities: tuple[str, ...]) -> None:
        self.model, self.method, self.modalities = model, method, modalities
        self._handles: list[Any] = []
        self._pending: tuple[Tensor, Tensor] | None = None
        self._levels: list[Tensor] = []
        self.layers: list[int] = []  # places that each layer got
        self._prompt: _Prompt | None = None

    @property
    def seen(self) -> list[Tensor]:
        """[B, N] places of the last prompt that each layer saw."""
        return [] if self._prompt is None else self._prompt.seen

    def open(self) -> None:
        """Put the hooks on."""
        text, layers = text_of(self.model), layers_of(self.model)
        self._handles = [text.register_forward_pre_hook(self._take_levels, with_kwargs=True)]
        for number, layer in enumerate(layers):
            before, after = _Before(self, number), _After(self, number)
            self._handles += [
                layer.register_forward_pre_hook(before, with_kwargs=True),
                layer.register_forward_hook(after),
            ]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._prompt, self._pending = [], None, None

    def expect(self, ids: Tensor, mask: Tensor, encoded: dict[str, Encoded]) -> None:
        """Say where the visual tokens of the next prompt are.

        Args:
            ids: [B, L] the prompt.
            mask: [B, L] bool, False for padding.
            encoded: What was encoded for it.
        """
        patch = torch.full_like(ids, -1)
        words = mask.clone()
        first = 0
        for modality, tokens in encoded.items():
            words[tokens.places[:, 0], tokens.places[:, 1]] = False
            for clip in tokens.clips if modality in self.modalities else ():
                t, h, w = clip.grid
                place = first + torch.arange(h * w, device=ids.device).repeat(t)
                patch[tokens.places[clip.rows, 0], tokens.places[clip.rows, 1]] = place
                first += h * w
        self._pending = self._batch = patch, words

    @property
    def uneven(self) -> bool:
        """Whether the prompts of the batch have unequal numbers of visual tokens that may go."""
        counts = (self._batch[0] >= 0).sum(1)
        return bool((counts != counts[0]).any())

    def only(self, sample: int, places: Tensor) -> None:
        """Expect a single prompt of the batch, at [L] bool `places` of it."""
        patch, words = (p[sample : sample + 1, places] for p in self._batch)
        self._pending = patch, words

    def _take_levels(
        self, text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keep further levels of visual tokens: they are added here, where tokens may be gone."""
        self._levels = []
        embeds, mask = kwargs.get("deepstack_visual_embeds"), kwargs.get("visual_pos_masks")
        if self._pending is None or embeds is None:
            return None
        assert mask is not None
        for level in embeds:
            dense = level.new_zeros(*mask.shape, level.shape[-1])
            dense[mask] = level
            self._levels.append(dense)
        return args, {**kwargs, "deepstack_visual_embeds": None, "visual_pos_masks": None}

    def _begin(self, x_BND: Tensor, cache: Any) -> None:
        """Find out at the first layer what this call is."""
        if cache is not None and cache.get_seq_length() > 0:
            if self._prompt is not None and self._prompt.cache is cache:
                self._prompt.decoding = True
            else:
                self._prompt = None
            return
        self._prompt = None
        if self._pending is None or len(self._pending[0][0]) != x_BND.shape[1]:
            return
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                "methods inside the language model need a cache that grows; leave out "
                "cache_implementation"
            )
        times = len(x_BND) // len(self._pending[0])  # beams
        patch, words = (p.repeat_interleave(times, 0) for p in self._pending)
        method = copy.deepcopy(self.method)
        method.start(len(layers_of(self.model)))
        self._pending = None
        self.layers.clear()
        self._prompt = _Prompt(
            method=method,
            patch=patch,
            words=words,
            length=patch.shape[1],
            index=torch.arange(patch.shape[1], device=patch.device).expand_as(patch),
            levels=self._levels,
            cache=cache,
        )

    def before(self, number: int, layer: Any, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Change the arguments of a layer; returns its input."""
        cache_name = "cache" if "cache" in kwargs else "past_key_values"
        if number == 0:
            self._begin(x, kwargs.get(cache_name))
        prompt = self._prompt
        if prompt is None:
            return x
        if prompt.decoding:
            if x.shape[1] != 1:
                raise ValueError(
                    f"{x.shape[1]} words at once cannot follow a prompt that became shorter inside "
                    "the language model; generate word by word"
                )
            view = _view(layer, x, kwargs, prompt)
            kwargs["attention_mask"] = None  # one query that sees all there is
            kwargs[cache_name] = prompt.method.cache(number, view, kwargs.get(cache_name))
            return x
        self._cut_arguments(prompt, kwargs)
        view = _view(layer, x, kwargs, prompt)
        plan = prompt.method.before(number, view)
        if plan is not None:
            plan = plan.in_order()
            x = plan.apply(x)
            for name in ("patch", "words", "index"):
                setattr(prompt, name, getattr(prompt, name).gather(1, plan.rep))
            prompt.levels = [plan.apply(level) for level in prompt.levels]
            prompt.cut = {}
            if "hidden_states" in kwargs:
                kwargs["hidden_states"] = x
            kwargs.update(self._full)
            self._cut_arguments(prompt, kwargs)
            view = _view(layer, x, kwargs, prompt)
        prompt.method.seen(number, view)
        prompt.seen.append(prompt.index)
        self.layers.append(prompt.index.shape[1])
        return x

    def _cut_arguments(self, prompt: _Prompt, kwargs: dict[str, Any]) -> None:
        """Cut what the layers get about all places of the prompt to those that are left."""
        names = ("position_embeddings", "position_ids", "attention_mask")
        self._full = {name: kwargs[name] for name in names if name in kwargs}
        if prompt.index.shape[1] == prompt.length:
            return
        for name, full in self._full.items():
            if full is None:
                continue
            key = id(full)
            if key not in prompt.cut:
                prompt.cut[key] = full, _cut(name, full, prompt.index)  # holds on to its key
            kwargs[name] = prompt.cut[key][1]

    def after(self, number: int, x: Any) -> Any:
        """Add a further level of visual tokens to what a layer returns."""
        prompt = self._prompt
        if prompt is None or prompt.decoding or number >= len(prompt.levels):
            return x
        return x + prompt.levels[number].to(x.dtype)


@dataclass
class _Before:
    inside: Inside
    number: int

    def __call__(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        x = self.inside.before(self.number, layer, x, kwargs)
        return ((x, *args[1:]) if args else ()), kwargs


@dataclass
class _After:
    inside: Inside
    number: int

    def __call__(self, layer: Any, args: tuple[Any, ...], x: Any) -> Any:
        return self.inside.after(self.number, x)


def _view(layer: Any, x: Tensor, kwargs: dict[str, Any], prompt: _Prompt) -> View:
    return View(
        layer=layer,
        x=x,
        rotary=kwargs["position_embeddings"],
        patch=prompt.patch,
        words=prompt.words,
        index=prompt.index,
    )


def _cut(name: str, full: Any, index: Tensor) -> Any:
    """Take the places of `index` [B, N] out of an argument over all of them."""
    if name == "position_embeddings":
        return tuple(
            r.expand(len(index), -1, -1).gather(1, index[..., None].expand(-1, -1, r.shape[-1]))
            for r in full
        )
    if name == "position_ids":
        return full.expand(len(index), -1).gather(1, index)
    rows = full.expand(len(index), -1, -1, -1)
    rows = rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    return rows.gather(3, index[:, None, None].expand(-1, rows.shape[1], index.shape[1], -1))
