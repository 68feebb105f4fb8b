"""A worked example: our own tokens, and a quarter of them, into a small language model.

    python -m tools.adapter_example

Clips of a coloured square that moves over a still picture of noise are tokenized with `tiny-kl`.
A small language model with random weights and an `Adapter` learn to answer two questions about
them: which colour, and which way. Every batch sees all tokens or a quarter of them by chance; at
the end both are asked about clips that training never saw. With seed 0 and the defaults, a quarter
of the tokens answers 89.8 % of the questions and all of them 87.5 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from omnitok import Tokenizer
    from video.compress.files import Compact

SIDE, FRAMES, SQUARE = 64, 9, 16  # pixels, frames, pixels
SPEED, SLACK = 2, 2  # pixels a frame; pixels that the start is off the middle
COLOURS = ((220, 40, 40), (40, 200, 40), (50, 80, 230), (230, 210, 40))
WAYS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows and columns
CLIP, WHICH_COLOUR, WHICH_WAY, ANSWER, FIRST_ANSWER = 0, 1, 2, 3, 4
VOCABULARY = FIRST_ANSWER + len(COLOURS) + len(WAYS)
LEARNING_RATE = 2e-3


@dataclass
class Example:
    """A clip and what is to be said of it.

    Attributes:
        whole: All its tokens.
        few: A quarter of them.
        colour: Number of its colour.
        way: Number of its way.
    """

    whole: Compact
    few: Compact
    colour: int
    way: int


def main() -> None:
    """Train, ask, and print a table."""
    import torch

    import omnitok
    from tools.commands.eval_table import table

    parser = argparse.ArgumentParser(description="Train an adapter on a toy task.")
    parser.add_argument("--clips", type=int, default=600, help="for training (default: 600)")
    parser.add_argument("--asked", type=int, default=200, help="held-out clips (default: 200)")
    parser.add_argument("--steps", type=int, default=900, help="of training (default: 900)")
    parser.add_argument("--method", default="tome", help="of compression (default: tome)")
    parser.add_argument("--budget", type=float, default=0.25, help="default: 0.25")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    tok = omnitok.load("tiny-kl")
    clips = list(examples(tok, args.clips + args.asked, args.seed, args.method, args.budget))
    print(f"{len(clips)} clips tokenized in {time.perf_counter() - started:.0f} s")
    started = time.perf_counter()
    learner = Learner(tok, args.seed)
    for step in range(args.steps):
        loss = learner.step(clips[: args.clips], args.steps)
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss:.3f}")
    print(f"trained in {time.perf_counter() - started:.0f} s")
    rows = [["tokens", "kept", "colour", "way", "both kinds of question"]]
    for name, few in (("all", False), (f"{args.method} at {args.budget}", True)):
        kept, colour, way = learner.accuracy(clips[args.clips :], few)
        mean = (colour + way) / 2
        rows.append([name, f"{kept:.0f}", f"{colour:.1%}", f"{way:.1%}", f"{mean:.1%}"])
    print("\n".join(table(rows)))


def examples(
    tok: Tokenizer, count: int, seed: int, method: str = "tome", budget: float = 0.25
) -> Iterator[Example]:
    """Clips with a seed, tokenized and compressed."""
    import torch

    from video.compress.files import compress_tokens, whole_tokens

    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        colour, way = number % len(COLOURS), number // len(COLOURS) % len(WAYS)
        tokens = tok.tokenize(draw(colour, way, generator))
        few = compress_tokens(tokens, method, budget)
        yield Example(whole_tokens(tokens), few, colour, way)


def draw(colour: int, way: int, generator: torch.Generator) -> Tensor:
    """uint8 [FRAMES, 3, SIDE, SIDE]: a square that moves over noise, from about the middle."""
    import torch

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    coarse = torch.randint(60, 180, (1, 3, 8, 8), generator=generator).float()
    picture = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")[0]
    frames = picture.repeat(FRAMES, 1, 1, 1)
    start = [(SIDE - SQUARE) // 2 + between(-SLACK, SLACK) for _ in range(2)]
    for t in range(FRAMES):
        y, x = (s + d * SPEED * t for s, d in zip(start, WAYS[way], strict=True))
        ink = torch.tensor(COLOURS[colour], dtype=torch.float32)[:, None, None]
        frames[t, :, y : y + SQUARE, x : x + SQUARE] = ink
    return frames.round().to(torch.uint8)


class Learner:
    """A small language model and an adapter, trained together.

    Args:
        tok: The tokenizer of the clips.
        seed: Of the weights and of the order of clips.
        width: Of the language model.
    """

    def __init__(self, tok: Tokenizer, seed: int = 0, width: int = 96) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from video.llm import Adapter

        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = LlamaForCausalLM(config)
        self.adapter = Adapter(tok.info, width)
        parameters = [*self.model.parameters(), *self.adapter.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98))
        self.done = 0

    def _inputs(self, batch: list[Example], few: bool, colours: list[bool]) -> dict[str, Any]:
        """Prompts with a clip, a question and its answer."""
        prompts, labels = [], []
        for example, colour in zip(batch, colours, strict=True):
            answer = example.colour if colour else len(COLOURS) + example.way
            question = WHICH_COLOUR if colour else WHICH_WAY
            prompts.append([CLIP, question, ANSWER, FIRST_ANSWER + answer])
            labels.append([-100, -100, -100, FIRST_ANSWER + answer])
        clips = [e.few if few else e.whole for e in batch]
        return self.adapter.inputs(self.model, prompts, clips, CLIP, labels)

    def step(self, clips: list[Example], steps: int, size: int = 16) -> float:
        """One step of training; returns the loss."""
        import torch

        index = torch.randint(len(clips), (size,), generator=self.generator).tolist()
        coins = torch.randint(2, (size + 1,), generator=self.generator).bool().tolist()
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self.done + 1) / 30)
            group["lr"] = LEARNING_RATE * warm * max(0.02, 1 - self.done / steps)
        inputs = self._inputs([clips[i] for i in index], coins[-1], coins[:-1])
        loss = self.model(**inputs).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return float(loss.detach())

    def accuracy(self, clips: list[Example], few: bool) -> tuple[float, float, float]:
        """Mean number of tokens, and how often the colour and the way are right."""
        import torch

        right = {True: 0, False: 0}
        kept = 0
        with torch.no_grad():
            for colour in right:
                for start in range(0, len(clips), 32):
                    batch = clips[start : start + 32]
                    inputs = self._inputs(batch, few, [colour] * len(batch))
                    said = self.model(**inputs).logits[:, -2].argmax(-1)
                    right[colour] += int((said == inputs["labels"][:, -1]).sum())
                    kept += sum(len((e.few if few else e.whole).data) for e in batch)
        return kept / (2 * len(clips)), right[True] / len(clips), right[False] / len(clips)


if __name__ == "__main__":
    main()
