"""Operations per second of the networks, against those of one large matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from omnitok import Tokenizer
from omnitok.model import Autoencoder
from omnitok.nn.patch import grid_of
from omnitok.pixels import to_float
from omnitok.presets import preset
from tools.bench_clips import real_frames
from tools.bench_figures import Figure, fastest
from tools.bench_flops import group_flops

SIDE = 4096  # of the large square matrices
SIZE = (256, 256)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies matrices of bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def efficiency(tok: Tokenizer, quick: bool) -> list[Figure]:
    """Encoder and decoder of `tok` and of a `base`-sized shape, in each type there is."""
    base = Tokenizer(Autoencoder(preset("base")).requires_grad_(False), "0" * 64)
    base.model.to(tok.device)
    dtypes = [torch.float32, *([torch.bfloat16] if has_bfloat16(tok.device) else [])]
    figures = []
    for dtype in dtypes:
        for one, groups, least in ((tok, 9, 0.5), (base, 3, 0.65)):
            figures += one_model(one, dtype, 2 if quick else groups, 1 if quick else 5, least)
    if torch.bfloat16 in dtypes:
        figures.append(changed(tok))
    return figures


def one_model(
    tok: Tokenizer, dtype: torch.dtype, groups: int, rounds: int, least: float
) -> list[Figure]:
    """Both halves of one tokenizer, computing in `dtype`."""
    was, device = tok.dtype, tok.device
    tok.model.to(dtype)
    frames = real_frames(*SIZE)[: 1 + (groups - 1) * tok.patch[0]]
    x = to_float(frames.to(device).transpose(0, 1)[None], dtype)
    z = tok.encode(x)
    a = torch.randn(SIDE, SIDE, device=device).to(dtype)

    def waiting(run: Callable[[], Tensor]) -> Callable[[], None]:
        def timed() -> None:
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return timed

    seconds = fastest(
        {
            "encode": waiting(lambda: tok.encode(x)),
            "decode": waiting(lambda: tok.decode(z)),
            "product": waiting(lambda: a @ a),
        },
        rounds,
    )
    tok.model.to(was)
    peak = 2 * SIDE**3 / seconds["product"]
    grid = grid_of(SIZE, tok.patch)
    figures = []
    for name, side in (("encode", "encoder"), ("decode", "decoder")):
        work = sum(group_flops(tok.model, side, grid, group) for group in range(groups))
        rate = work / seconds[name]
        figures.append(
            Figure(
                name=f"{name}, {tok.config.name} at {SIZE[1]}x{SIZE[0]}, {str(dtype)[6:]}",
                measured=f"{rate / 1e9:.1f} GFLOP/s, {len(frames) / seconds[name]:.1f} frames/s",
                against=f"{peak / 1e9:.1f} GFLOP/s of a {SIDE}x{SIDE} product",
                ratio=rate / peak,
                least=least,
            )
        )
    return figures


def changed(tok: Tokenizer) -> Figure:
    """How many codes differ when the network computes in bfloat16."""
    frames = real_frames(*SIZE)[:33]
    was = tok.dtype
    exact = tok.tokenize(frames).data
    tok.model.to(torch.bfloat16)
    rough = tok.tokenize(frames).data
    tok.model.to(was)
    name = f"bfloat16 against {str(was)[6:]}, {tok.config.name}"
    if tok.codebook_size is None:
        error = float((rough.float() - exact).norm() / exact.norm())
        return Figure(name=name, measured=f"latents differ by {error:.2%} of their norm")
    share = float((rough != exact).double().mean())
    return Figure(name=name, measured=f"{share:.2%} of {exact.numel():,} codes change")
