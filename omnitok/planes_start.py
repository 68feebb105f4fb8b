"""First weights of a 3D stage on any trunk: the principal components of the raster's patches.

Shape suffixes: B batch, P planes, C channels, R cells, S samples, V values of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnitok.model import Autoencoder
from omnitok.planes import CONTRAST, VIEW_SHARE
from omnitok.train.pca import PCA

REST = 0.3  # size of what goes into the trunk beside the components that reach the latents
RIDGE = 1e-3  # of the mean square of the decoder's features


@torch.no_grad()
def start_planes(model: Autoencoder, rasters: Sequence[Tensor]) -> None:
    """Set the 3D embedding and head so that the model begins as a linear tokenizer of profiles.

    The embedding puts the principal components where the trunk's bottleneck reads; the head is
    fitted by least squares to what the decoder makes of them, whether the trunk is fresh or was
    trained on images.

    Args:
        model: With a 3D stage.
        rasters: Training shapes, [B, P, C, R, R] each, on the device of the model.

    Raises:
        ValueError: A decoded cell is not a cell of the raster.
    """
    parts = model.planes
    assert parts is not None
    config = parts.config
    if config.fine != config.cells:
        raise ValueError(f"planes fine={config.fine} and cells={config.cells} must be equal")
    weight_C = parts.embed.weight.new_ones(config.channels)
    weight_C[config.bins :] = VIEW_SHARE
    scale_V = weight_C.repeat(config.cells**2)
    pca = PCA.fit(_patches(raster, config.cells) * scale_V for raster in rasters)
    _fill_embedding(model, parts.embed, pca, scale_V)
    _fit_head(model, rasters)


def _patches(raster_BPCRR: Tensor, cells: int) -> Tensor:
    """[S, V] in the order of the embedding."""
    return rearrange(raster_BPCRR, "b p c (i u) (j v) -> (b p i j) (u v c)", u=cells, v=cells)


def _fill_embedding(model: Autoencoder, embed: nn.Linear, pca: PCA, scale_V: Tensor) -> None:
    """Unit-variance components onto the latents; further ones beside them, for the trunk."""
    rank = model.quantizer.dim
    if not model.to_latent.bias[rank:].any():  # KL of a fresh model: little noise to begin with
        model.to_latent.weight[rank:] = 0.0
        model.to_latent.bias[rank:] = -8.0
    read, bias = model.to_latent.weight.float(), model.to_latent.bias.float()
    onto = torch.linalg.pinv(read)[:, :rank]
    beside = torch.linalg.svd(read, full_matrices=True).Vh[read.shape[0] :].T
    extra = min(beside.shape[1], len(pca.std) - rank)
    unit = pca.components[: rank + extra] / (pca.std[: rank + extra] + 0.02 * pca.std[0])[:, None]
    unit[:rank] = pca.components[:rank] / pca.std[:rank].clamp_min(1e-4)[:, None]
    place = torch.cat([onto, REST * beside[:, :extra]], dim=1)
    weight = place @ unit
    embed.weight.copy_(weight * scale_V)
    embed.bias.copy_(-(weight @ pca.mean) - onto @ bias[:rank])


def _fit_head(model: Autoencoder, rasters: Sequence[Tensor]) -> None:
    """Ridge regression from the decoder's features to a third of the logits of each plane."""
    parts = model.planes
    assert parts is not None
    config = parts.config
    deep = model.config.decoder.width
    gram = parts.head.weight.new_zeros(deep + 1, deep + 1, dtype=torch.float64)
    cross: Tensor | None = None
    kept = {}
    for module in model.modules():  # features of the means, not of samples
        kept[module] = module.training
        module.training = False
    for raster in rasters:
        z = model.quantizer(model.encode_planes(raster)).z_q
        from_decoder = model.decode_features(z).flatten(0, 2).double()
        ones = F.pad(from_decoder, (0, 1), value=1.0)
        wanted = _patches(raster[:, :, : config.bins], config.cells).double()
        wanted = (wanted - 0.5) * (CONTRAST / 3)
        gram += ones.T @ ones
        cross = ones.T @ wanted if cross is None else cross + ones.T @ wanted
    for module, training in kept.items():
        module.training = training
    assert cross is not None
    gram.diagonal()[:-1].add_(RIDGE * gram.diagonal()[:-1].mean())
    solved = torch.linalg.solve(gram, cross).float()
    rows = torch.arange(config.fine**2 * (config.features + config.bins))
    profile = rows % (config.features + config.bins) >= config.features
    parts.head.weight[profile] = solved[:-1].T
    parts.head.bias[profile] = solved[-1]
    parts.field[-1].bias[0] = 0.0  # type: ignore[operator]
