"""The AToken autoencoder: the shared transformer with what is truly AToken's own around it.

Its own are the learned position table, resampled to every item's grid, and the head that pools an
item into one semantic vector. Everything works on packed tokens, see `atoken_layout`.

Shape suffixes: N tokens, D width, L latent channels, P values of a patch, B items, H heads, K head
width, M rows of the resampled tables, Q queries (one).

Source: Lu et al. 2025 (AToken), arXiv:2509.14476, and its published inference code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.config import StackConfig, TokenizerConfig
from omnitok.interop.atoken_layout import Items, Step, grid_steps
from omnitok.model import Reconstruction
from omnitok.nn.attention import KeysValues, attend
from omnitok.nn.linear import linear
from omnitok.nn.mlp import MLP
from omnitok.nn.norm import Norm
from omnitok.nn.patch import Patch, grid_of, pad_frames, patchify, unpatchify
from omnitok.nn.stack import Stack, StackCache
from omnitok.quantize import build_quantizer

TABLE_SIDE = 16  # rows and columns of the learned position table
WINDOW = 16  # frames of video that see each other


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def resampling(size: int, device: torch.device) -> Tensor:
    """[size, TABLE_SIDE] weights of antialiased bilinear resampling along one axis.

    Both axes at once would be wrong on a CPU, where PyTorch fills a single column with its first
    row.
    """
    basis = torch.eye(TABLE_SIDE, device=device)[None, None]
    return F.interpolate(basis, size=(size, TABLE_SIDE), mode="bilinear", antialias=True)[0, 0]


class PositionTable(nn.Module):
    """A learned vector for each place of a grid, resampled to grids of any size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(TABLE_SIDE**2, width))

    def forward(self, grids: Sequence[tuple[int, int]], rows: Tensor) -> Tensor:
        """The vectors of tokens.

        Args:
            grids: (rows, columns) to resample to.
            rows: [N] row of each token in the resampled tables, one after the other.

        Returns:
            [N, D] in the dtype of the table.
        """
        table = rearrange(self.weight.float(), "(i j) d -> i (j d)", j=TABLE_SIDE)
        parts = []
        for grid in grids:
            down, across = (resampling(size, table.device) for size in grid)
            stretched = rearrange(down @ table, "x (j d) -> x j d", j=TABLE_SIDE)
            parts.append((across @ stretched).flatten(0, 1))
        table_MD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return table_MD.to(self.weight.dtype)[rows]


