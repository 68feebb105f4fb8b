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
from omnitok.model import Autoencoder
from omnitok.nn.patch import grid_of, pad_frames
from omnitok.nn.stack import StackCache
from omnitok.pixels import to_uint8
from omnitok.quantize.base import DiscreteQuantizer
from omnitok.stream import EncodeStream
from omnitok.tokens import TokenizerInfo, Tokens, frames_of_groups, num_groups
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
    """

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
        return self.model.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.model.embed.weight.dtype

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
            causal=True,
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
    def encode(self, x: Tensor) -> Tensor: ...
    @overload
    def encode(self, x: Sequence[Tensor]) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(self, x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Pixels to latents before quantization (KL: the mean).

        Args:
            x: [B, 3, T, H, W] float in [-1, 1], any T, H, W of at least 1; or a list of
                [3, T, H, W] of any sizes.

        Returns:
            [B, c, t, h, w]; or a list of [c, t, h, w].

        Raises:
            ValueError: The shape or type is not as above.
        """
        if not isinstance(x, Tensor):
            return [self.encode(clip[None])[0] for clip in x]
        if x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point() or 0 in x.shape:
            raise ValueError(
                f"encode got {x.dtype} {list(x.shape)}; expected float [B, 3, T, H, W] in [-1, 1]"
            )
        cache = StackCache()
        frames, pt = x.shape[2], self.patch[0]
        parts = []
        for group in range(num_groups(frames, pt)):
            first, stop = frames_of_groups(group, group + 1, frames, pt)
            parts.append(self._encode_group(x[:, :, first:stop], cache))
        grid = grid_of((x.shape[3], x.shape[4]), self.patch)
        return rearrange(torch.cat(parts, dim=1), "b g (y x) c -> b c g y x", y=grid[0])

    def _encode_group(self, x_BCTHW: Tensor, cache: StackCache) -> Tensor:
        """The frames of the next group, possibly too few, to latents [B, 1, N, c]."""
        frames = 1 if cache.time == 0 else self.patch[0]
        x = pad_frames(x_BCTHW.to(self.device, self.dtype), self.patch, frames)
        return self.model.encode_groups(x, cache)[..., : self.model.quantizer.dim]

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
        size = size or (1 + (t - 1) * pt, h * ph, w * pw)
        self._check_grid((t, h, w), size)
        cache = StackCache()
        parts = []
        for group in range(t):
            first, stop = frames_of_groups(group, group + 1, size[0], pt)
            parts.append(self._decode_group(z[:, :, group], cache)[:, :, : stop - first])
        return torch.cat(parts, dim=2)[..., : size[1], : size[2]]

    def _check_latents(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.model.quantizer.dim or 0 in z.shape:
            raise ValueError(
                f"got latents {list(z.shape)}; expected [B, {self.model.quantizer.dim}, t, h, w]"
            )

    def _check_grid(self, grid: Size, size: Size) -> None:
        wanted = (num_groups(size[0], self.patch[0]), *grid_of(size[1:], self.patch))
        if min(size) < 1 or wanted != tuple(grid):
            raise ValueError(
                f"size={size} needs a grid of {wanted} tokens with patch {self.patch}, got "
                f"{tuple(grid)}"
            )

    def _decode_group(self, z_BcHW: Tensor, cache: StackCache) -> Tensor:
        """Latents [B, c, h, w] of the next group to pixels of whole patches."""
        grid = (z_BcHW.shape[2], z_BcHW.shape[3])
        z = rearrange(z_BcHW.to(self.device, self.dtype), "b c y x -> b 1 (y x) c")
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
        with self.stream() as stream:
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
        return torch.cat(list(self.stream_decode([tokens])))

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
            uint8 [n, 3, H, W] frames on the CPU: one, then `patch[0]` of them at a time.

        Raises:
            ValueError: A part has another size or kind than the first, or comes from other
                weights, or does not follow the one before it.
        """
        cache = StackCache()
        first_size: tuple[int, int] | None = None
        pt, ended = self.patch[0], False
        for part in parts:
            self._check_part(part, first_size)
            first_size = part.size[1:]
            left = part.size[0]
            if left and (ended or num_groups(left, pt, causal=cache.time == 0) != part.grid[0]):
                raise ValueError(
                    f"a part of {left} frames in {part.grid[0]} groups cannot follow {cache.time} "
                    "groups of this clip; give all parts of one clip in time order"
                )
            for z in self._latents(part):
                x = self._decode_group(z, cache)
                count = min(left, x.shape[2])
                left, ended = left - count, count < x.shape[2]
                frames = x[0, :, :count, : part.size[1], : part.size[2]]
                yield to_uint8(frames).transpose(0, 1).cpu()

    def _latents(self, part: Tokens) -> Iterator[Tensor]:
        """[1, c, h, w] latents of each group of a part."""
        for group in range(part.grid[0]):
            if part.codes is not None:
                yield self.dequantize(part.codes[None, group : group + 1])[:, :, 0]
            else:
                assert part.latents is not None
                yield rearrange(part.latents[group], "h w c -> 1 c h w")

    def _check_part(self, part: Tokens, size: tuple[int, int] | None) -> None:
        if (part.codes is None) != (self.codebook_size is None):
            kind = "latents" if part.codes is None else "codes"
            raise ValueError(
                f"the tokens hold {kind}, which tokenizer {self.config.name!r} does not decode; "
                "load the tokenizer that made them"
            )
        if part.info is not None and part.info.weights_sha256 != self.weights_sha256:
            raise ValueError(
                f"the tokens were made by {part.info.name!r} with weights "
                f"{part.info.weights_sha256[:12]}, but {self.config.name!r} has "
                f"{self.weights_sha256[:12]}; load the tokenizer that made them"
            )
        if size is not None and part.size[1:] != size:
            raise ValueError(f"a part of {part.size[1:]} pixels follows one of {size} pixels")
        if part.codes is not None and part.codes.numel():
            worst = int(part.codes.max()), int(part.codes.min())
            if worst[0] >= (self.codebook_size or 0) or worst[1] < 0:
                raise ValueError(
                    f"codes reach from {worst[1]} to {worst[0]}; expected 0 to "
                    f"{(self.codebook_size or 0) - 1}"
                )
        if part.size[0]:
            self._check_grid_of_part(part)

    def _check_grid_of_part(self, part: Tokens) -> None:
        wanted = grid_of(part.size[1:], self.patch)
        if part.grid[1:] != wanted:
            raise ValueError(
                f"frames of {part.size[1:]} pixels need {wanted} tokens, got {part.grid[1:]}"
            )
