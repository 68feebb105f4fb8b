"""Published networks run by our parts, against a plain reading of the published computation.

    python -m tools.bench_published [atoken omnitokenizer] [--depth 27] [--size 256] [--threads 2]

Same random weights, same input and same type in one run, encode plus decode; CPU seconds are the
least of some rounds. With fewer layers than were published (--depth) the figures of AToken come
sooner and are close to those of all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tools.bench_figures import HEAD, Figure
from tools.commands.evaluating import table

if TYPE_CHECKING:
    from omnitok import Tokenizer

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # not counted otherwise
M = TypeVar("M", bound=nn.Module)
SIDE = 2048  # of the matrices that give the speed of a matrix product
LESS_MEMORY, FASTER_IN_HALF, BUSY = 0.6, 0.25, 0.7  # wanted: of theirs; of float32; of a product


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One clip through one network, in two ways.

    Attributes:
        name: Of the network and the clip.
        ours: What our parts reconstruct: [B, 3, T, H, W].
        plain: The same, computed as published.
        most: CPU seconds wanted, as a share of the plain computation's.
    """

    name: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    most: float


def atoken(args: argparse.Namespace, dtype: torch.dtype) -> Contest:
    """AToken So/C, or fewer of its layers, on 16 frames."""
    from omnitok.interop.atoken import config_of, published_name
    from omnitok.interop.atoken_net import ATokenModel
    from omnitok.interop.atoken_pixels import to_tokens
    from omnitok.interop.atoken_tokenizer import ATokenTokenizer
    from omnitok.nn.patch import unpatchify
    from tools.plain_atoken import PlainAToken, arch

    model = ATokenModel(config_of("so-c", arch(1152, 16, args.depth, 4304)))
    tok = ATokenTokenizer(_randomised(model).to(dtype), "0" * 64)
    weights = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    plain, x = PlainAToken(weights, (16, 16)), _noise(16, args.size, dtype)

    def published() -> Tensor:
        patches, coords = to_tokens(x[0], tok.patch)
        out = plain.reconstruct(patches, nn.functional.pad(coords, (1, 0)).int())
        return unpatchify(out.view(1, 4, -1, out.shape[1]), tok.patch, tok.grid((args.size,) * 2))

    return Contest(
        name=f"atoken so-c, {args.depth}+{args.depth} layers, {_shape(x)}",
        ours=lambda: _reconstruct(tok, x),
        plain=published,
        most=0.75,
    )


def omnitokenizer(args: argparse.Namespace, dtype: torch.dtype) -> Contest:
    """OmniTokenizer in the released shape, on 17 frames."""
    from omnitok.interop.omnitokenizer import OmniTokenizer, published_name
    from omnitok.interop.omnitokenizer_config import config_of
    from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
    from tools.plain_omnitokenizer import RELEASED, PlainOmniTokenizer

    model = _randomised(OmniTokenizerNet(config_of("omnitokenizer", RELEASED, {}))).to(dtype)
    tok, x = OmniTokenizer(model, "0" * 64), _noise(17, args.size, dtype)
    weights = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    weights["codebook.embeddings"] = weights["codebook.embeddings"][0]
    plain = PlainOmniTokenizer(weights, RELEASED)

    def ours() -> Tensor:
        return tok.decode(tok.dequantize(tok.quantize(tok.encode(x))))

    def published() -> Tensor:
        return plain.decode(plain.quantize(plain.encode(x / 2))[1]) * 2

    return Contest(name=f"omnitokenizer, {_shape(x)}", ours=ours, plain=published, most=0.6)


CONTESTS = {"atoken": atoken, "omnitokenizer": omnitokenizer}