class Tower(nn.Module):
    """Linear layer, positions, blocks and a norm: the encoder or the decoder."""

    def __init__(self, config: StackConfig, inputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, config.width, bias=config.bias)
        self.positions = PositionTable(config.width)
        self.stack = Stack(config)
        self.norm = Norm(config.norm, config.width, True)

    def forward(self, x: Tensor, steps: Sequence[Step], cache: StackCache | None = None) -> Tensor:
        """[N, inputs] packed tokens to [N, D].

        Args:
            x: Tokens.
            steps: How they go through the blocks.
            cache: For a single step: the state of a stream, brought up to date in place.
        """
        return self.mix(linear(self.embed, x.to(self.embed.weight.dtype)), steps, cache)

    def mix(self, x_ND: Tensor, steps: Sequence[Step], cache: StackCache | None = None) -> Tensor:
        """`forward` after the linear layer, for callers that keep no tokens."""
        if len(steps) == 1 and steps[0].tokens is None:
            return self._run(x_ND, steps[0], cache)
        outputs, pasts = [], dict[int, list[KeysValues]]()
        for step in steps:
            cache = self._cache(step, pasts)
            outputs.append(self._run(x_ND[step.tokens], step, cache))
            for run, item in enumerate(step.items):
                pasts[item] = [layer[run] for layer in cache.layers]
        order = torch.cat([step.tokens for step in steps if step.tokens is not None])
        return torch.cat(outputs)[order.argsort()]

    def _run(self, x_ND: Tensor, step: Step, cache: StackCache | None) -> Tensor:
        x_ND = x_ND + self.positions(step.grids, step.rows)
        return self.norm(self.stack(x_ND[None, None], step.layout, cache)[0, 0])  # type: ignore[no-any-return]

    def _cache(self, step: Step, pasts: dict[int, list[KeysValues]]) -> StackCache:
        """What a step sees of earlier ones: the last tokens of each of its items."""
        config, weight = self.stack.config, self.embed.weight
        nothing = weight.new_empty(1, 0, config.heads, config.width // config.heads)
        runs = [
            [(k[:, k.shape[1] - seen :], v[:, v.shape[1] - seen :]) for k, v in past]
            for item, seen in zip(step.items, step.seen, strict=True)
            for past in [pasts.get(item, [(nothing, nothing)] * config.depth)]
        ]
        layers = [list(layer) for layer in zip(*runs, strict=True)]
        return StackCache(time=step.time, layers=layers, keep=step.keep)


class PoolingHead(nn.Module):
    """One learned query for each item attends to all of its tokens."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.probe = nn.Parameter(torch.zeros(width))
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = Norm("layer", width, True)
        self.mlp = MLP("gelu_tanh", width, config.mlp_hidden, True)

    def forward(self, x_ND: Tensor, items: Items) -> Tensor:
        """Pool the tokens of each item: [N, D] to [B, D] in item order, not normalised."""
        q_HQK = rearrange(self.to_q(self.probe), "(h k) -> h 1 k", h=self.heads)
        kv = rearrange(
            self.to_kv(x_ND[items.partition.order]), "n (i h k) -> i h n k", i=2, h=self.heads
        )
        pooled, start = [], 0
        for many, size in items.partition.runs:
            k_BHNK, v_BHNK = rearrange(
                kv[:, :, start : start + many * size], "i h (b n) k -> i b h n k", b=many
            )
            q_BHQK = q_HQK.expand(many, -1, -1, -1)
            pooled.append(attend(q_BHQK, k_BHNK, v_BHNK, q_HQK.shape[-1] ** -0.5))
            start += many * size
        x_BD = self.out(rearrange(torch.cat(pooled), "b h 1 k -> b (h k)"))[items.back]
        return x_BD + self.mlp(self.norm(x_BD))  # type: ignore[no-any-return]


class ATokenModel(nn.Module):
    """Encoder, pooling head, bottleneck and decoder of one AToken."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.window = max(1, WINDOW // config.patch[0])  # the same in latent frames
        values = 3 * math.prod(config.patch)
        self.encoder = Tower(config.encoder, values)
        self.head = PoolingHead(config.encoder)
        self.quantizer = build_quantizer(config.quantizer)
        self.proj = nn.Linear(config.encoder.width, 2 * self.quantizer.dim, bias=False)
        self.decoder = Tower(config.decoder, self.quantizer.dim)
        self.to_patch = nn.Linear(config.decoder.width, values, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.proj.weight.device

    def encode(self, x_NP: Tensor, steps: Sequence[Step]) -> Tensor:
        """Patches to semantic features [N, D], of which `proj` makes mean and log variance."""
        return self.encoder(x_NP, steps)  # type: ignore[no-any-return]

    def decode(
        self, z_NL: Tensor, steps: Sequence[Step], cache: StackCache | None = None
    ) -> Tensor:
        """Latents to patches [N, P], not clamped; `cache` as `Tower.forward` takes it."""
        return linear(self.to_patch, self.decoder(z_NL, steps, cache))

    def forward(self, x_BCTHW: Tensor) -> Reconstruction:
        """Encode, quantize and decode whole clips of one size at once, as training does.

        Args:
            x_BCTHW: [B, 3, T, H, W] in [-1, 1], any T, H, W.
        """
        many, _, *size = x_BCTHW.shape
        x_BGNP = patchify(pad_clip(x_BCTHW, self.config.patch), self.config.patch)
        grid = grid_of((size[1], size[2]), self.config.patch)
        steps = grid_steps(((x_BGNP.shape[1], *grid),) * many, self.window, 0, self.device)
        moments_NL = self.proj(self.encode(x_BGNP.flatten(0, 2), steps))
        quantized = self.quantizer(moments_NL[:, : self.quantizer.input_dim])
        x_NP = self.decode(quantized.z_q, steps)
        recon = unpatchify(x_NP.view_as(x_BGNP), self.config.patch, grid)
        return Reconstruction(recon[:, :, : size[0], : size[1], : size[2]], quantized)


def pad_clip(x_BCTHW: Tensor, patch: Patch, starts: bool = True) -> Tensor:
    """Fill up clips to whole patches.

    Edge pixels and the last frame repeat; but where a clip `starts` (and so ends) with less than a
    patch of frames, as an image does, zero (mid-grey) frames follow, as in the network's training.
    """
    frames = x_BCTHW.shape[2]
    whole = -(-frames // patch[0]) * patch[0]
    if starts and frames < patch[0]:
        x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, 0, whole - frames))
    return pad_frames(x_BCTHW, patch, whole)
