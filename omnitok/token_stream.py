"""Token files written and read part by part, so that hours of video need no memory for their codes.

A streamed file has the same bytes as `Tokens.cat(parts).save(path)`.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from omnitok.metrics.codebook import CodebookStats, CodebookUsage
from omnitok.token_facts import Preprocess, Source, TokenizerInfo, TokensError, conform
from omnitok.token_file import CHUNK, pieces, write_errors
from omnitok.token_layout import TokenFile, to_rows
from omnitok.tokens import HasWeights, Run, Tokens, tokens_of


class TokenWriter:
    """Writes one token file from parts that follow each other in time.

    Use as a context manager: the file appears, whole, when the block ends well, and not at all
    when it ends with an exception. Codes wait in an unnamed temporary file beside it. The facts
    below may be set until then; those left None are taken from the first part.

    Args:
        path: The file; an existing one is replaced.
        info: The tokenizer.
        source: Where the clip came from.
        preprocess: What was done to it.
        compute: How the tokens were computed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        info: TokenizerInfo | None = None,
        source: Source | None = None,
        preprocess: Preprocess | None = None,
        compute: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.info = info
        self.source = source
        self.preprocess = preprocess
        self.compute = compute
        self._run: Run | None = None
        self._digest = hashlib.sha256()
        with write_errors(self.path):
            self._spool: IO[bytes] = tempfile.TemporaryFile(dir=self.path.parent)

    def write(self, part: Tokens) -> None:
        """Add the next part.

        Raises:
            TokensError: It does not follow the parts before it, holds a value that is out of range
                or not finite, or the disk is full.
        """
        if self.info is None:
            self.info = part.info
        if part.info is None:
            part = replace(part, info=self.info)
        if self.info is None or part.info != self.info:
            raise TokensError(f"{self.path} needs parts of one known tokenizer; set info")
        if self._run is None:
            self._run = Run(part)
        rows = to_rows(part.data, self.info, self._run.grid[0])
        self._run.add(part)
        self._digest.update(rows)
        with write_errors(self.path):
            self._spool.write(rows)

    def _finish(self) -> None:
        if self._run is None:
            raise TokensError(f"no tokens were written to {self.path}; write at least one part")
        first = self._run.first
        compute = first.compute if self.compute is None else self.compute
        layout = replace(
            first.layout(),
            size=self._run.size,
            grid=self._run.grid,
            pts=self._run.pts,
            source=self.source or first.source,
            preprocess=self.preprocess or first.preprocess,
            compute=conform("compute", compute, dict[str, Any] | None),
        )
        with write_errors(self.path):
            num_bytes = self._spool.tell()
            layout.write(self.path, self._digest.hexdigest(), pieces(self._spool, 0, num_bytes))

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._spool:
            if kind is None:
                self._finish()


class TokenReader:
    """Reads one token file part by part, after checking all of it in bounded memory.

    Iterating gives Tokens of `groups` time groups each, in order, as often as wanted.

    Args:
        path: The file.
        tokenizer: The tokenizer that is going to decode it; others' tokens are refused.
        weights_sha256: The same, by the hash of its weights.
        force: Take tokens of other weights all the same.
        groups: Time groups in a part.

    Raises:
        TokensError: As `Tokens.load`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: HasWeights | None = None,
        weights_sha256: str | None = None,
        force: bool = False,
        groups: int = 16,
    ) -> None:
        if groups < 1:
            raise TokensError(f"groups is {groups}; a part needs at least 1")
        if tokenizer is not None:
            weights_sha256 = tokenizer.weights_sha256
        self.groups = groups
        self._file = TokenFile(path, weights_sha256=weights_sha256, force=force)
        layout = self._file.layout
        self.header = self._file.facts
        self.info = layout.info
        self.size = layout.size
        self.grid = layout.grid
        self.pts = layout.pts
        self.source = layout.source
        self.preprocess = layout.preprocess
        self.compute = layout.compute
        self.plan = layout.plan
        self.placement = layout.placement
        self.bits_per_token = layout.info.bits_per_token(layout.dtype.itemsize)
        try:
            for _ in self._values():
                pass
        except TokensError:
            self.close()
            raise

    def _values(self) -> Iterator[Tensor]:
        """Yield all codes or latents, about a megabyte at a time."""
        step = max(1, CHUNK // max(1, self._file.group_bytes))
        for start in range(0, self.grid[0], step):
            yield self._file.read(start, min(start + step, self.grid[0]))

    def __iter__(self) -> Iterator[Tokens]:
        for start in range(0, self.grid[0], self.groups):
            yield tokens_of(self._file, start, min(start + self.groups, self.grid[0]))

    def usage(self) -> CodebookUsage | None:
        """Return how the codebook is used; None for latents.

        Raises:
            ValueError: More different codes than `CodebookStats` counts.
        """
        if self.info.codebook_size is None:
            return None
        stats = CodebookStats(self.info.codebook_size, self.info.num_codebooks)
        for codes in self._values():
            stats.add(codes)
        return stats.usage()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "TokenReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
