"""Vector quantization: the nearest row of a learned codebook.

Source: van den Oord et al. 2017, arXiv:1711.00937, equation 3 and appendix A.1 (moving averages);
Yu et al. 2021 (ViT-VQGAN), arXiv:2110.04627 (unit norm).

Shape suffixes: N tokens, K codebooks, V rows of a codebook, C channels of a codebook.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from omnitok.native.kernels import fits
from omnitok.native.scans import nearest
from omnitok.quantize.base import DiscreteQuantizer, Quantized, QuantizerConfig
from omnitok.quantize.entropy import entropy_terms

_SCORES_AT_ONCE = 2**20  # of the search, to bound its memory


class VQ(DiscreteQuantizer):
    """Vector quantization with a codebook learned by gradients or by moving averages.

    With moving averages, a training forward also takes one step of them; its output uses the
    codebook from before the step. The first one fills the codebook with inputs.
    """

    codebook: Tensor
    cluster_size: Tensor
    embed_sum: Tensor
    initialised: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        assert config.codebook_size is not None  # the config has checked
        self.codebook_size = config.codebook_size
        width = config.dim // config.num_codebooks
        codebook_KVC = torch.randn(config.num_codebooks, config.codebook_size, width)
        if config.ema:
            self.register_buffer("codebook", codebook_KVC)
            self.register_buffer("cluster_size", torch.ones(codebook_KVC.shape[:2]))
            self.register_buffer("embed_sum", codebook_KVC.clone())
            self.register_buffer("initialised", torch.tensor(False))
        else:
            self.codebook = nn.Parameter(codebook_KVC)

    def _forward(self, z: Tensor) -> Quantized:
        if not (self.config.ema and self.training):
            return super()._forward(z)
        with torch.no_grad():
            z_KNC = self._split(self._prepare(z))
            inputs_KVC = self._random_inputs(z_KNC)
            for state in (self.codebook, self.embed_sum):
                state.copy_(torch.where(self.initialised, state, inputs_KVC))
            self.initialised.fill_(True)
        quantized = super()._forward(z)
        assert quantized.codes is not None  # we are discrete
        self._step(z_KNC, quantized.codes.reshape(-1, self.num_codebooks).T, inputs_KVC)
        return quantized

    def _prepare(self, z: Tensor) -> Tensor:
        if not self.config.l2:
            return z
        z_KC = rearrange(z, "... (k c) -> ... k c", k=self.num_codebooks)
        return rearrange(F.normalize(z_KC, dim=-1), "... k c -> ... (k c)")

    def _search(self, z: Tensor) -> Tensor:
        """Nearest rows, as float64 finds them, so that neither device nor batch change the answer.

        Where our own kernels run, they look in float32 first, and float64 is left
        with inputs whose two best rows are closer than float32 can tell.
        """
        z_KNC, rows_KVC = self._split(z), self._rows()
        if not torch.compiler.is_compiling() and fits(z_KNC.float()):
            both = [nearest(x.float(), book) for x, book in zip(z_KNC, rows_KVC, strict=True)]
            codes_KN, lead_KN = (torch.stack(parts) for parts in zip(*both, strict=True))
            unsure_N = ~(lead_KN > _doubt(z_KNC, rows_KVC)).all(0)  # also where numbers are none
            if unsure_N.any():
                codes_KN[:, unsure_N] = _nearest(z_KNC[:, unsure_N], rows_KVC)
        else:
            codes_KN = _nearest(z_KNC, rows_KVC)
        return codes_KN.T.reshape(*z.shape[:-1], self.num_codebooks)

    def _look_up(self, codes_K: Tensor) -> Tensor:
        starts_K = torch.arange(self.num_codebooks, device=codes_K.device) * self.codebook_size
        q_KC = F.embedding(codes_K + starts_K, self._rows().flatten(end_dim=1))
        return rearrange(q_KC, "... k c -> ... (k c)")

    def _losses(self, z: Tensor, q: Tensor) -> dict[str, Tensor]:
        losses = {"commitment": (z - q.detach()).square().mean()}
        if not self.config.ema:
            losses["codebook"] = (q - z.detach()).square().mean()
        temperature = self.config.entropy_temperature
        if temperature is not None:
            z_KNC = self._split(z)
            rows_KVC = self._rows().clone()  # a moving-average step precedes the backward pass
            squares_KNV = z_KNC.square().sum(-1, keepdim=True) + rows_KVC.square().sum(-1)[:, None]
            scores_KNV = 2 * (z_KNC @ rows_KVC.mT) - squares_KNV
            form = self.config.entropy_form or "exact"
            per_sample_K, codebook_K = entropy_terms(scores_KNV, temperature, form)
            losses["per_sample_entropy"] = per_sample_K.mean()
            losses["codebook_entropy"] = codebook_K.mean()
        return losses

    def _rows(self) -> Tensor:
        """[K, V, C] float32 rows that codes stand for."""
        rows_KVC = self.codebook.float()
        return F.normalize(rows_KVC, dim=-1) if self.config.l2 else rows_KVC

    def _split(self, z: Tensor) -> Tensor:
        return rearrange(z, "... (k c) -> k (...) c", k=self.num_codebooks)

    def _random_inputs(self, z_KNC: Tensor) -> Tensor:
        """[K, V, C] inputs for new rows, the same on every process; few inputs repeat."""
        tokens = z_KNC.shape[1]
        repeats = -(-self.codebook_size // tokens)
        picks_V = torch.randperm(repeats * tokens, device=z_KNC.device)[: self.codebook_size]
        inputs_KVC = z_KNC[:, picks_V % tokens]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(inputs_KVC, src=0)
        return inputs_KVC

    @torch.no_grad()
    def _step(self, z_KNC: Tensor, codes_KN: Tensor, inputs_KVC: Tensor) -> None:
        """One step of the moving averages over all processes, then restart unused rows."""
        starts_K = torch.arange(self.num_codebooks, device=codes_KN.device) * self.codebook_size
        flat = (codes_KN + starts_K.unsqueeze(1)).flatten()
        with_count = F.pad(z_KNC, (0, 1), value=1.0).flatten(end_dim=1)
        sums = with_count.new_zeros(self.cluster_size.numel(), with_count.shape[-1])
        sums.index_add_(0, flat, with_count)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        sums_KVC = sums.reshape(*self.cluster_size.shape, -1)
        decay, eps = self.config.ema_decay, self.config.ema_eps
        self.cluster_size.mul_(decay).add_(sums_KVC[..., -1], alpha=1 - decay)
        self.embed_sum.mul_(decay).add_(sums_KVC[..., :-1], alpha=1 - decay)
        total_K1 = self.cluster_size.sum(-1, keepdim=True)
        weight_KV = (self.cluster_size + eps) / (total_K1 + self.codebook_size * eps) * total_K1
        rows_KVC = self.embed_sum / weight_KV.unsqueeze(-1)
        if self.config.ema_restart:
            unused_KV1 = (self.cluster_size < 1).unsqueeze(-1)
            rows_KVC = torch.where(unused_KV1, inputs_KVC, rows_KVC)
        self.codebook.copy_(rows_KVC)


def _nearest(z_KNC: Tensor, rows_KVC: Tensor) -> Tensor:
    """[K, N] nearest rows in float64, where there is one."""
    dtype = torch.float32 if z_KNC.device.type == "mps" else torch.float64
    rows_KVC = rows_KVC.to(dtype)
    minus_half_KV1 = rows_KVC.square().sum(-1, keepdim=True) / -2
    rows_KVC = torch.cat([rows_KVC, minus_half_KV1], dim=-1)  # for one more channel of ones
    at_once = max(1, _SCORES_AT_ONCE // minus_half_KV1.numel())
    codes = [
        torch.bmm(F.pad(part_KNC.to(dtype), (0, 1), value=1.0), rows_KVC.mT).max(-1).indices
        for part_KNC in torch.split(z_KNC, at_once, dim=1)
    ]
    return torch.cat(codes, dim=1)


def _doubt(z_KNC: Tensor, rows_KVC: Tensor) -> Tensor:
    """[K, N] twice the error that a score can have in float32.

    Higham 2002, Accuracy and Stability of Numerical Algorithms, equation 3.5, for C + 1 products;
    one more rounding of the half squares, and as much again to be sure.
    """
    largest_K1 = rows_KVC.norm(dim=-1).amax(-1, keepdim=True)
    size_KN: Tensor = z_KNC.float().norm(dim=-1) * largest_K1 + largest_K1.square() / 2
    return size_KN * (4 * (rows_KVC.shape[-1] + 4) * 2.0**-24)
