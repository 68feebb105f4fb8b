"""Principal components of patches: the first weights of a run, and the baseline to beat.

With every block starting as the identity, an encoder whose embedding holds the whitened principal
components, and a decoder whose head holds their inverse, is exactly the best linear tokenizer of
that many numbers. Training starts there instead of at grey.

Shape suffixes: S samples, P values of a patch, R components.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnitok.groups import first_frame, num_groups
from omnitok.model import Autoencoder
from omnitok.nn.patch import Patch, pad_frames, patchify


@dataclass
class PCA:
    """Mean and principal components of patches.

    Attributes:
        mean: [P].
        components: [R, P], orthonormal rows in order of variance.
        std: [R] standard deviation along each.
    """

    mean: Tensor
    components: Tensor
    std: Tensor

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> PCA:
        """Fit to batches of [S, P] patches; sums are held in float64."""
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            x = batch.double()
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
        if count < 2:
            raise ValueError(f"a PCA needs at least 2 patches, got {count}")
        mean = total / count
        variance, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
        std = variance.clamp_min(0).sqrt().flip(0)
        return cls(mean.float(), vectors.T.flip(0).float(), std.float())

    def project(self, x: Tensor, rank: int) -> Tensor:
        """[..., P] to [..., rank] coefficients."""
        return (x - self.mean) @ self.components[:rank].T

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        """[..., rank] coefficients to [..., P]."""
        return coefficients @ self.components[: coefficients.shape[-1]] + self.mean


def split_patches(clips: Iterable[Tensor], patch: Patch) -> tuple[list[Tensor], list[Tensor]]:
    """Patches of first frames and of groups, from clips [B, 3, T, H, W] of any size."""
    still, moving = [], []
    for clip in clips:
        x = pad_frames(clip, patch, first_frame(num_groups(clip.shape[2], patch[0]), patch[0]))
        still.append(patchify(x[:, :, :1], (1, *patch[1:])).flatten(0, 2))
        if x.shape[2] > 1:
            moving.append(patchify(x[:, :, 1:], patch).flatten(0, 2))
    return still, moving


@torch.no_grad()
def start_as_pca(model: Autoencoder, clips: Iterable[Tensor]) -> None:
    """Set a fresh model's weights so that it is the PCA of the clips' patches.

    Args:
        model: A model whose blocks are the identity (`Autoencoder.reset_parameters`).
        clips: [B, 3, T, H, W] in [-1, 1]; if there are none, the model stays as it is.
    """
    still, moving = split_patches(clips, model.config.patch)
    if not still:
        return
    if not moving:  # pictures alone: as frames that stand still
        t = model.config.patch[0]
        moving = [patches.repeat(1, t) for patches in still]
    pcas = PCA.fit(still), PCA.fit(moving)
    dim = model.quantizer.dim
    rank = min(dim, len(pcas[1].std))  # a small patch may have fewer values than channels
    wide, deep = model.embed.out_features, model.head.in_features
    # Strong components are large in the residual stream, so that equal steps of the optimizer
    # disturb them less; whitened ones were measured to learn more slowly (docs/decisions.md).
    size = pcas[1].std[: max(wide, deep)].clamp_min(1e-4).sqrt()
    size = size / size[: min(wide, deep)].square().mean().sqrt()
    many = min(wide, len(pcas[1].std))
    _fill(model.embed, model.head, pcas[1], rank, size, size.new_ones(many).diag())
    turn = _turn(*pcas, rank, wide)
    _fill(model.embed_first, model.head_first, pcas[0], rank, size, turn)
    for layer, gain in ((model.to_latent, 1 / size[:rank]), (model.from_latent, size[:rank])):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        layer.weight[:rank, :rank] = torch.diag(gain)
    if model.quantizer.input_dim == 2 * dim:  # KL: a small variance to begin with
        model.to_latent.bias[dim:] = -8.0
    elif model.quantizer.codebook_size is not None:
        model.from_latent.weight[:rank, :rank] *= 2.0  # codes lie in [-1, 1], latents in +-2


def _turn(still: PCA, moving: PCA, rank: int, wide: int) -> Tensor:
    """Channels from the components of stills, [wide, R]: those of the clips that stand still.

    A channel then means the same in both, and what the blocks learn of pictures holds for clips.
    The turn is the one closest to the map between both bases (orthogonal Procrustes, Schoenemann
    1966), for the components that pass the bottleneck and for the others apart.
    """
    frames = moving.components.shape[1] // still.components.shape[1]
    shown = moving.components.view(len(moving.components), frames, -1).sum(1) / frames**0.5
    columns, rows = min(wide, len(still.std)), min(wide, len(moving.std))
    turn: Tensor = shown.new_zeros(rows, columns)
    for down, across in (
        (slice(rank), slice(rank)),
        (slice(rank, rows), slice(rank, columns)),
    ):
        likeness = shown[down] @ still.components[across].T
        left, _, right = torch.linalg.svd(likeness, full_matrices=False)
        turn[down, across] = left @ right
    return turn


def _fill(
    embed: nn.Linear, head: nn.Linear, pca: PCA, rank: int, size: Tensor, turn: Tensor
) -> None:
    rows, columns = turn.shape
    # noise is not blown up to the size of the signal
    scale = 1 / (pca.std[:columns] + 0.02 * pca.std[0]).clamp_min(1e-4)
    scale[:rank] = 1 / pca.std[:rank].clamp_min(1e-4)
    nn.init.zeros_(embed.weight)
    embed.weight[:rows] = size[:rows, None] * (turn @ (pca.components[:columns] * scale[:, None]))
    embed.bias.copy_(-embed.weight @ pca.mean)
    nn.init.zeros_(head.weight)
    back = (pca.components[:rank] * pca.std[:rank, None]).T @ turn[:rank, :rank].T
    head.weight[:, :rank] = back / size[:rank]
    head.bias.copy_(pca.mean)