def _randomised(model: M) -> M:
    """Random weights, the same every time, with results of about the size of pixels."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.eval().requires_grad_(False).parameters():
        if parameter.ndim == 1:
            parameter.normal_(1.0, 0.1, generator=generator)
        else:
            parameter.normal_(0.0, 0.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return model


def _noise(frames: int, size: int, dtype: torch.dtype) -> Tensor:
    x = torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(1))
    return (x * 2 - 1).to(dtype)


def _shape(x: Tensor) -> str:
    return "x".join(str(size) for size in x.shape[2:])


def _reconstruct(tok: Tokenizer, x_BCTHW: Tensor) -> Tensor:
    _, _, frames, height, width = x_BCTHW.shape
    return tok.decode(tok.encode(x_BCTHW), size=(frames, height, width))


@torch.no_grad()
def race(
    make: Callable[[argparse.Namespace, torch.dtype], Contest], args: argparse.Namespace
) -> list[Figure]:
    """The figures of one network."""
    figures: list[Figure] = []
    exact: tuple[float, Tensor] | None = None
    for dtype in (torch.float32, torch.bfloat16):
        contest, kind = make(args, dtype), str(dtype)[6:]
        square = torch.randn(SIDE, SIDE).to(dtype)
        product = partial(torch.mm, square, square)
        runs: dict[str, Callable[[], Tensor]] = {"ours": contest.ours, "plain": contest.plain}
        runs["product"] = product
        seconds, results = cpu_seconds(runs, args.rounds)
        ours = seconds["ours"]
        apart = psnr(results["ours"], results["plain"])
        figures.append(
            Figure(
                name=f"{contest.name}, {kind} ({apart:.0f} dB apart)",
                measured=f"{ours:.2f} CPU s",
                against=f"{seconds['plain']:.2f} CPU s of the plain computation",
                ratio=ours / seconds["plain"],
                most=contest.most,
            )
        )
        if exact is None:
            exact = ours, results["ours"]
            figures.append(_efficiency(contest, ours, 2 * SIDE**3 / seconds["product"]))
            figures.append(memory(contest))
            continue
        figures.append(
            Figure(
                name=f"{contest.name}, {kind} ({psnr(exact[1], results['ours']):.1f} dB from it)",
                measured=f"{ours:.2f} CPU s",
                against=f"{exact[0]:.2f} CPU s of float32",
                ratio=ours / exact[0],
                most=FASTER_IN_HALF,
            )
        )
    return figures


def cpu_seconds(
    runs: Mapping[str, Callable[[], Tensor]], rounds: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The least CPU time of each, taken in turns after a round that is not counted."""
    best, results = dict.fromkeys(runs, float("inf")), {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            results[name] = run()
            if number:
                best[name] = min(best[name], time.process_time() - start)
    return best, results


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, for pixels from -1 to 1."""
    error = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(4 / error))


def _attention_flops(q: list[int], k: list[int], *_: object, **__: object) -> int:
    """Of two products, from the shapes [B, H, N, K] of queries and keys."""
    return 4 * math.prod(q) * k[-2]


def _addmm_flops(_: object, a: list[int], b: list[int], *__: object, **___: object) -> int:
    """Of the product, from the shapes of what is added to and of both matrices."""
    return 2 * math.prod(a) * b[-1]


def _efficiency(contest: Contest, seconds: float, peak: float) -> Figure:
    mapping = {ATTENTION: _attention_flops, torch.ops.aten.addmm_: _addmm_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        contest.ours()
    rate = counter.get_total_flops() / seconds
    return Figure(
        name=f"{contest.name}, float32, operations per CPU second",
        measured=f"{rate / 1e9:.0f} GFLOP/s",
        against=f"{peak / 1e9:.0f} GFLOP/s of a {SIDE}x{SIDE} product",
        ratio=rate / peak,
        least=BUSY,
    )


@torch.no_grad()
def memory(contest: Contest) -> Figure:
    """Most bytes of tensors at a time, of either way."""
    peaks = [peak(way) for way in (contest.ours, contest.plain)]
    return Figure(
        name=f"{contest.name}, most memory of tensors beyond the weights, float32",
        measured=f"{peaks[0] / 2**20:.0f} MiB",
        against=f"{peaks[1] / 2**20:.0f} MiB of the plain computation",
        ratio=peaks[0] / peaks[1],
        most=LESS_MEMORY,
    )


def peak(run: Callable[[], object]) -> int:
    """Bytes that the tensors which a run makes take at most; it must have run before.

    What libraries keep for themselves is as large as these, and not the same every time.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return int(max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]"))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONTESTS)}")
    parser.add_argument("--depth", type=int, default=3, help="AToken's layers on each side, of 27")
    parser.add_argument("--size", type=int, default=256, help="side of the frames in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(CONTESTS)):
        parser.error(f"there is no network {unknown[0]!r}; choose of {', '.join(CONTESTS)}")
    torch.set_num_threads(args.threads)
    for name in args.names or CONTESTS:
        figures = race(CONTESTS[name], args)
        print(f"\n### {name}\n", *table([HEAD, *(f.row for f in figures)]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
