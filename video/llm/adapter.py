"""Tokens of our own tokenizers into a language model: projection, positions and times.

Shape suffixes: B clips, K visual tokens, L places of a prompt, C numbers of a token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnitok.token_facts import TokenizerInfo
from video.compress.files import Compact
from video.llm.prompt import IGNORED

WAVES = 16  # of each coordinate
FASTEST, SLOWEST = 32.0, 1 / 4096  # turns of a wave in a second, or over a side of the frame


class Adapter(nn.Module):
    """Makes embeddings of tokens, compact or not, as a language model takes them.

    A token's place in the frame, its time in seconds and how many tokens it stands for are turned
    into waves and added, so that clips of any size, rate and length go in, and merged and pruned
    ones as well.

    Args:
        info: The tokenizer that makes the tokens.
        width: Of the language model.
        hidden: Between the two layers of the projection.
        embed: Width of the table of codes, where the tokenizer makes codes.
    """

    def __init__(self, info: TokenizerInfo, width: int, hidden: int = 256, embed: int = 64) -> None:
        super().__init__()
        self.info = info
        self.codes: nn.ModuleList | None = None
        size = info.latent_dim
        if info.codebook_size is not None:
            books = [nn.Embedding(info.codebook_size, embed) for _ in range(info.num_codebooks)]
            self.codes, size = nn.ModuleList(books), embed * info.num_codebooks
        self.norm = nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, hidden), nn.Linear(hidden, width)
        self.place = nn.Linear(3 * 2 * WAVES + 1, width)

    def forward(self, clips: Sequence[Compact]) -> tuple[Tensor, Tensor]:
        """Embed clips.

        Args:
            clips: Their tokens, as `compress_tokens`, `whole_tokens` or `read_compact` give them.

        Returns:
            [B, K, D] embeddings, zeros after the last token of a clip, and [B, K] bool, True where
            there is a token.

        Raises:
            ValueError: There are no clips, or tokens are of another kind.
        """
        if not clips:
            raise ValueError("there are no clips to embed; give at least one")
        device = self.down.weight.device
        wrong = [c for c in clips if c.data.is_floating_point() != (self.codes is None)]
        if wrong:
            kind = "latents" if wrong[0].data.is_floating_point() else "codes"
            raise ValueError(
                f"a clip holds {kind}, but this adapter is for {self.info.name}, which makes "
                f"{self.info.kind}"
            )
        data = pad_sequence([c.data for c in clips], batch_first=True).to(device)
        places = pad_sequence([_places(c) for c in clips], batch_first=True).to(device)
        counts = torch.tensor([len(c.data) for c in clips], device=device)
        mask = torch.arange(data.shape[1], device=device) < counts[:, None]
        if self.codes is not None:
            data = data if data.ndim == 3 else data[..., None]
            data = torch.cat([table(data[..., i]) for i, table in enumerate(self.codes)], dim=-1)
        dtype = self.down.weight.dtype
        x_BKD = self.down(nn.functional.gelu(self.up(self.norm(data.to(dtype)))))
        x_BKD = x_BKD + self.place(places.to(dtype))
        return x_BKD * mask[..., None], mask

    def inputs(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        clips: Sequence[Compact],
        placeholder: int,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Tensor]:
        """Everything a language model needs to read prompts with a clip in each.

        Args:
            model: A language model of `transformers`; gives the embeddings of words.
            prompts: Ids of words, one of them `placeholder` where the clip goes.
            clips: One for each prompt.
            placeholder: The id that stands for the clip.
            labels: Ids to predict, one for each id of the prompts; -100 for none.

        Returns:
            `inputs_embeds` [B, L, D], `attention_mask` and `position_ids` [B, L], padded on the
            left, and `labels` [B, L] where they are given.

        Raises:
            ValueError: A prompt has not exactly one placeholder.
        """
        if len(prompts) != len(clips):
            raise ValueError(f"there are {len(prompts)} prompts and {len(clips)} clips")
        x_BKD, mask = self(clips)
        table = model.get_input_embeddings()
        rows, goals = [], []
        for number, prompt in enumerate(prompts):
            if list(prompt).count(placeholder) != 1:
                raise ValueError(
                    f"prompt {number} has {list(prompt).count(placeholder)} placeholders; give "
                    f"exactly one id {placeholder} where the clip goes"
                )
            at = list(prompt).index(placeholder)
            words = table(torch.tensor(prompt, device=x_BKD.device))
            clip = x_BKD[number, mask[number]].to(words.dtype)
            rows.append(torch.cat([words[:at], clip, words[at + 1 :]]))
            if labels is not None:
                given = torch.tensor(labels[number], device=x_BKD.device)
                hole = given.new_full((len(clip),), IGNORED)
                goals.append(torch.cat([given[:at], hole, given[at + 1 :]]))
        attended = _left([torch.ones(len(row), dtype=torch.long) for row in rows], 0)
        attended = attended.to(x_BKD.device)
        made = {
            "inputs_embeds": _left(rows, 0),
            "attention_mask": attended,
            "position_ids": (attended.cumsum(1) - 1).clamp(min=0),
        }
        return made | ({"labels": _left(goals, IGNORED)} if goals else {})


def _left(rows: list[Tensor], fill: int) -> Tensor:
    """Stack rows of unequal length, with `fill` on the left."""
    return pad_sequence(rows, batch_first=True, padding_value=fill, padding_side="left")


def _places(clip: Compact) -> Tensor:
    """[K, 6 * WAVES + 1] waves of time, row and column, and the log of the size."""
    _, h, w = clip.grid
    at = clip.positions
    rows, columns = (at[:, 1] + 0.5) / h, (at[:, 2] + 0.5) / w
    axes = torch.stack([clip.seconds - clip.seconds[:1], rows, columns], dim=1)
    steps = torch.linspace(0, 1, WAVES, dtype=torch.float64)
    turns = FASTEST * (SLOWEST / FASTEST) ** steps
    angles = axes[..., None] * (2 * torch.pi * turns)
    size = clip.plan.size.clamp(min=1e-6).double().log()[:, None]
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.cat([waves, size], dim=1).float()
