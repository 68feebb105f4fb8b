"""Every method by its name, and one call for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

import torch
from torch import Tensor

from video.compress import budget as budgets
from video.compress.merge import distinct
from video.compress.options import check_options, takes_tensor
from video.compress.plan import Plan
from video.compress.recipes.aim import aim
from video.compress.recipes.ats import ats
from video.compress.recipes.bvllm import bvllm
from video.compress.recipes.chat_univi import chat_univi, dpc_knn
from video.compress.recipes.dart import dart
from video.compress.recipes.dycoke import DyCoke, dycoke
from video.compress.recipes.evit import evit
from video.compress.recipes.evs import evs
from video.compress.recipes.framefusion import framefusion
from video.compress.recipes.globalcom2 import globalcom2
from video.compress.recipes.hired import hired
from video.compress.recipes.lftr import lftr
from video.compress.recipes.llama_vid import llama_vid
from video.compress.recipes.mctf import mctf
from video.compress.recipes.pooled import dynamic_vlm, m3
from video.compress.recipes.ppllava import ppllava
from video.compress.recipes.prumerge import prumerge
from video.compress.recipes.quota import quota
from video.compress.recipes.ranked import fopru, vflowopt, vtc_cls
from video.compress.recipes.sta import sta, sta_walk
from video.compress.recipes.testa import testa
from video.compress.recipes.token_correlation import token_correlation
from video.compress.recipes.token_pooling import token_pooling
from video.compress.recipes.tome import tome
from video.compress.recipes.ts_llava import ts_llava, ts_llava_walk
from video.compress.recipes.vid_tldr import vid_tldr
from video.compress.recipes.visionzip import visionzip

Walk = Callable[..., Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Method:
    """A way to make tokens fewer.

    Attributes:
        name: What `plan` takes.
        run: `run(x, keep, ...)` of tokens [B, T, N, D] and a count per sample, or None for the
            published defaults.
        needs: What it must be given: "tokens", and further "attention" or "text".
        note: One line about it.
        matrix: Whether the attention must be that of every query, and not one number per token.
        walk: Where frames are decided one after another: `walk(T, N, keep, ...)` gives a function
            of the next frame [B, N, D] that returns the places in it that stay.
        framewise: Whether frames are decided by themselves, and `run` takes a count for each.
    """

    name: str
    run: Callable[..., Plan]
    needs: tuple[str, ...]
    note: str
    matrix: bool = False
    walk: Walk | None = None
    framewise: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of what else `plan` takes for it."""
        parameters = list(inspect.signature(self.run).parameters.values())[2:]
        return {p.name: p.default for p in parameters if p.name not in INPUTS}

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the options that are numbers, words or lists of them, and no tensors."""
        hints = get_type_hints(self.run)
        return {name: v for name, v in self.options.items() if not takes_tensor(hints[name])}

    def looks_ahead(self, keep: int | None, options: dict[str, Any]) -> bool:
        """Whether what stays of a frame may depend on the frames after it."""
        of_count = self.name == "dynamic_vlm" and keep is None
        framewise = self.framewise and not of_count and options.get("scope") != "video"
        return self.walk is None and not framewise


INPUTS = ("attention", "text", "grid")
_WALKS: dict[Callable[..., Plan], Walk] = {dycoke: DyCoke, sta: sta_walk, ts_llava: ts_llava_walk}
_FRAMEWISE = (aim, dpc_knn, dynamic_vlm, m3, token_pooling, tome)


def _methods(*recipes: Callable[..., Plan]) -> dict[str, Method]:
    methods = {}
    for run in recipes:
        parameters = inspect.signature(run).parameters
        required = [
            name
            for name in ("attention", "text")
            if name in parameters and parameters[name].default is inspect.Parameter.empty
        ]
        note = (run.__doc__ or "").splitlines()[0]
        matrix = run in (vid_tldr, vflowopt)
        methods[run.__name__] = Method(
            name=run.__name__,
            run=run,
            needs=("tokens", *required),
            note=note,
            matrix=matrix,
            walk=_WALKS.get(run),
            framewise=run in _FRAMEWISE,
        )
    return methods


METHODS: dict[str, Method] = _methods(
    aim,
    ats,
    bvllm,
    chat_univi,
    dpc_knn,
    dart,
    dycoke,
    evit,
    evs,
    framefusion,
    globalcom2,
    hired,
    lftr,
    llama_vid,
    mctf,
    dynamic_vlm,
    m3,
    ppllava,
    prumerge,
    quota,
    fopru,
    vflowopt,
    vtc_cls,
    sta,
    testa,
    token_correlation,
    token_pooling,
    tome,
    ts_llava,
    vid_tldr,
    visionzip,
)


def plan(
    method: str,
    x: Tensor,
    budget: float | int | None = None,
    *,
    attention: Tensor | None = None,
    text: Tensor | None = None,
    grid: tuple[int, ...] | None = None,
    order: str = "index",
    **options: Any,
) -> Plan:
    """Decide which tokens of a video stay, and which are merged.

    Args:
        method: A name of `METHODS`.
        x: [T, N, D] or [B, T, N, D] tokens, N of each frame.
        budget: Tokens that stay of all T * N: a fraction as a float, a count as an int. The count
            is kept exactly and known beforehand. None for the published defaults of the method,
            which may keep a number that depends on the tokens.
        attention: Averaged over heads, after the softmax: [T, N] (of a class token, or received)
            or [T, N, N] (queries before keys), with B in front where `x` has it. Where a method
            wants one number per token and gets a matrix, it takes what a token receives.
        text: [L, D] or [B, L, D] embeddings in the space of the tokens.
        grid: (h, w) or (t, h, w) of the tokens, for methods that look at places; a square frame
            where not given.
        order: "index" for outputs in the order of time and place, "upstream" for the order of the
            published code.
        **options: Further settings of the method, by name; see `METHODS[method].options`.

    Returns:
        A plan; `plan.apply(x)` is [B, K, D], B = 1 where `x` is [T, N, D].

    Raises:
        KeyError: There is no such method.
        ValueError: It lacks something that it needs, or something does not fit.
        TypeError: It has no such option.
    """
    known = known_method(method, options)
    if order not in ("index", "upstream"):
        raise ValueError(f"order={order!r}; choose of 'index', 'upstream'")
    if x.dim() not in (3, 4) or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(
            f"tokens are {x.dtype} {list(x.shape)}; expected floats [T, N, D] or [B, T, N, D], "
            "none of them 0"
        )
    batched = x.dim() == 4
    if not batched:
        x = x[None]
        tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
        options |= {name: value[None] for name, value in tensors.items()}
    given = {
        "attention": None if attention is None else _attention(attention, x, batched),
        "text": None if text is None else _text(text, x),
        "grid": grid,
    }
    for name in known.needs[1:]:
        if given[name] is None:
            raise ValueError(f"{method} needs {name}; pass {name}=")
    takes = inspect.signature(known.run).parameters
    options |= {name: value for name, value in given.items() if name in takes}
    keep = None if budget is None else budgets.exact(budget, x.shape[1] * x.shape[2])
    with torch.no_grad():
        if keep == x.shape[1] * x.shape[2]:
            return Plan.identity(len(x), keep, x.device)
        made = known.run(x, keep, **options)
    return distinct(made).in_order() if order == "index" else made


def known_method(name: str, options: dict[str, Any]) -> Method:
    """The method of a name, which takes these options.

    Raises:
        KeyError: There is none.
        TypeError: It has no such option.
        ValueError: An option is of another type or out of range.
    """
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}; {choices(name, METHODS)}")
    method = METHODS[name]
    if wrong := sorted(set(options) - set(method.options)):
        raise TypeError(
            f"{name} has no option {wrong[0]!r}; it takes {sorted(method.options) or 'none'}"
        )
    check_options(name, method.run, options)
    return method


def choices(name: str, known: Iterable[str]) -> str:
    """What to choose instead of a name that is none of those known."""
    near = get_close_matches(name, known, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"choose one of {sorted(known)}"


def _attention(attention: Tensor, x: Tensor, batched: bool) -> Tensor:
    attention = attention if batched else attention[None]
    B, T, N, _ = x.shape
    if attention.shape not in ((B, T, N), (B, T, N, N), (B, T * N, T * N)):
        b = f"{B}, " if batched else ""
        raise ValueError(
            f"attention is {list(attention.shape if batched else attention.shape[1:])}; expected "
            f"[{b}{T}, {N}], [{b}{T}, {N}, {N}] or [{b}{T * N}, {T * N}], averaged over heads"
        )
    return attention


def _text(text: Tensor, x: Tensor) -> Tensor:
    text = text if text.dim() == 3 else text[None]
    B, D = len(x), x.shape[3]
    if text.dim() != 3 or text.shape[0] not in (1, B) or text.shape[2] != D or not text.shape[1]:
        raise ValueError(
            f"text is {list(text.shape)}; expected [L, {D}] or [{B}, L, {D}], L at least 1, in the "
            "space of the tokens"
        )
    return text.expand(B, -1, -1)
