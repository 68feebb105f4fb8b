"""The tokenizer that everybody uses: pixels to tokens and back.

Whole clips are worked on group by group with the same steps as a stream, so the tokens of a stream
equal those of the whole clip to the bit, whatever the cuts.

Shape suffixes: B batch, T frames, H and W pixels; t, h, w tokens; c latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from einops import rearrange
from torch import Tensor

from omnitok.config import TokenizerConfig
from omnitok.groups import first_frame
from omnitok.model import Autoencoder
from omnitok.nn.patch import grid_of, pad_frames
from omnitok.nn.stack import StackCache
from omnitok.pixels import to_uint8
from omnitok.quantize.base import DiscreteQuantizer
from omnitok.quantize.kl import KL
from omnitok.stream import EncodeStream
from omnitok.token_layout import window_of
from omnitok.tokens import TokenizerInfo, Tokens, TokensError, num_groups, refuse_others
from omnitok.version import VERSION

Size = tuple[int, int, int]
PROMISES = ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8")


class Tokenizer:
    """Turns images and videos of any size and length into tokens, and back.

    Attributes:
        config: The full config.
        model: The network, in eval mode.
        weights_sha256: Identifies the weights (see `omnitok.checkpoint.hash_weights`).
        promises: For P1 to P8 (docs/promises.md) True, or a sentence why it does not hold.
        causal: Whether frame 0 is a group of its own.
        window: Frames of the windows that `tokenize` and `stream` cut long clips into, where a
            network cannot stream; None for no windows.
    """

    causal = True
    window: int | None = None

    def __init__(self, model: Autoencoder, weights_sha256: str) -> None:
        self.model = model.eval()
        self.config: TokenizerConfig = model.config
        self.weights_sha256 = weights_sha256
        self.promises: dict[str, bool | str] = dict.fromkeys(PROMISES, True)

    @property
    def patch(self) -> Size:
        """(frames, height, width) of a patch in pixels."""
        return self.config.patch

    @property
    def codebook_size(self) -> int | None:
        """Number of different codes (of each codebook); None for continuous tokens."""
        return self.model.quantizer.codebook_size

    @property
    def num_parameters(self) -> int:
        """Weights in the network."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.model.parameters()).dtype

    @property
    def info(self) -> TokenizerInfo:
        """What a token file records about this tokenizer."""
        quantizer = self.model.quantizer
        discrete = quantizer.codebook_size is not None
        return TokenizerInfo(
            name=self.config.name,
            config=self.config.to_dict(),
            weights_sha256=self.weights_sha256,
            version=VERSION,
            kind="codes" if discrete else "latents",
            codebook_size=quantizer.codebook_size,
            num_codebooks=quantizer.num_codebooks if discrete else 1,
            levels=quantizer.levels,
            index_order=quantizer.index_order,
            patch=self.patch,
            causal=self.causal,
            latent_dim=quantizer.dim,
        )

    @property
    def compute(self) -> dict[str, Any]:
        """What a token file records about the machine's arithmetic."""
        return {
            "dtype": str(self.dtype)[6:],
            "device": self.device.type,
            "torch": str(torch.__version__),
            "deterministic": self.device.type == "cpu",
        }

    # pixels <-> latents

    @overload
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    @overload
    def encode(
        self, x: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(
        self, x: Tensor | Sequence[Tensor], generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        """Pixels to latents before quantization (KL: the mean).

        Args:
            x: [B, 3, T, H, W] float in [-1, 1], any T, H, W of at least 1; or a list of
                [3, T, H, W] of any sizes.
            generator: KL: source of the noise (on the device of the network) of a sample that is
                to be drawn instead.

        Returns:
            [B, c, t, h, w]; or a list of [c, t, h, w].

        Raises:
            ValueError: The shape or type is not as above, or there is nothing to sample.
            TypeError: Something else than tensors.
        """
        if isinstance(x, list | tuple):
            return [self.encode(clip[None], generator)[0] for clip in x]
        if not isinstance(x, Tensor):
            raise TypeError(
                f"encode got a {type(x).__name__}; expected a float tensor [B, 3, T, H, W] or a "
                "list of [3, T, H, W]"
            )
        if x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point() or 0 in x.shape:
            raise ValueError(
                f"encode got {x.dtype} {list(x.shape)}; expected float [B, 3, T, H, W] in [-1, 1]"
            )
        if generator is not None and self.codebook_size is not None:
            raise ValueError(
                f"tokenizer {self.config.name!r} is discrete and has nothing to sample; leave "
                "generator out"
            )
        cache, parts, first = StackCache(), [], 0
        while first < x.shape[2]:
            stop = first + self._frames_at_once(cache)
            parts.append(self._encode_next(x[:, :, first:stop], cache, generator))
            first = stop
        grid = self.grid((x.shape[3], x.shape[4]))
        return rearrange(torch.cat(parts, dim=1), "b g (y x) c -> b c g y x", y=grid[0])

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) in tokens of frames of (H, W) pixels."""
        return grid_of(size, self.patch)

    def _frames_at_once(self, cache: StackCache) -> int:
        """How many frames `_encode_next` takes next, fewer only at the end of a clip."""
        return 1 if cache.time == 0 else self.patch[0]

    def _groups_at_once(self, cache: StackCache) -> int:
        """How many groups `_decode_next` takes next, fewer only at the end of a clip."""
        return 1

    def _encode_next(
        self, x_BCTHW: Tensor, cache: StackCache, generator: torch.Generator | None = None
    ) -> Tensor:
        """The next frames, possibly too few, to latents [B, G, N, c] (KL: means or samples)."""
        frames = 1 if cache.time == 0 else self.patch[0]
        x = pad_frames(x_BCTHW.to(self.device, self.dtype), self.patch, frames)
        z, quantizer = self.model.encode_groups(x, cache), self.model.quantizer
        if generator is not None and isinstance(quantizer, KL):
            return quantizer.sample(z, generator)
        return z[..., : quantizer.dim]

    @torch.no_grad()
    def decode(self, z: Tensor, size: Size | None = None) -> Tensor:
        """Latents to pixels.

        Args:
            z: [B, c, t, h, w] latents, after quantization if the tokenizer is discrete.
            size: (T, H, W) of the result; None gives whole patches and groups.

        Returns:
            [B, 3, T, H, W] float, not clamped.

        Raises:
            ValueError: The shape is wrong, or `size` is not one that encodes to this grid.
        """
        self._check_latents(z)
        t, h, w = z.shape[2:]
        pt, ph, pw = self.patch
        size = size or (first_frame(t, pt, self.causal), h * ph, w * pw)
        self._check_grid((t, h, w), size)
        cache, parts, first = StackCache(), [], 0
        while first < t:
            stop = first + self._groups_at_once(cache)
            parts.append(self._decode_next(z[:, :, first:stop], cache))
            first = stop
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return whole[:, :, : size[0], : size[1], : size[2]]

    def _check_latents(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.model.quantizer.dim or 0 in z.shape:
            raise ValueError(
                f"got latents {list(z.shape)}; expected [B, {self.model.quantizer.dim}, t, h, w]"
            )

    def _check_grid(self, grid: Size, size: Size) -> None:
        if len(size) != 3 or min(size) < 1:
            raise ValueError(f"size={size}; expected (T, H, W), each at least 1")
        wanted = (num_groups(size[0], self.patch[0], self.causal), *self.grid(size[1:]))
        if wanted != tuple(grid):
            raise ValueError(
                f"size={size} needs a grid of {wanted} tokens with patch {self.patch}, got "
                f"{tuple(grid)}"
            )

    def _decode_next(self, z_BcGHW: Tensor, cache: StackCache) -> Tensor:
        """Latents of the next groups to pixels of whole patches and groups."""
        grid = (z_BcGHW.shape[3], z_BcGHW.shape[4])
        z = rearrange(z_BcGHW.to(self.device, self.dtype), "b c g y x -> b g (y x) c")
        return self.model.decode_groups(z, grid, cache)

    # latents <-> codes

    def _need_codes(self) -> None:
        if self.codebook_size is None:
            raise TypeError(
                f"tokenizer {self.config.name!r} is continuous and has no codes; use encode and "
                "decode, or Tokens.latents"
            )

    def _codes(self, z: Tensor) -> Tensor:
        quantizer = self.model.quantizer
        assert isinstance(quantizer, DiscreteQuantizer)
        return quantizer.latents_to_codes(z)

    @torch.no_grad()
    def quantize(self, z: Tensor) -> Tensor:
        """[B, c, t, h, w] latents to [B, t, h, w] (K codebooks: [B, t, h, w, K]) int64 codes."""
        self._need_codes()
        self._check_latents(z)
        return self._codes(rearrange(z.to(self.device), "b c t h w -> b t h w c"))

    @torch.no_grad()
    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes to the [B, c, t, h, w] latents that `decode` takes."""
        self._need_codes()
        many = self.model.quantizer.num_codebooks
        if codes.ndim != 4 + (many > 1):
            axes = "[B, t, h, w]" if many == 1 else f"[B, t, h, w, {many}]"
            raise ValueError(f"dequantize got {list(codes.shape)}; expected int64 {axes}")
        z = self.model.quantizer.codes_to_latents(codes.to(self.device))
        return rearrange(z, "b t h w c -> b c t h w").to(self.dtype)

    # frames <-> tokens

    @overload
    def tokenize(self, frames: Tensor) -> Tokens: ...
    @overload
    def tokenize(self, frames: Sequence[Tensor]) -> list[Tokens]: ...
    def tokenize(self, frames: Tensor | Sequence[Tensor]) -> Tokens | list[Tokens]:
        """Frames to tokens.

        Args:
            frames: uint8 [T, 3, H, W] of any T, H, W of at least 1, or a list of them.

        Returns:
            Tokens on the CPU, or a list of them.

        Raises:
            ValueError: The shape is not as above.
            TypeError: Something else than tensors.
        """
        if isinstance(frames, list | tuple):
            return [self.tokenize(clip) for clip in frames]
        if not isinstance(frames, Tensor):
            raise TypeError(
                f"tokenize got a {type(frames).__name__}; expected a uint8 tensor [T, 3, H, W] or "
                "a list of them"
            )
        with EncodeStream(self) as stream:
            parts = [stream.push(frames), stream.finish()]
        return Tokens.cat(parts)

    @overload
    def detokenize(self, tokens: Tokens) -> Tensor: ...
    @overload
    def detokenize(self, tokens: Sequence[Tokens]) -> list[Tensor]: ...
    def detokenize(self, tokens: Tokens | Sequence[Tokens]) -> Tensor | list[Tensor]:
        """Tokens to uint8 [T, 3, H, W] frames of the size and number they were made from."""
        if not isinstance(tokens, Tokens):
            return [self.detokenize(item) for item in tokens]
        nothing = torch.empty(0, 3, *tokens.size[1:], dtype=torch.uint8)
        return torch.cat([nothing, *self.stream_decode([tokens])])

    def reconstruct(self, frames: Tensor) -> Tensor:
        """`detokenize(tokenize(frames))`."""
        return self.detokenize(self.tokenize(frames))

    def stream(self) -> EncodeStream:
        """A stream that takes frames as they come; use it as a context manager."""
        return EncodeStream(self)

    @torch.no_grad()
    def stream_decode(self, parts: Iterable[Tokens]) -> Iterator[Tensor]:
        """Decode consecutive parts of one clip, group by group, in bounded memory.

        Args:
            parts: Tokens in time order, cut anywhere between groups.

        Yields:
            uint8 [n, 3, H, W] frames on the CPU, group by group or window by window.

        Raises:
            TokensError: A part has another size or kind than the first, or comes from other
                weights, or does not follow the one before it.
        """
        cache, waiting = StackCache(), list[Tensor]()
        first: Tokens | None = None
        groups = frames = done = 0  # groups and frames that came, and frames that are decoded
        for part in parts:
            first = first or part
            self._check_part(part, first, groups, frames)
            frames += part.size[0]
            window = window_of(part.preprocess)
            window_groups = num_groups(window, self.patch[0], self.causal) if window else None
            for z in self._latents(part):
                waiting.append(z)
                groups += 1
                if len(waiting) == (window_groups or self._groups_at_once(cache)):
                    decoded = self._decode_waiting(waiting, cache, frames - done, part.size[1:])
                    done += len(decoded)
                    yield decoded
        if first is not None and waiting:
            yield self._decode_waiting(waiting, cache, frames - done, first.size[1:])

    def _decode_waiting(
        self, waiting: list[Tensor], cache: StackCache, most: int, size: tuple[int, int]
    ) -> Tensor:
        """Decode [1, c, h, w] latents of some groups to at most so many frames; empty the list."""
        x = self._decode_next(torch.stack(waiting, dim=2), cache)
        waiting.clear()
        return to_uint8(x[0, :, :most, : size[0], : size[1]]).transpose(0, 1).cpu()

    def _latents(self, part: Tokens) -> Iterator[Tensor]:
        """[1, c, h, w] latents of each group of a part."""
        for group in range(part.grid[0]):
            if part.codes is not None:
                yield self.dequantize(part.codes[None, group : group + 1])[:, :, 0]
            else:
                assert part.latents is not None
                yield rearrange(part.latents[group], "h w c -> 1 c h w")

    def _check_part(self, part: Tokens, first: Tokens, groups: int, frames: int) -> None:
        """Refuse a part that is not ours, or cannot follow so many groups and frames."""
        refuse_others(part, self)
        if part.placement is not None:
            raise TokensError(
                "the tokens are of a 3D asset, which has no frames; use shapes.detokenize"
            )
        window = window_of(part.preprocess)
        if (part.size[1:], window) != (first.size[1:], window_of(first.preprocess)):
            raise TokensError(
                f"a part of {part.size[1:]} pixels (window {window}) follows one of "
                f"{first.size[1:]} pixels (window {window_of(first.preprocess)})"
            )
        if part.size[0]:
            self._check_place(part, (self.patch[0], self.causal, window), groups, frames)

    def _check_place(
        self, part: Tokens, grouping: tuple[int, bool, int | None], groups: int, frames: int
    ) -> None:
        ended = frames != first_frame(groups, *grouping)
        if ended or num_groups(part.size[0], *grouping, groups) != part.grid[0]:
            raise TokensError(
                f"a part of {part.size[0]} frames in {part.grid[0]} groups cannot follow {groups} "
                "groups of this clip; give all parts of one clip in time order"
            )
        wanted = self.grid(part.size[1:])
        if part.grid[1:] != wanted:
            raise TokensError(
                f"frames of {part.size[1:]} pixels need {wanted} tokens, got {part.grid[1:]}"
            )
