"""Floating-point operations of a tokenizer, counted from its shape."""

from __future__ import annotations

from omnitok.config import StackConfig
from omnitok.model import Autoencoder
from omnitok.nn.layout import Layout


def group_flops(model: Autoencoder, side: str, grid: tuple[int, int], group: int) -> int:
    """Operations of all linear layers and attention products on one group of a stream.

    A multiplication and an addition count as two. Norms, rotations, softmax, activations and the
    search of a codebook are left out: they are not what a matrix unit does.

    Args:
        model: The network.
        side: "encoder" (pixels to what the bottleneck takes) or "decoder" (latents to pixels).
        grid: (h, w) in patches.
        group: Its number; 0 is the first frame, later ones look back at those before.
    """
    t, h, w = model.config.patch
    config: StackConfig = getattr(model.config, side)
    pixels = 3 * h * w * (t if group else 1)
    latent = model.quantizer.input_dim if side == "encoder" else model.quantizer.dim
    ends = 2 * grid[0] * grid[1] * config.width * (pixels + latent)
    return ends + _stack_flops(config, model.layout(side, grid), 1 + min(group, config.lookback))


def _stack_flops(config: StackConfig, layout: Layout, seen: int) -> int:
    """Operations on one group whose tokens see `seen` groups."""
    width, gates = config.width, 2 if config.mlp == "swiglu" else 1
    weights = 4 * width * width + (gates + 1) * width * config.mlp_hidden
    linear = 2 * len(layout.coords_NA) * weights * config.depth
    products = sum(
        2 * 2 * windows * size * size * seen * width
        for kind in config.layers
        for windows, size in layout.partitions[kind].runs
    )
    return linear + products
