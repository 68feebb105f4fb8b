"""How evenly a codebook is used: share of codes in use, entropy and perplexity.

Shape suffixes: K codebooks, C codes of one codebook.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_COUNTED = 2**22  # counters held at most, over all codebooks: 32 MiB


def share_used(counts_C: Tensor) -> Tensor:
    """Return the share of codes that occur at all, given counts [..., C]."""
    return (counts_C > 0).double().mean(-1)


def entropy(counts_C: Tensor) -> Tensor:
    """Return the entropy in bits of a code drawn from counts [..., C]; 0 where nothing occurs."""
    p_C = counts_C.double() / counts_C.sum(-1, keepdim=True).clamp(min=1)
    nats: Tensor = torch.special.entr(p_C).sum(-1)
    return nats / math.log(2)


def perplexity(counts_C: Tensor) -> Tensor:
    """Return the number of equally likely codes of the same entropy, given counts [..., C]."""
    return torch.exp2(entropy(counts_C))


@dataclass(frozen=True, kw_only=True)
class CodebookUsage:
    """How the codebooks of some tokens are used; the tuples have one number per codebook.

    Attributes:
        num_tokens: Tokens counted.
        codebook_size: Codes in each codebook.
        used: Codes that occur.
        share: Their share of the codebook.
        entropy: Bits per code; at most log2(codebook_size).
        perplexity: 2 ** entropy.
    """

    num_tokens: int
    codebook_size: int
    used: tuple[int, ...]
    share: tuple[float, ...]
    entropy: tuple[float, ...]
    perplexity: tuple[float, ...]


class CodebookStats:
    """Counts codes in bounded memory, whatever the size of the codebook.

    Small codebooks get a counter per code, on the device of the codes; large ones a counter per
    code that has occurred.

    Args:
        codebook_size: Codes in each codebook.
        num_codebooks: Codes per token.
    """

    def __init__(self, codebook_size: int, num_codebooks: int = 1) -> None:
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.num_tokens = 0
        self._dense = codebook_size * num_codebooks <= MAX_COUNTED
        size = codebook_size if self._dense else 0
        self._counts = [torch.zeros(size, dtype=torch.int64) for _ in range(num_codebooks)]
        self._codes = [torch.zeros(0, dtype=torch.int64) for _ in range(num_codebooks)]

    def add(self, codes: Tensor) -> None:
        """Count int64 codes in 0..codebook_size - 1: [...], or [..., K] of several codebooks.

        Raises:
            ValueError: More than `MAX_COUNTED` different codes have occurred.
        """
        books = codes.unbind(-1) if self.num_codebooks > 1 else (codes,)
        self.num_tokens += books[0].numel()
        for book, book_codes in enumerate(books):
            flat = book_codes.reshape(-1)
            self._counts[book] = counts = self._counts[book].to(flat.device)
            if self._dense:
                counts.scatter_add_(0, flat, torch.ones_like(flat))
            else:
                self._merge(book, flat)

    def _merge(self, book: int, codes: Tensor) -> None:
        """Count codes of a large codebook: add up the counts of each distinct code."""
        old, counts = self._codes[book].to(codes.device), self._counts[book]
        distinct, place = torch.unique(torch.cat([old, codes]), return_inverse=True)
        if distinct.numel() * self.num_codebooks > MAX_COUNTED:
            raise ValueError(
                f"more than {MAX_COUNTED // self.num_codebooks} of {self.codebook_size} codes "
                "occur; count the codes of a shorter clip"
            )
        added = torch.cat([counts, torch.ones_like(codes)])
        self._counts[book] = torch.zeros_like(distinct).scatter_add_(0, place, added)
        self._codes[book] = distinct

    def usage(self) -> CodebookUsage:
        """Return the figures of everything counted so far."""
        used = [int((counts > 0).sum()) for counts in self._counts]
        bits = [float(entropy(counts)) for counts in self._counts]
        return CodebookUsage(
            num_tokens=self.num_tokens,
            codebook_size=self.codebook_size,
            used=tuple(used),
            share=tuple(n / self.codebook_size for n in used),
            entropy=tuple(bits),
            perplexity=tuple(2.0**b for b in bits),
        )
