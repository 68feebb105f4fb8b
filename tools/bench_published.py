"""Published networks run by our parts, against a plain reading of the published computation.

    python -m tools.bench_published [atoken] [--depth 27] [--frames 16] [--size 256]

Same random weights, input and type in one run; CPU seconds of encode plus decode, the least of
some rounds each. Figures of networks with fewer layers are close to those of the full depth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tools.bench_figures import HEAD, Figure
from tools.commands.evaluating import table

if TYPE_CHECKING:
    from omnitok import Tokenizer


def cpu_seconds(
    runs: Mapping[str, Callable[[], Tensor]], rounds: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The least CPU time of each, taken in turns, and their results."""
    best, results = dict.fromkeys(runs, float("inf")), {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            results[name] = run()
            best[name] = min(best[name], time.process_time() - start)
    return best, results


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, for pixels from -1 to 1."""
    error = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(4 / error))


def reconstruct(tok: Tokenizer, x_BCTHW: Tensor) -> Tensor:
    """Encode and decode a clip: [3, T, H, W]."""
    _, _, frames, height, width = x_BCTHW.shape
    return tok.decode(tok.encode(x_BCTHW), size=(frames, height, width))[0]


@torch.no_grad()
def atoken(args: argparse.Namespace) -> list[Figure]:
    """AToken So/C, or fewer of its layers, on one clip."""
    from omnitok.interop.atoken import config_of, published_name
    from omnitok.interop.atoken_net import ATokenModel
    from omnitok.interop.atoken_pixels import to_tokens
    from omnitok.interop.atoken_tokenizer import ATokenTokenizer
    from tools.plain_atoken import PlainAToken, arch

    torch.manual_seed(0)
    model = ATokenModel(config_of("so-c", arch(1152, 16, args.depth, 4304))).eval()
    for parameter in model.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    x = torch.rand(1, 3, args.frames, args.size, args.size) * 2 - 1
    figures, exact = [], None
    for dtype in (torch.float32, torch.bfloat16):
        tok = ATokenTokenizer(model.to(dtype), "0" * 64)
        weights = {published_name(name): tensor for name, tensor in model.state_dict().items()}
        plain = PlainAToken(weights, 16)
        patches, coords = to_tokens(x[0].to(dtype), tok.patch)
        coords = torch.nn.functional.pad(coords, (1, 0)).int()
        runs: dict[str, Callable[[], Tensor]] = {
            "ours": partial(reconstruct, tok, x),
            "plain": partial(plain.reconstruct, patches, coords),
        }
        seconds, results = cpu_seconds(runs, args.rounds)
        where = f"atoken so-c, {args.depth}+{args.depth} layers, {args.frames}x{args.size}²"
        recon, _ = to_tokens(results["ours"], tok.patch)
        same = f"results are {psnr(recon, results['plain']):.0f} dB apart"
        figures.append(
            Figure(
                name=f"{where}, {str(dtype)[6:]} ({same})",
                measured=f"{seconds['ours']:.2f} CPU s",
                against=f"{seconds['plain']:.2f} CPU s of the plain computation",
                ratio=seconds["ours"] / seconds["plain"],
                most=0.75,
            )
        )
        if exact is not None:
            figures.append(
                Figure(
                    name=f"{where}, bfloat16 ({psnr(*exact[1:], results['ours']):.1f} dB from it)",
                    measured=f"{seconds['ours']:.2f} CPU s",
                    against=f"{exact[0]:.2f} CPU s of float32",
                    ratio=seconds["ours"] / exact[0],
                    most=0.25,
                )
            )
        exact = (seconds["ours"], results["ours"])
    return figures


BENCHES = {"atoken": atoken}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--depth", type=int, default=3, help="layers of each side; 27 as published")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(BENCHES)):
        parser.error(f"there is no bench {unknown[0]!r}; choose of {', '.join(BENCHES)}")
    torch.set_num_threads(args.threads)
    for name in args.names or BENCHES:
        figures = BENCHES[name](args)
        print(f"\n### {name}\n", *table([HEAD, *(f.row for f in figures)]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
