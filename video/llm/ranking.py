"""Methods inside a language model: which visual tokens the next layers can do without.

`budget` is the share (float) or number (int) of visual tokens that the last layers see.

Shape suffixes: B batch, N places, D width, L words, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from video.compress import Plan
from video.compress.budget import exact
from video.compress.recipes.framefusion import FrameFusion
from video.compress.recipes.in_layers import rated, recycle, text_raters
from video.compress.select import top
from video.llm.inside import Method, View


def visual_tokens(patch_BN: Tensor) -> int:
    """Visual tokens of each prompt.

    Raises:
        ValueError: The prompts of a batch have unequal numbers.
    """
    counts = (patch_BN >= 0).sum(1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"the prompts of this batch have {counts} visual tokens; methods inside the language "
            "model need as many in each: give prompts one by one"
        )
    return int(counts[0])


def keep_best(score_BN: Tensor, patch_BN: Tensor, keep: int) -> Plan:
    """Keep the `keep` visual tokens of largest score, and all else."""
    gone = visual_tokens(patch_BN) - keep
    N = score_BN.shape[1]
    return Plan.keep(top(score_BN.masked_fill(patch_BN < 0, torch.inf), N - gone), N)


class FastV(Method):
    """Prune once, early. Source: Chen et al. 2024, arXiv:2403.06764, section 4.

    Ranks by the attention that the last word pays in the layer before, the mean over heads.

    Args:
        budget: What is left.
        layer: The first layer with fewer tokens.
    """

    def __init__(self, budget: float | int, layer: int = 2) -> None:
        self.budget, self.layer = budget, layer
        self._score: Tensor | None = None

    def start(self, num_layers: int) -> None:
        """See `Method`."""
        if not 1 <= self.layer < num_layers:
            raise ValueError(
                f"layer={self.layer}; expected 1..{num_layers - 1} in a model of {num_layers} "
                "layers"
            )

    def seen(self, number: int, view: View) -> None:
        """See `Method`."""
        if number == self.layer - 1:
            self._score = last_word(view)

    def before(self, number: int, view: View) -> Plan | None:
        """See `Method`."""
        total = visual_tokens(view.patch)
        if number != self.layer or self._score is None or not total:
            return None
        return keep_best(self._score, view.patch, exact(self.budget, total))


def last_word(view: View) -> Tensor:
    """[B, N] attention of the last place, the mean over heads."""
    B, N, _ = view.x.shape
    return view.rows(torch.full((B, 1), N - 1, device=view.x.device))[:, :, 0].mean(1)


class Stages(Method):
    """Prune at several layers, by the same share at each, down to the budget.

    Args:
        budget: What is left after the last of them.
        layers: Where; by default `parts` of the model's depth.
        keep: Numbers that are left after each, instead of equal shares.
    """

    parts: tuple[float, ...] = ()

    def __init__(
        self,
        budget: float | int,
        layers: tuple[int, ...] | None = None,
        keep: tuple[int, ...] | None = None,
    ) -> None:
        self.budget, self.layers, self.keep = budget, layers, keep

    def start(self, num_layers: int) -> None:
        """See `Method`."""
        if self.layers is None:
            wanted = [max(1, round(part * num_layers)) for part in self.parts]
            self.layers = tuple(sorted(set(wanted)))
        if self.keep is not None and len(self.keep) != len(self.layers):
            raise ValueError(f"keep={self.keep} and layers={self.layers}; give one number a layer")
        if not all(0 <= layer < num_layers for layer in self.layers):
            raise ValueError(f"layers={self.layers}; expected numbers in 0..{num_layers - 1}")

    def left(self, number: int, view: View) -> int | None:
        """How many visual tokens layer `number` gets, if it is one where some go.

        Asked for every layer, first to last.
        """
        assert self.layers is not None
        if number == 0:
            self._total = visual_tokens(view.patch)
        if number not in self.layers or not self._total:
            return None
        stage = self.layers.index(number)
        if self.keep is not None:
            return min(self.keep[stage], visual_tokens(view.patch))
        share = exact(self.budget, self._total) / self._total
        return max(1, int(self._total * share ** ((stage + 1) / len(self.layers)) + 0.5))


class PyramidDrop(Stages):
    """Prune at the ends of quarters of the depth. Source: Xing et al. 2024, arXiv:2410.17247.

    Ranks by the attention that the last word would pay in the layer about to run. Unlike the
    published code, tokens keep their positions.
    """

    parts = (0.25, 0.5, 0.75)

    def before(self, number: int, view: View) -> Plan | None:
        """See `Method`."""
        keep = self.left(number, view)
        return None if keep is None else keep_best(last_word(view), view.patch, keep)


class SparseVLM(Stages):
    """Prune by what the words that look at the video look at. Zhang et al. 2025, arXiv:2410.04417.

    Of what goes, the best third is recycled: clustered, and the means kept within the budget. The
    share of each stage is fixed by the budget; the paper's own choice of it by matrix rank is not
    made. Tokens keep their positions, as in the second version.

    Args:
        budget: See `Stages`.
        layers: See `Stages`; ranking is done in the layer about to run.
        keep: See `Stages`.
        recycle: Share of what goes that is clustered.
    """

    parts = (2 / 32, 6 / 32, 15 / 32)

    def __init__(
        self,
        budget: float | int,
        layers: tuple[int, ...] | None = None,
        keep: tuple[int, ...] | None = None,
        recycle: float = 0.3,
    ) -> None:
        super().__init__(budget, layers, keep)
        self.recycle = recycle
        self._raters: Tensor | None = None

    def before(self, number: int, view: View) -> Plan | None:
        """See `Method`."""
        visual = places_where(view.patch >= 0)
        if number == 0:
            self._raters = raters(view, visual)
        keep = self.left(number, view)
        if keep is None:
            return None
        assert self._raters is not None
        asked = self._raters.gather(1, view.index)
        score = torch.cat([_rated(view.only(b), at) for b, at in enumerate(asked)])
        score = score.gather(1, visual)
        gone, clusters = visual.shape[1] - keep, 0
        while int((gone + clusters) * self.recycle) and clusters < keep - 1:
            wanted = int((gone + clusters) * self.recycle) // 10 + 1
            if wanted <= clusters:
                break
            clusters += 1
        x_BVD = view.x.gather(1, visual[..., None].expand(-1, -1, view.x.shape[-1]))
        few = recycle(x_BVD, score, keep - clusters, self.recycle if clusters else 0.0)
        N = view.x.shape[1]
        text = Plan.keep(places_where(view.patch < 0), N)
        return Plan.concat([text, Plan.keep(visual, N).then(few)])


def _rated(view: View, asked_N: Tensor) -> Tensor:
    """[1, N] attention of the words asked in one sample, the mean over heads and over them."""
    rows = view.rows(asked_N.nonzero().view(1, -1)).mean(1)
    return rated(rows, torch.ones(rows.shape[:2], device=rows.device))


def places_where(mask_BN: Tensor) -> Tensor:
    """[B, K] places that are True, as many in each sample."""
    return mask_BN.nonzero()[:, 1].view(len(mask_BN), -1)


def raters(view: View, visual_BV: Tensor) -> Tensor:
    """[B, L] bool: words of the prompt that look at the video more than words do on average.

    Only words after the first visual token are asked, where there are any: those before it cannot
    see the video.
    """
    words = view.words & ((view.patch >= 0).cumsum(1) > 0)
    words = words | (view.words & ~words.any(1, keepdim=True))
    chosen = torch.zeros_like(words)
    for b, places in enumerate(visual_BV):
        at = words[b].nonzero().flatten()
        _, rates = text_raters(view.x[b : b + 1, at], view.x[b : b + 1, places])
        chosen[b, at] = rates[0] | ~rates.any()  # all of them where they are all alike
    return chosen


class FrameFusionLayers(Method):
    """Merge what stands still from layer to layer, then prune once. See `FrameFusion`.

    Args:
        budget: Share of the operations of the layers that may be left.
        threshold: The least cosine to merge.
        least: Merging goes on while at least this share merged.
    """

    def __init__(self, budget: float | int, threshold: float = 0.6, least: float = 0.1) -> None:
        if not isinstance(budget, float):
            raise ValueError(f"budget={budget!r}; framefusion takes a share of the operations")
        self.budget, self.threshold, self.least = budget, threshold, least
        self._received: Tensor | None = None

    def start(self, num_layers: int) -> None:
        """See `Method`."""
        self._fusion = FrameFusion(self.budget, self.threshold, self.least, num_layers)

    def before(self, number: int, view: View) -> Plan | None:
        """See `Method`."""
        if self._fusion.stage == "done" or not visual_tokens(view.patch):
            return None
        received = self._received
        if received is None:
            received = torch.zeros(view.patch.shape, device=view.x.device)
        self._fusion.cost = max(self.budget, self._least_cost(visual_tokens(view.patch)))
        return self._fusion(view.x, view.patch, received)

    def _least_cost(self, num_visual: int) -> float:
        """What the layers cost if a single visual token is left from here on."""
        left, spent = 1.0, 0.0
        for sparsity in self._fusion.sparsities:
            left *= 1 - sparsity
            spent += left
        ahead = self._fusion.num_layers - len(self._fusion.sparsities)
        return (spent + ahead * left / num_visual) / self._fusion.num_layers

    def seen(self, number: int, view: View) -> None:
        """See `Method`."""
        if self._fusion.stage == "prune":
            self._received = view.received()


class DyCokeCache(Method):
    """Read only part of the visual keys and values for every new word, another part each time.

    Source: Tao et al. 2025, arXiv:2411.15024, section 3.3. What the last word of layer `layer - 1`
    attends to least is not read by the layers from `layer` on. The choice stands while attention
    changes little; the published code reads all in that case, the paper and this do not. Nothing
    is taken out of the cache.

    Args:
        budget: Share of the visual tokens that is read.
        layer: The first layer that reads fewer.
        alike: Cosine of attention now and when last chosen, from which on the choice stands.
    """

    def __init__(self, budget: float | int, layer: int = 3, alike: float = 0.9) -> None:
        self.budget, self.layer, self.alike = budget, layer, alike
        self._chosen: Tensor | None = None
        self._score: Tensor | None = None

    def start(self, num_layers: int) -> None:
        """See `Method`."""
        if not 1 <= self.layer < num_layers:
            raise ValueError(f"layer={self.layer}; expected 1..{num_layers - 1}")

    def cache(self, number: int, view: View, cache: Any) -> Any:
        """See `Method`."""
        if number == self.layer - 1:
            score = view.cached(cache.layers[number].keys)[:, : view.patch.shape[1]]
            score = score.masked_fill(view.patch < 0, 0)
            if self._score is None or not bool(
                (torch.cosine_similarity(score, self._score) >= self.alike).all()
            ):
                keep = exact(self.budget, visual_tokens(view.patch))
                self._chosen, self._score = keep_best(score, view.patch, keep).rep, score
        if number < self.layer or self._chosen is None:
            return cache
        return Partial(cache, self._chosen, view.patch.shape[1])


class Partial:
    """A cache of which a layer reads only a part.

    Args:
        cache: The cache; it grows as always.
        index: [B, M] places of the prompt that are read.
        length: Places of the prompt; what follows is read in any case.
    """

    def __init__(self, cache: Any, index: Tensor, length: int) -> None:
        self._cache, self._index, self._length = cache, index, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, keys: Tensor, values: Tensor, layer: int, **kwargs: Any) -> tuple[Tensor, ...]:
        """Store new keys and values, and return those to read."""
        whole = self._cache.update(keys, values, layer, **kwargs)
        index = self._index[:, None, :, None]

        def part(x: Tensor) -> Tensor:
            read = x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))
            return torch.cat([read, x[:, :, self._length :]], dim=2)

        return tuple(part(x) for x in whole)


INSIDE: dict[str, Callable[..., Method]] = {
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "framefusion": FrameFusionLayers,
    "dycoke_cache": DyCokeCache,
}
