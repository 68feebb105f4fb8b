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
        work = self._work
        generate = type(work.model).generate
        if inputs is not None:
            kwargs["input_ids"] = inputs
        if not has_pixels(kwargs):
            return generate(work.model, None, *args, **kwargs)
        if kwargs.get("use_cache") is False:
            raise ValueError("compact needs the cache of generate; leave use_cache as it is")
        full = ids_of(kwargs)
        with torch.no_grad():
            short, shrunk, _ = work.shorten(kwargs, generating=True)
        length = short["input_ids"].shape[1]
        for name in ("max_length", "min_length"):  # both count the prompt
            if short.get(name) is not None:
                short[name] -= full.shape[1] - length
        beams = max(short.get("num_beams") or 1, short.get("num_return_sequences") or 1)
        for modality, output in short["mm_encoder_outputs"].items():
            if beams > 1 and len(output.pooler_output) < len(full) != 1:
                raise ValueError(
                    f"{modality} tokens of unequal number cannot be repeated for {beams} beams in "
                    "this model; give a budget that leaves as many in every prompt, or one prompt"
                )
        if work.inside is not None and not bool(short["attention_mask"].all()):
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
        """Generate for prompts of unequal length, each as long as it is."""
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


def _whole(full: Tensor, sequences: Tensor, length: int) -> Tensor:
    """Sequences with the whole prompt in front instead of the shorter one."""
    prompt = full.repeat_interleave(len(sequences) // len(full), 0).to(sequences.device)
    return torch.cat([prompt, sequences[:, length:]], dim=1)
