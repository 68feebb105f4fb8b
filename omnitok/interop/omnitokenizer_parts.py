"""What is OmniTokenizer's own: its positional convolution, its attention, its window attention.

Shape suffixes: B batch, T time steps, Y and X rows and columns of tokens, D width; S sequences that
attend within themselves, N tokens of one, H heads, K head width; Q queries.

Source: Wang et al. 2024, arXiv:2406.09399, and the published code, whose arithmetic this follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.interop.omnitokenizer_config import OmniTokenizerConfig
from omnitok.native import kernels
from omnitok.native.kernels import Heads
from omnitok.native.scans import convolution
from omnitok.nn.attention import AFFINE_EPS
from omnitok.nn.linear import linear, takes, takes_half
from omnitok.nn.mlp import MLP
from omnitok.nn.norm import Norm, inverse_rms, needs_graph
from omnitok.nn.rope import rotate, rotate_

EPS = 1e-5  # of all norms
SHARPNESS = 8.0  # of the cosine between a query and a key
ROPE_BASE = 10000.0
TOKENS_AT_ONCE = 2048  # where there is no graph: what is made of them stays in a CPU's caches
TOKENS_OF_KERNELS = 8192  # the same for our own kernels, which keep less at a time
SHORT = 16  # tokens of sequences over which a CPU attends faster in float32 than in bfloat16
SLOPE = 0.1  # of the rectifier between the layers that make the learned bias


class FixedShiftNorm(nn.Module):
    """Layer normalisation with a learned scale and a shift that is kept, but not learned."""

    bias: Tensor
    kind, eps = "layer", EPS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS)


class PositionConvolution(nn.Module):
    """A depth-wise 3x3x3 convolution over (time, row, column).

    Between temporal blocks the published networks give it tokens in the order (row, column, time)
    and read them in memory order as (time, row, column), which mixes places and times. The weights
    were trained like that, so it is kept; see `Stage`.
    """

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        self.causal = causal

    def forward(self, x_BTYXD: Tensor) -> Tensor:
        """The same shape."""
        if x_BTYXD.device.type == "cpu" and torch.is_grad_enabled():
            # in bfloat16 PyTorch's gradient of the weights may hold what earlier convolutions left
            with torch.autocast("cpu", enabled=False):
                moved = self._convolved(x_BTYXD.float(), self.weight.float(), self.bias.float())
                return moved.type_as(x_BTYXD)
        return self._convolved(x_BTYXD, self.weight, self.bias)

    def _convolved(self, x_BTYXD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = rearrange(x_BTYXD, "b t y x d -> b d t y x")  # a view: channels stay last in memory
        if x.shape[2] == 1:  # only one of the three taps in time meets a frame
            tap = weight[:, :, 2 if self.causal else 1]
            y = F.conv2d(x[:, :, 0], tap, bias, padding=1, groups=len(tap))[:, :, None]
        else:  # a causal one must not see what lies behind: its last two results go
            time = 2 if self.causal else 1
            y = F.conv3d(x, weight, bias, padding=(time, 1, 1), groups=len(weight))
            y = y[:, :, : x.shape[2]]
        return rearrange(y, "b d t y x -> b t y x d").contiguous()


@dataclass(frozen=True)
class Place:
    """What the blocks of one stage need to know about the tokens.

    Attributes:
        volume: (T, Y, X) of the convolution.
        causal: Whether tokens of a sequence attend only to those before them.
        phasors: [N, K / 2] complex64 that turn queries and keys, or None.
        bias: [H, N, N] added to the scores of every sequence, or None.
        grid: (Y, X), where a learned bias is to be added, else None.
    """

    volume: tuple[int, int, int]
    causal: bool = False
    phasors: Tensor | None = None
    bias: Tensor | None = None
    grid: tuple[int, int] | None = None


class CosineAttention(nn.Module):
    """Attention by cosines; keys and values come from tokens that are not normalised."""

    def __init__(self, config: OmniTokenizerConfig, learned_bias: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm = FixedShiftNorm(config.width)
        self.q = nn.Linear(config.width, inner, bias=False)
        self.kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(config.head_width))
        self.k_scale = nn.Parameter(torch.ones(config.head_width))
        self.position: nn.Sequential | None = None
        if learned_bias:
            self.position = nn.Sequential(
                nn.Linear(2, config.width),
                nn.LeakyReLU(SLOPE),
                nn.Linear(config.width, config.width),
                nn.LeakyReLU(SLOPE),
                nn.Linear(config.width, config.heads),
            )

    def bias_of(self, place: Place) -> Tensor | None:
        """[1, H, N, N] added to the scores of every sequence."""
        if self.position is None or place.grid is None:
            return None if place.bias is None else place.bias[None]
        steps, index = displacements(*place.grid, self.q_scale.device)
        return _spread(self.position(steps.type_as(self.q_scale)), index)

    @property
    def last(self) -> nn.Linear:
        """The layer that takes what `mix` gives."""
        return self.out

    def forward(self, x_SND: Tensor, place: Place, bias_1HNN: Tensor | None) -> Tensor:
        """[S, N, D] to [S, N, D], with what `bias_of` gave."""
        return self.out(self.mix(x_SND, place, bias_1HNN))  # type: ignore[no-any-return]

    def mix(self, x_SND: Tensor, place: Place, bias_1HNN: Tensor | None) -> Tensor:
        """Averages of values, the heads side by side."""
        graph = needs_graph(x_SND)
        if x_SND.shape[1] == 1 and not graph:  # the only token gets all of the attention
            return F.linear(x_SND, self.kv.weight[len(self.q.weight) :])
        if takes(x_SND, self.q, self.kv):
            return self._mix_tiles(x_SND, place, bias_1HNN)
        q_SNHK = rearrange(self.q(self.norm(x_SND)), "s n (h k) -> s n h k", h=self.heads)
        kv = rearrange(self.kv(x_SND), "s n (i h k) -> s n i h k", i=2, h=self.heads)
        k_SNHK, v_SNHK = kv.unbind(2)
        # one gain for the pair: the scores see only the product of the two scales
        width = self.q_scale.numel()
        gain = self.q_scale.float() * self.k_scale.float()
        q_SNHK, k_SNHK = self._unit(q_SNHK, place, graph), self._unit(k_SNHK, place, graph)
        q_SNHK = q_SNHK * gain if graph else q_SNHK.mul_(gain)
        if not graph and x_SND.shape[1] <= SHORT:
            v_SNHK = v_SNHK.float()
        q_SHNK, k_SHNK, v_SHNK = (
            z.type_as(v_SNHK).transpose(1, 2) for z in (q_SNHK, k_SNHK, v_SNHK)
        )
        o_SHNK = F.scaled_dot_product_attention(
            q_SHNK,
            k_SHNK,
            v_SHNK,
            attn_mask=None if bias_1HNN is None else bias_1HNN.type_as(v_SHNK),
            is_causal=place.causal and bias_1HNN is None,
            scale=SHARPNESS / width,  # the cosines come from lengths of sqrt(width)
        )
        return rearrange(o_SHNK, "s h n k -> s n (h k)").type_as(x_SND)

    def _mix_tiles(self, x_SND: Tensor, place: Place, bias_1HNN: Tensor | None) -> Tensor:
        """`mix` by our own kernels."""
        width, many = self.q_scale.numel(), self.heads
        gains = (self.q_scale.float() * self.k_scale.float()).expand(many, -1)
        heads = Heads(many, width, AFFINE_EPS, gains, place.phasors, gains_last=True)
        q = kernels.linear(self.q, x_SND, norm=self.norm, heads=heads)
        kv = kernels.linear(self.kv, x_SND, heads=replace(heads, gains=None))
        q_SHNK, k_SHNK, v_SHNK = (
            rearrange(z, "s n (h k) -> s h n k", h=many) for z in (q, *kv.chunk(2, dim=-1))
        )
        bias = None if bias_1HNN is None else bias_1HNN[0]
        if bias is None and place.causal:
            bias = causal_mask(x_SND.shape[1], x_SND.device).expand(many, -1, -1)
        o_SHNK = kernels.attention(q_SHNK, k_SHNK, v_SHNK, SHARPNESS / width, bias)
        return rearrange(o_SHNK, "s h n k -> s n (h k)")

    def _unit(self, x_SNHK: Tensor, place: Place, graph: bool) -> Tensor:
        """Float32 queries or keys, turned, of length sqrt(K); may change them."""
        x = x_SNHK.float()
        if graph:
            x = F.rms_norm(x, x.shape[-1:], eps=AFFINE_EPS)
            return x if place.phasors is None else rotate(x, place.phasors)
        x = x.mul_(inverse_rms(x, AFFINE_EPS))
        return x if place.phasors is None else rotate_(x, place.phasors)


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for every displacement."""

    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.heads, self.window = config.heads, config.window
        self.norm = FixedShiftNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)
        self.table = nn.Parameter(torch.zeros((2 * config.window - 1) ** 2, config.heads))

    def bias_of(self, place: Place) -> Tensor:
        """[1, H, N, N] added to the scores of every window."""
        return _spread(self.table, displacements(self.window, self.window, self.table.device)[1])

    @property
    def last(self) -> nn.Linear:
        """The layer that takes what `mix` gives."""
        return self.proj

    def forward(self, x_SND: Tensor, place: Place, bias_1HNN: Tensor | None) -> Tensor:
        """[S, N, D] to [S, N, D], where N is one window, with what `bias_of` gave."""
        return self.proj(self.mix(x_SND, place, bias_1HNN))  # type: ignore[no-any-return]

    def mix(self, x_SND: Tensor, place: Place, bias_1HNN: Tensor | None) -> Tensor:
        """Averages of values, the heads side by side."""
        qkv = linear(self.qkv, x_SND, self.norm)
        q_SHNK, k_SHNK, v_SHNK = rearrange(qkv, "s n (i h k) -> i s h n k", i=3, h=self.heads)
        if takes(x_SND):
            scale, bias = q_SHNK.shape[-1] ** -0.5, None if bias_1HNN is None else bias_1HNN[0]
            o_SHNK = kernels.attention(q_SHNK, k_SHNK, v_SHNK, scale, bias)
        else:
            o_SHNK = F.scaled_dot_product_attention(q_SHNK, k_SHNK, v_SHNK, attn_mask=bias_1HNN)
        return rearrange(o_SHNK, "s h n k -> s n (h k)")


