"""Weights of one tokenizer in another that differs in its bottleneck, or goes on to clips.

Blocks, embeddings and heads are taken over. The new projections are fitted so that what the
decoder is given stays as it was, as far as the new bottleneck can carry it: then the loss does not
jump where training goes on. Parts for clips grow out of those for images (`inflate`).

Shape suffixes: S samples (tokens), E width of the encoder, D width of the decoder, R channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from omnitok.checkpoint import CheckpointError
from omnitok.interop.omnitokenizer_inflate import MOVING, inflate
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from omnitok.model import Autoencoder
from omnitok.quantize import VQ
from omnitok.train.network import Model

RIDGE = 1e-4  # of the mean variance: keeps the fits finite where channels are empty
LOW_LOGVAR = -8.0
GAINS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4)  # standard deviations of a bottleneck's input to try
OWN = ("to_latent.", "from_latent.", "quantizer.")
PLANES = "planes."
CLIPS = ("embed.", "head.")  # what only moving patches meet
STILLS = ("embed_first.", "head_first.")  # and what only still ones do


@torch.no_grad()
def move_over(
    old: Model, new: Model, clips: Iterable[Tensor], inflation: str | None = None
) -> None:
    """Give `new` the weights of `old`.

    Args:
        old: Any state; it is left as it is.
        new: The same but for its bottleneck; it may also have a 3D stage, which is left as it is.
        clips: [B, 3, T, H, W] in [-1, 1] to fit the new projections to; not used where the
            bottlenecks are alike.
        inflation: Where `old` is an OmniTokenizer that has seen images alone: how the parts for
            clips begin (`omnitok.interop.omnitokenizer_inflate`). Frames of a patch and positions
            may then differ too.

    Raises:
        CheckpointError: The models differ in more, or there are no clips to fit to.
    """
    if type(old) is not type(new):
        raise CheckpointError(
            f"the weights to start from are of a {type(old).__name__}, which does not fit into the "
            f"{type(new).__name__} that the run trains; choose another model or other weights"
        )
    before, after = old.state_dict(), new.state_dict()
    alike = old.config.quantizer == new.config.quantizer
    added = () if any(n.startswith(PLANES) for n in before) else (PLANES,)
    begun = () if inflation is None else (*MOVING, *_changed_positions(old, new))
    own = (*(() if alike else OWN), *added, *begun)
    kept = {n: t for n, t in before.items() if not n.startswith(own)}
    for name in sorted(set(kept) | {n for n in after if not n.startswith(own)}):
        if name not in kept or name not in after or kept[name].shape != after[name].shape:
            raise CheckpointError(
                f"the weights to start from do not fit the new model at {name!r}; only the "
                "bottleneck may differ, a 3D stage be added, and with `inflate` the parts for "
                "clips begin anew"
            )
    new.load_state_dict({**after, **kept})
    if inflation is not None:
        assert isinstance(new, OmniTokenizerNet)  # `check_stage` has refused others
        inflate(new, inflation)
    if not alike:
        _fit_bottleneck(old, new, clips)


@torch.no_grad()
def learn_from_stills(model: Autoencoder, start: Mapping[str, Tensor]) -> None:
    """Give the embedding and the head of moving patches what those of still ones have learned.

    A clip that stands still gains what its frames would gain as pictures. What tells moving patches
    apart stays as it was, and so do pictures. The channels of both must mean the same, as they do
    from `omnitok.train.pca.start_as_pca` on.

    Args:
        model: That has seen pictures alone; changed in place.
        start: Its weights before that, by name; those of `STILLS` are enough.
    """
    frames = model.config.patch[0]
    gain = {n: p - start[n] for n, p in model.named_parameters() if n.startswith(STILLS)}
    for name, layer, spread in (
        ("embed", model.embed, (1, frames)),
        ("head", model.head, (frames, 1)),
    ):
        mean = spread[1]  # values of all frames of a patch add up
        layer.weight.add_(gain[f"{name}_first.weight"].repeat(spread) / mean)
        layer.bias.add_(gain[f"{name}_first.bias"].repeat(spread[0]))


def _changed_positions(old: Model, new: Model) -> tuple[str, ...]:
    """Names of the learned biases where the models do not tell places apart in the same way."""
    assert isinstance(old, OmniTokenizerNet)
    assert isinstance(new, OmniTokenizerNet)
    configs = (old.config, new.config)
    told = [c.position if c.position == "rope" else f"rel, {c.attention}" for c in configs]
    if told[0] == told[1]:
        return ()
    warnings.warn(
        f"positions go from {told[0]!r} to {told[1]!r}, as in the published recipe, so the loss on "
        "images jumps; set model.position and model.attention to those of the weights to keep it",
        stacklevel=2,
    )
    return tuple(n for n in {**old.state_dict(), **new.state_dict()} if ".position." in n)


def _fit_bottleneck(old: Model, new: Model, clips: Iterable[Tensor]) -> None:
    encoded_SE, given_SD = _look_inside(old, clips)
    rank = min(new.quantizer.dim, given_SD.shape[1])
    mean_D = given_SD.mean(0)
    _, spread, axes_DD = torch.linalg.svd(given_SD - mean_D, full_matrices=False)
    scale = (spread[:rank] / len(given_SD) ** 0.5).clamp_min(1e-6)
    axes_RD = axes_DD[:rank]  # up to their signs, which must not hang on the last bits of a clip
    axes_RD = axes_RD * axes_RD.gather(1, axes_RD.abs().argmax(1, keepdim=True)).sign()
    wanted_SR = (given_SD - mean_D) @ axes_RD.T / scale  # unit variance, uncorrelated
    weight, bias = _affine(encoded_SE, wanted_SR)
    fits = [_try(new, gain, weight, bias, encoded_SE, given_SD) for gain in GAINS]
    _try(new, GAINS[fits.index(min(fits))], weight, bias, encoded_SE, given_SD)


def _try(
    new: Model, gain: float, weight: Tensor, bias: Tensor, encoded_SE: Tensor, given_SD: Tensor
) -> float:
    """Set the projections for latents of standard deviation `gain`; what the decoder then lacks."""
    quantizer, rank = new.quantizer, len(bias)
    for layer in (new.to_latent.weight, new.to_latent.bias):
        nn.init.zeros_(layer)
    new.to_latent.weight[:rank], new.to_latent.bias[:rank] = gain * weight, gain * bias
    if quantizer.input_dim == 2 * quantizer.dim:
        new.to_latent.bias[quantizer.dim :] = LOW_LOGVAR
    z_SL = new.to_latent(encoded_SE.float())
    if isinstance(quantizer, VQ):
        _seed_codebook(quantizer, z_SL)
    training = quantizer.training
    carried_SR = quantizer.eval()(z_SL).z_q.double()
    quantizer.train(training)
    back, offset = _affine(carried_SR, given_SD)
    new.from_latent.weight.copy_(back)
    new.from_latent.bias.copy_(offset)
    return float((carried_SR @ back.T + offset - given_SD).square().mean())


def _look_inside(old: Model, clips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Float64 [S, E] what the encoder of `old` made of the clips, [S, D] what its decoder got."""
    encoded: list[Tensor] = []
    given: list[Tensor] = []
    hooks = (
        old.to_latent.register_forward_pre_hook(lambda _, x: encoded.append(x[0].flatten(0, -2))),
        old.from_latent.register_forward_hook(lambda _, x, y: given.append(y.flatten(0, -2))),
    )
    training = old.training
    old.eval()
    for clip in clips:
        old(clip)
    old.train(training)
    for hook in hooks:
        hook.remove()
    if not encoded:
        raise CheckpointError(
            "a new quantizer is fitted to pictures or videos, and no later batch has any; add some "
            "to the mix, or keep the quantizer"
        )
    return torch.cat(encoded).double(), torch.cat(given).double()


def _affine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the least-squares map from rows of `x` to rows of `y`."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    square = x.T @ x
    square.diagonal().add_(RIDGE * square.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(square, x.T @ (y - y_mean)).T
    return weight, y_mean - weight @ x_mean


def _seed_codebook(quantizer: VQ, z_SL: Tensor) -> None:
    """Rows of a codebook from latents picked at random, if it holds none yet."""
    rows_KSC = quantizer._split(quantizer._prepare(z_SL.float()))
    picks = torch.randint(rows_KSC.shape[1], (quantizer.codebook_size,), device=z_SL.device)
    quantizer.codebook.copy_(rows_KSC[:, picks])
