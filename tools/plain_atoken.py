"""AToken computed as its published code does, wasted work included, to measure ours against.

Rotary tables are built for q and again for k in every layer, items are taken one by one, and
tokens are put back in order by reading every coordinate from the device. Only the attention kernel
differs: PyTorch's, item by item, for the one that needs a GPU.

Shape suffixes: N tokens, A axes (batch, t, x, y, z), D width, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class PlainAToken:
    """Encoder and decoder of an AToken from tensors by their published names.

    Args:
        tensors: Weights.
        heads: Of the encoder and the decoder.
        window: Latent frames that see each other.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], heads: tuple[int, int], window: int = 4
    ) -> None:
        self.tensors, self.window = tensors, window
        self.heads = dict(zip(("encoder", "decoder"), heads, strict=True))
        self.depth = {
            side: 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith(f"{side}.blocks."))
            for side in ("encoder", "decoder")
        }

    def encode(self, patches_NP: Tensor, coords_NA: Tensor) -> Tensor:
        """Patches to means and log variances."""
        features = self._windows("encoder", patches_NP, coords_NA)
        return F.linear(features, self.tensors["proj.weight"])

    def decode(self, z: Tensor, coords_NA: Tensor) -> Tensor:
        """Latents to patches."""
        features = self._windows("decoder", z, coords_NA)
        return F.linear(features, self.tensors["decoder.out_layer.weight"])

    def reconstruct(self, patches_NP: Tensor, coords_NA: Tensor) -> Tensor:
        """Patches to the patches that the means decode to."""
        mean, _ = self.encode(patches_NP, coords_NA).chunk(2, dim=-1)
        return self.decode(mean, coords_NA)

    def _windows(self, side: str, x: Tensor, coords_NA: Tensor) -> Tensor:
        done: dict[int, Tensor] = {}
        start, last = int(coords_NA[:, 1].min()), int(coords_NA[:, 1].max())
        for first in range(start, last + 1, self.window):
            inside = (coords_NA[:, 1] >= first) & (coords_NA[:, 1] < first + self.window)
            if not inside.any():
                continue
            moved = coords_NA[inside].clone()
            moved[:, 1] -= first
            out = self._stack(side, x[inside], moved)
            for row, coords in zip(out, coords_NA[inside], strict=True):
                done[self._key(coords)] = row
        return torch.stack([done[self._key(coords)] for coords in coords_NA])

    def _key(self, coords: Tensor) -> int:
        key = 0
        for axis in coords:
            key = key << 12 | int(axis.item())
        return key

    def _stack(self, side: str, x: Tensor, coords_NA: Tensor) -> Tensor:
        h = self._linear(f"{side}.input_layer", x) + self._positions(side, coords_NA)
        for i in range(self.depth[side]):
            block = f"{side}.blocks.{i}."
            h = h + self._attention(side, i, self._norm(block + "norm1", h), coords_NA)
            hidden = self._linear(block + "mlp.mlp.0", self._norm(block + "norm2", h))
            h = h + self._linear(block + "mlp.mlp.2", F.gelu(hidden, approximate="tanh"))
        return self._norm("encoder.post_layernorm" if side == "encoder" else "decoder.out_norm", h)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[name + ".weight"].float(), self.tensors.get(name + ".bias")
        wide = x.float()
        if bias is not None:
            return F.layer_norm(wide, wide.shape[-1:], weight, bias.float(), 1e-6).to(x.dtype)
        scaled = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return (scaled * weight).to(x.dtype)

    def _positions(self, side: str, coords_NA: Tensor) -> Tensor:
        table = self.tensors[f"{side}.pos_embedder.position_embedding.weight"]
        grid = table.float().view(16, 16, -1).permute(2, 0, 1)[None]
        parts = []
        for item in range(int(coords_NA[:, 0].max().item()) + 1):
            x, y = coords_NA[coords_NA[:, 0] == item][:, 2:4].long().unbind(1)
            if not len(x):
                continue
            size = (int(x.max().item()) + 1, int(y.max().item()) + 1)
            resized = F.interpolate(grid, size=size, mode="bilinear", antialias=True)[0]
            parts.append(resized.permute(1, 2, 0)[x, y].to(table.dtype))
        return torch.cat(parts)

    def _attention(self, side: str, layer: int, x: Tensor, coords_NA: Tensor) -> Tensor:
        name = f"{side}.blocks.{layer}.attn."
        qkv = self._linear(name + "to_qkv", x).view(len(x), 3, self.heads[side], -1)
        q, k, v = qkv.unbind(1)
        if name + "q_rms_norm.gamma" in self.tensors:
            q, k = self._unit(name + "q_rms_norm", q), self._unit(name + "k_rms_norm", k)
        q, k = self._rotate(q, coords_NA), self._rotate(k, coords_NA)
        parts = []
        for item in range(int(coords_NA[:, 0].max().item()) + 1):
            own = coords_NA[:, 0] == item
            q_1HNK, k_1HNK, v_1HNK = (z[own].transpose(0, 1)[None] for z in (q, k, v))
            mixed = F.scaled_dot_product_attention(q_1HNK, k_1HNK, v_1HNK)
            parts.append(mixed[0].transpose(0, 1).flatten(1))
        return self._linear(name + "to_out", torch.cat(parts))

    def _unit(self, name: str, x: Tensor) -> Tensor:
        gain: Tensor = self.tensors[name + ".gamma"].float() * x.shape[-1] ** 0.5
        return (F.normalize(x.float(), dim=-1) * gain).to(x.dtype)

    def _rotate(self, x: Tensor, coords_NA: Tensor) -> Tensor:
        width = x.shape[-1]
        powers = torch.arange(width // 8, dtype=torch.float32, device=x.device) / width
        angles = coords_NA[:, 1:].float()[..., None] * 10000.0**-powers
        phasors = torch.polar(torch.ones_like(angles), angles).flatten(1)
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turned: Tensor = torch.view_as_real(pairs * phasors[:, None]).flatten(-2)
        return turned.to(x.dtype)


def arch(width: int, heads: int, depth: int, hidden: int) -> dict[str, Any]:
    """Published settings in the shape of So/C."""
    sides = {
        f"{side}_{name}": value
        for side, plain in (("encoder", True), ("decoder", False))
        for name, value in (
            ("model_channels", width),
            ("num_heads", heads),
            ("num_blocks", depth),
            ("mlp_channels", hidden),
            ("qk_rms_norm", not plain),
            ("use_bias", plain),
            ("use_rms_norm", not plain),
        )
    }
    return {**sides, "patch_size": (4, 16, 16), "latent_channels": 48}