def _spread(table_MH: Tensor, index_NN: Tensor) -> Tensor:
    """[1, H, N, N] biases: the fused kernels take four axes."""
    return table_MH.T.contiguous()[None, :, index_NN]


class Block(nn.Module):
    """A "t" block (convolution, attention over whole sequences) or a "w" block (over windows)."""

    def __init__(self, config: OmniTokenizerConfig, kind: str, learned_bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.attention: CosineAttention | WindowAttention
        if kind == "t":
            self.peg: PositionConvolution | None
            self.peg = PositionConvolution(config.width, config.causal_peg)
            self.attention = CosineAttention(config, learned_bias)
        else:
            self.peg = None
            self.attention = WindowAttention(config)
        self.mlp_norm = Norm("layer", config.width, affine=True, eps=EPS)
        self.mlp = MLP("geglu", config.width, config.mlp_hidden, bias=False)

    def forward(self, x_SND: Tensor, place: Place) -> Tensor:
        """[S, N, D] to [S, N, D]; without a graph, in place, a few sequences at a time."""
        graph = needs_graph(x_SND)
        if self.peg is not None:
            x_BTYXD = x_SND.view(-1, *place.volume, x_SND.shape[-1])
            if takes(x_SND) and self.peg.weight.dtype == x_SND.dtype:
                before = 2 if self.peg.causal else 1
                x_SND = convolution(x_BTYXD, self.peg, before).view_as(x_SND)
            else:
                moved: Tensor = self.peg(x_BTYXD).view_as(x_SND)
                x_SND = x_SND + moved if graph else x_SND.add_(moved)
        bias_1HNN = self.attention.bias_of(place)
        if graph:
            x_SND = x_SND + self.attention(x_SND, place, bias_1HNN)
            return x_SND + self.mlp(self.mlp_norm(x_SND))  # type: ignore[no-any-return]
        last, mlp = self.attention.last, self.mlp
        if takes_half(x_SND, last, mlp.up, mlp.down):
            mixed = self.attention.mix(x_SND, place, bias_1HNN)
            kernels.linear(last, mixed, onto=x_SND, out=x_SND)
            around = {"norm": self.mlp_norm, "act": mlp.kind, "down": mlp.down, "onto": x_SND}
            return kernels.linear(mlp.up, x_SND, out=x_SND, **around)
        most = TOKENS_OF_KERNELS if takes(x_SND, last) else TOKENS_AT_ONCE
        at_once = max(1, most // x_SND.shape[1])
        for start in range(0, len(x_SND), at_once):
            part = x_SND[start : start + at_once]
            _add(part, self.attention.mix(part, place, bias_1HNN), last)
            _add(part, mlp.gated(part, self.mlp_norm), mlp.down)
        return x_SND


def _add(x_SND: Tensor, y: Tensor, layer: nn.Linear) -> None:
    """`x += layer(y)`, without writing the result of the layer anywhere else."""
    if takes(y, layer):
        kernels.linear(layer, y, onto=x_SND, out=x_SND)
        return
    if torch.is_autocast_enabled(x_SND.device.type):  # which would not cast an in-place product
        x_SND.add_(layer(y))
        return
    x_SND.flatten(0, 1).addmm_(y.flatten(0, 1), layer.weight.T)
    if layer.bias is not None:
        x_SND.add_(layer.bias)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def displacements(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far apart the tokens of a grid are.

    Returns:
        [(2 height - 1) (2 width - 1), 2] the displacements (row, column) that occur, as
        sign(d) ln(|d| + 1), and [N, N] int64 which of them parts token i from token j.
    """
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    rows = row[:, None] - row + height - 1
    columns = column[:, None] - column + width - 1
    index = rows * (2 * width - 1) + columns
    steps = torch.cartesian_prod(
        torch.arange(1 - height, height, dtype=torch.float32),
        torch.arange(1 - width, width, dtype=torch.float32),
    )
    return (steps.sign() * (steps.abs() + 1).log()).to(device), index.to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def grid_phasors(height: int, width: int, head_width: int, device: torch.device) -> Tensor:
    """[N, head_width / 2] complex64: pairs turn with the column and the row, by turns."""
    exponents = torch.arange(head_width // 4, dtype=torch.float64) * -4 / head_width
    frequencies = ROPE_BASE**exponents
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
    angles = (places[:, None] * frequencies[:, None]).flatten(1)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def causal_mask(steps: int, device: torch.device) -> Tensor:
    """[steps, steps] scores of -inf for later times, else 0."""
    return torch.full((steps, steps), float("-inf"), device=device).triu(1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # so that training may use a table first made for inference
def causal_slopes(heads: int, steps: int, device: torch.device) -> Tensor:
    """[heads, steps, steps] scores that fall with the distance in time; later times get -inf.

    Source: Press et al. 2021, arXiv:2108.12409, section 3.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = _slopes(power) + _slopes(2 * power)[::2]
    place = torch.arange(steps)
    distance = (place[:, None] - place).abs()
    bias = -torch.tensor(slopes[:heads])[:, None, None] * distance
    return bias.masked_fill(place > place[:, None], float("-inf")).to(device)


def _slopes(heads: int) -> list[float]:
    return [2 ** (-8 * (k + 1) / heads) for k in range(heads)]
