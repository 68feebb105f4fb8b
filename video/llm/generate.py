"""`generate` within `compact`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from video.llm.encode import has_pixels, ids_of

if TYPE_CHECKING:
    from video.llm.compact import Compact


class Generate:
    """Stands in for a model's `generate`."""

    def __init__(self, work: Compact) -> None:
        self._work = work

    def __call__(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate from fewer tokens; sequences start with the whole prompt all the same."""
        generate = type(self._work.model).generate
        if inputs is not None:
            kwargs["input_ids"] = inputs
        if not has_pixels(kwargs):
            return generate(self._work.model, None, *args, **kwargs)
        if _setting(self._work.model, kwargs, "use_cache") is False:
            raise ValueError("compact needs the cache of generate; leave use_cache as it is")
        with self._work.lock:
            return self._shortened(generate, args, kwargs)

    def _shortened(
        self, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        work = self._work
        full = ids_of(kwargs)
        with torch.no_grad():
            short, shrunk, _ = work.shorten(kwargs, generating=True)
        length = short["input_ids"].shape[1]
        short |= _limits(work.model, short, full.shape[1] - length)
        repeats = ("num_beams", "num_return_sequences")
        beams = max(_setting(work.model, kwargs, name) or 1 for name in repeats)
        for modality, output in short["mm_encoder_outputs"].items():
            block = isinstance(output.pooler_output, Tensor) and len(output.pooler_output) == 1
            samples = work.encoded[modality].places[:, 0]
            if beams > 1 and block and bool((samples != samples[0]).any()):
                raise ValueError(
                    f"{modality} tokens of unequal number cannot be repeated for {beams} beams in "
                    "this model; give a budget that leaves as many in every prompt, or one prompt"
                )
        padded = not bool(short["attention_mask"].all())
        if work.inside is not None and (padded or work.inside.uneven):
            return self._one_by_one(generate, args, short)
        made = generate(work.model, None, *args, **short)
        if shrunk is None:
            return made
        if isinstance(made, Tensor):
            return _whole(full, made, length)
        made.sequences = _whole(full, made.sequences, length)
        return made

    def _one_by_one(
        self, generate: Callable[..., Any], args: tuple[Any, ...], batch: dict[str, Any]
    ) -> Tensor:
        """Generate for prompts of unequal length, or unlike visual tokens, one after another."""
        work = self._work
        assert work.inside is not None
        words = []
        for b, row in enumerate(batch["attention_mask"].bool()):
            one = slice(b, b + 1)
            outputs = {
                modality: tokens.replaced(tokens.places[:, 0] == b, tokens.rows, tokens.levels)
                for modality, tokens in work.encoded.items()
            }
            part = {
                "input_ids": batch["input_ids"][one, row],
                "attention_mask": batch["attention_mask"][one, row],
                "position_ids": batch["position_ids"][..., one, row],
                "mm_encoder_outputs": outputs,
            }
            part |= _limits(work.model, batch, len(row) - int(row.sum()))
            work.inside.only(b, row)
            made = generate(work.model, None, *args, **{**batch, **part})
            if not isinstance(made, Tensor):
                raise ValueError(
                    f"{work.method} runs prompts of unequal length one by one and returns "
                    "sequences only; leave out return_dict_in_generate"
                )
            words.append(made[:, int(row.sum()) :])
        length = max(w.shape[1] for w in words)
        pad = work.pad_id()
        new = torch.cat([nn.functional.pad(w, (0, length - w.shape[1]), value=pad) for w in words])
        return _whole(batch["input_ids"], new, 0)


def _limits(model: Any, given: dict[str, Any], gone: int) -> dict[str, int]:
    """The limits of length that are set; they count the prompt, which is `gone` places shorter."""
    limits = {name: _setting(model, given, name) for name in ("max_length", "min_length")}
    return {name: max(0, limit - gone) for name, limit in limits.items() if limit is not None}


def _setting(model: Any, given: dict[str, Any], name: str) -> Any:
    """What generation goes by: an argument, else the configuration given, else the model's own."""
    configs = given.get("generation_config"), model.generation_config
    values = [given.get(name), *(getattr(config, name, None) for config in configs)]
    return next((value for value in values if value is not None), None)


def _whole(full: Tensor, sequences: Tensor, length: int) -> Tensor:
    """Sequences with the whole prompt in front instead of the shorter one."""
    prompt = full.repeat_interleave(len(sequences) // len(full), 0).to(sequences.device)
    return torch.cat([prompt, sequences[:, length:]], dim=1)
