"""OmniTokenizer computed as its published code does, wasted work included, to measure ours against.

The learned bias of "rel" files is worked out in every layer and thrown away where attention is
fused, distances to all codes are held at once beside one-hot rows of the codes, and every step
writes a new tensor.

Shape suffixes: B batch, C colours, T frames or time steps, Y and X rows and columns of tokens,
S sequences, N tokens of one, D width, L latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

_Volume = tuple[int, int, int]


class PlainOmniTokenizer:
    """Encoder, codebook and decoder from tensors by their published names.

    Args:
        tensors: Weights.
        settings: Published settings, with `attention` "fused" or "explicit".
    """

    def __init__(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        self.tensors, self.settings = tensors, settings
        self.explicit = settings.get("attention") == "explicit"
        self.rope = settings["spatial_pos"] == "rope"
        pooled = settings.get("defer_temporal_pool"), settings.get("defer_spatial_pool")
        self.pool_time, self.pool_space = (bool(flag) for flag in pooled)
        self.patch = settings["patch_size"] >> self.pool_space
        self.group = settings["temporal_patch_size"] >> self.pool_time
        self._tables: dict[int, Tensor] = {}

    # pixels in [-0.5, 0.5] to latents, codes and back

    def encode(self, x_BCTHW: Tensor) -> Tensor:
        """Pixels to [B, L, T, Y, X] before quantization (KL: means and log variances)."""
        p, q = self.patch, self.group
        pattern = "b c (t f) (y p) (x q) -> b t y x (c f p q)"
        first = rearrange(x_BCTHW[:, :, :1], pattern, f=1, p=p, q=p)
        x = self._embed("encoder.to_patch_emb_first_frame", first)
        if x_BCTHW.shape[2] > 1:
            rest = rearrange(x_BCTHW[:, :, 1:], pattern, f=q, p=p, q=p)
            x = torch.cat([x, self._embed("encoder.to_patch_emb", rest)], dim=1)
        blocks = self.settings["enc_block"], "t" * self.settings["temporal_depth"]
        x = self._space("encoder.enc_spatial_transformer", x, blocks[0])
        x = self._time("encoder.enc_temporal_transformer", x, blocks[1])
        x = rearrange(x, "b t y x d -> b d t y x")
        if self.pool_space:
            x = F.avg_pool3d(x, (1, 2, 2))
        if self.pool_time and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], F.avg_pool3d(x[:, :, 1:], (2, 1, 1))], dim=2)
        x = self._linear("pre_vq_conv.1", x.movedim(1, -1)).movedim(-1, 1)
        unit = self.settings.get("l2_code", True) and not self.settings.get("use_vae")
        return F.normalize(x, dim=1) if unit else x

    def quantize(self, z_BLTYX: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes, and their vectors as training passes them on."""
        table = self.tensors["codebook.embeddings"]
        flat = rearrange(z_BLTYX, "b c t y x -> (b t y x) c")
        squares = flat.square().sum(1, keepdim=True), table.T.square().sum(0, keepdim=True)
        codes = (squares[0] - 2 * flat @ table.T + squares[1]).argmin(1)
        hits = F.one_hot(codes, len(table)).type_as(flat)
        frequencies = hits.mean(0)
        torch.exp(-(frequencies * (frequencies + 1e-10).log()).sum())  # a number that is logged
        codes = codes.view(len(z_BLTYX), *z_BLTYX.shape[2:])
        vectors = F.embedding(codes, table).movedim(-1, 1)
        F.mse_loss(z_BLTYX, vectors)  # the loss, which only training uses
        return codes, (vectors - z_BLTYX) + z_BLTYX

    def decode(self, z_BLTYX: Tensor) -> Tensor:
        """Latents to pixels [B, C, T, H, W]."""
        x = self._linear("post_vq_conv.1", z_BLTYX.movedim(1, -1))
        if self.pool_time and x.shape[1] > 1:
            x = torch.cat([x[:, :1], repeat(x[:, 1:], "b t y x d -> b (t i) y x d", i=2)], dim=1)
        if self.pool_space:
            x = repeat(x, "b t y x d -> b t (y i) (x j) d", i=2, j=2)
        x = self._time("decoder.dec_temporal_transformer", x, "t" * self.settings["temporal_depth"])
        x = self._space("decoder.dec_spatial_transformer", x, self.settings["dec_block"])
        p, q = self.patch, self.group
        pattern = "b t y x (c f p q) -> b c (t f) (y p) (x q)"
        first = self._linear("decoder.to_pixels_first_frame.0", x[:, :1])
        pixels = rearrange(first, pattern, c=3, f=1, p=p, q=p)
        if x.shape[1] > 1:
            rest = self._linear("decoder.to_pixels.0", x[:, 1:])
            rest = rearrange(rest, pattern, c=3, f=q, p=p, q=p)
            pixels = torch.cat([pixels, rest], dim=2)
        return pixels

    # transformers

    def _space(self, name: str, x_BTYXD: Tensor, blocks: str) -> Tensor:
        _, t, y, x, _ = x_BTYXD.shape
        tokens = rearrange(x_BTYXD, "b t y x d -> (b t) (y x) d")
        tokens = self._blocks(name, tokens, blocks, (t, y, x), space=True)
        return rearrange(tokens, "(b t) (y x) d -> b t y x d", t=t, y=y)

    def _time(self, name: str, x_BTYXD: Tensor, blocks: str) -> Tensor:
        _, t, y, x, _ = x_BTYXD.shape
        tokens = rearrange(x_BTYXD, "b t y x d -> (b y x) t d").contiguous()
        tokens = self._blocks(name, tokens, blocks, (t, y, x), space=False)
        return rearrange(tokens, "(b y x) t d -> b t y x d", y=y, x=x)

    def _blocks(
        self, name: str, x_SND: Tensor, blocks: str, volume: _Volume, space: bool
    ) -> Tensor:
        for i, kind in enumerate(blocks):
            layer = f"{name}.layers.{i}."
            if kind == "w":
                x_SND = self._windows(layer + "1.", x_SND, volume) + x_SND
            else:
                x_SND = self._convolution(layer + "0.dsconv", x_SND, volume) + x_SND
                x_SND = self._attention(layer + "1.", x_SND, volume, space) + x_SND
            x_SND = self._mlp(layer + "3.", x_SND) + x_SND
        return self._norm(name + ".norm_out", x_SND)

    def _convolution(self, name: str, x_SND: Tensor, volume: _Volume) -> Tensor:
        x = x_SND.reshape(-1, *volume, x_SND.shape[-1]).movedim(-1, 1)
        time = (2, 0) if self.settings["causal_in_peg"] else (1, 1)
        x = F.pad(x, (1, 1, 1, 1, *time), value=0.0)
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        x = F.conv3d(x, weight, bias, groups=len(weight))
        return x.movedim(1, -1).reshape(x_SND.shape)

    def _attention(self, name: str, x_SND: Tensor, volume: _Volume, space: bool) -> Tensor:
        heads = self.settings["heads"]
        q = self._linear(name + "to_q", self._norm(name + "norm", x_SND))
        k, v = self._linear(name + "to_kv", x_SND).chunk(2, dim=-1)
        q, k, v = (rearrange(z, "s n (h k) -> s h n k", h=heads) for z in (q, k, v))
        if space and self.rope:
            q, k = self._rotate(q, volume), self._rotate(k, volume)
        q = F.normalize(q, dim=-1) * self.tensors[name + "q_scale"]
        k = F.normalize(k, dim=-1) * self.tensors[name + "k_scale"]
        bias = None
        if space and not self.rope:
            bias = self._learned_bias(name + "spatial_rel_pos_bias.net.", volume)
        causal = not space and self.settings["causal_in_temporal_transformer"]
        if self.explicit:
            scores = q @ k.transpose(-1, -2) * 8
            scores = scores if bias is None else scores + bias
            scores = self._causal(scores) if causal else scores
            out = scores.softmax(dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=8.0)
        return self._linear(name + "to_out", rearrange(out, "s h n k -> s n (h k)"))

    def _rotate(self, x_SHNK: Tensor, volume: _Volume) -> Tensor:
        table = self._tables.get(x_SHNK.shape[2])
        if table is None:
            width = x_SHNK.shape[-1]
            places = torch.arange(volume[1] * volume[2], device=x_SHNK.device)
            frequencies = 1 / 10000.0 ** (torch.arange(0, width, 4)[: width // 4].float() / width)
            angles = [
                torch.outer(place.float(), frequencies.to(place.device))
                for place in (places % volume[2], places // volume[2])
            ]
            pairs = torch.stack(angles, dim=-1).flatten(1)
            table = self._tables[x_SHNK.shape[2]] = torch.polar(torch.ones_like(pairs), pairs)
        pairs = torch.view_as_complex(rearrange(x_SHNK.float(), "... (r two) -> ... r two", two=2))
        return torch.view_as_real(pairs * table).flatten(-2).type_as(x_SHNK)

    def _learned_bias(self, name: str, volume: _Volume) -> Tensor:
        device = self.tensors[name + "2.weight"].device
        axes = (torch.arange(side, device=device) for side in volume[1:])
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        steps = places[:, None] - places
        steps = torch.sign(steps) * torch.log(steps.abs() + 1)
        x = steps.to(self.tensors[name + "2.weight"].dtype)
        for layer in ("0.0", "1.0"):
            x = F.leaky_relu(self._linear(name + layer, x), 0.1)
        return self._linear(name + "2", x).movedim(-1, 0)

    def _causal(self, scores_SHNN: Tensor) -> Tensor:
        heads, n = scores_SHNN.shape[1], scores_SHNN.shape[-1]
        power = 2 ** (heads.bit_length() - 1)
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
        place = torch.arange(n, device=scores_SHNN.device)
        distance = (place[:, None] - place).abs()
        slope = torch.tensor(slopes[:heads], device=scores_SHNN.device).view(-1, 1, 1)
        later = distance.new_ones(n, n).triu(1).bool()
        return (scores_SHNN - slope * distance).masked_fill(later, float("-inf"))

    def _windows(self, name: str, x_SND: Tensor, volume: _Volume) -> Tensor:
        heads, side = self.settings["heads"], self.settings["twod_window_size"]
        x = self._norm(name + "norm", x_SND)
        forth = "s (wy y wx x) d -> (s wy wx) (y x) d"
        sizes = {"wy": volume[1] // side, "wx": volume[2] // side, "y": side, "x": side}
        x = self._linear(name + "qkv", rearrange(x, forth, **sizes))
        q, k, v = rearrange(x, "s n (i h k) -> i s h n k", i=3, h=heads)
        rows = torch.arange(side).repeat_interleave(side)
        columns = torch.arange(side).repeat(side)
        index = (rows[:, None] - rows + side - 1) * (2 * side - 1)
        index = index + columns[:, None] - columns + side - 1
        table = self.tensors[name + "relative_position_bias_table"]
        bias = table[index.to(table.device).flatten()].view(side**2, side**2, heads).movedim(-1, 0)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + bias.contiguous()
        x = rearrange(scores.softmax(dim=-1) @ v, "s h n k -> s n (h k)")
        back = "(s wy wx) (y x) d -> s (wy y wx x) d"
        return rearrange(self._linear(name + "proj", x), back, **sizes)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        x = self._layer_norm(name + "0", x)
        value, gate = F.linear(x, self.tensors[name + "1.weight"]).chunk(2, dim=-1)
        return F.linear(F.gelu(gate) * value, self.tensors[name + "4.weight"])

    # layers

    def _embed(self, name: str, x: Tensor) -> Tensor:
        x = self._linear(name + ".2", self._layer_norm(name + ".1", x))
        return self._layer_norm(name + ".3", x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        gamma, beta = self.tensors[name + ".gamma"], self.tensors[name + ".beta"]
        return F.layer_norm(x, x.shape[-1:], gamma, beta)


RELEASED: dict[str, Any] = {
    "embedding_dim": 512,
    "heads": 8,
    "dim_head": 64,
    "patch_embed": "linear",
    "patch_size": 8,
    "temporal_patch_size": 4,
    "enc_block": "ttww",
    "dec_block": "tttt",
    "temporal_depth": 4,
    "twod_window_size": 8,
    "spatial_pos": "rope",
    "causal_in_temporal_transformer": True,
    "causal_in_peg": True,
    "ff_mult": 4.0,
    "n_codes": 8192,
    "codebook_dim": 8,
    "l2_code": True,
    "sequence_length": 17,
}
