"""Compression methods: speed against plain readings of the published code, growth, and worth.

    OMP_WAIT_POLICY=passive python -m tools.bench_compress [speed growth prefill] [--quick]

Every published computation is written down here as its authors' code runs it: whole tensors are
normalised, sorted, gathered and scattered. Contenders take turns in one process, their outputs are
compared, and times are those of the processor, so that a busy machine counts less; threads that
wait must not spin then, hence the variable.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import process_time

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tools.bench_figures import HEAD, Figure
from tools.commands.evaluating import table
from video.compress import METHODS, plan
from video.compress.recipes.chat_univi import cluster
from video.compress.recipes.dycoke import dycoke
from video.compress.recipes.tome import tome_round
from video.compress.recipes.visionzip import visionzip_step

FRAMES, PLACES, WIDTH = 64, 196, 1152
NEIGHBOURS_ONLY = ("dycoke", "evs", "framefusion", "tome", "visionzip", "sta", "lftr")


def scenes(frames: int, places: int, width: int, scene: int = 8) -> Tensor:
    """Tokens of scenes in which frames are alike, so that merges really happen."""
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(-(-frames // scene), 1, places, width, generator=generator)
    noise = torch.randn(frames, places, width, generator=generator)
    return still.expand(-1, scene, -1, -1).flatten(0, 1)[:frames] + 0.3 * noise


def plain_tome(x: Tensor, r: int) -> Tensor:
    """Bipartite matching and the average by size, tensor by tensor."""
    metric = x / x.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    gone, left = order[:, :r], order[:, r:]
    target = partner[..., None].gather(1, gone)

    def merge(y: Tensor) -> Tensor:
        even, odd = y[:, ::2], y[:, 1::2]
        D = y.shape[2]
        stays = even.gather(1, left.expand(-1, -1, D))
        moved = even.gather(1, gone.expand(-1, -1, D))
        odd = odd.scatter_reduce(1, target.expand(-1, -1, D), moved, reduce="sum")
        return torch.cat([stays, odd], dim=1)

    size = torch.ones_like(x[..., :1])
    return merge(x * size) / merge(size)


def plain_dycoke(x: Tensor, k: float) -> Tensor:
    """Frame by frame: both normalised, their cosines, and the least similar."""
    T, N, _ = x.shape
    count = int((1 - k) * N)
    frames = list(x)

    def prune(first: int, second: int) -> None:
        a, b = (F.normalize(frames[t], p=2, dim=1) for t in (first, second))
        similarity = F.cosine_similarity(a, b, dim=1)
        frames[second] = frames[second][similarity.topk(count, largest=False).indices]

    for t in range(0, T - 1, 2):
        prune(t, t + 1)
    for t in range(0, T - 4, 4):
        prune(t, t + 2)
    return torch.cat(frames)


def plain_dpc(x: Tensor, count: int, k: int) -> Tensor:
    """Density peaks with all distances and masks at once, and the mean of each cluster."""
    B, N, C = x.shape
    distance = torch.cdist(x, x) / C**0.5
    density = (-(distance.topk(k, dim=-1, largest=False).values ** 2).mean(-1)).exp()
    denser = (density[:, None] > density[:, :, None]).type(x.dtype)
    furthest = distance.flatten(1).max(dim=-1).values[:, None, None]
    far = (distance * denser + furthest * (1 - denser)).min(dim=-1).values
    centres = (far * density).topk(count, dim=-1).indices
    rows = torch.arange(B)[:, None]
    label = distance[rows, centres].argmin(dim=1)
    label[rows, centres] = torch.arange(count).expand(B, count)
    slot = (label + rows * count).flatten()
    weight = x.new_ones(B * N, 1)
    total = x.new_zeros(B * count, 1).index_add(0, slot, weight) + 1e-6
    share = weight / total[slot]
    merged = x.new_zeros(B * count, C).index_add(0, slot, x.flatten(0, 1) * share)
    return merged.view(B, count, C)


def plain_visionzip(x: Tensor, attention: Tensor, keys: Tensor, best: int, few: int) -> Tensor:
    """Masked copies of the tokens that stay and of the others, and a matrix that joins them."""
    B, N, D = x.shape
    index = attention[:, :, 0, 1:].sum(dim=1).topk(best, dim=1).indices + 1
    index = torch.cat([torch.zeros(B, 1, dtype=torch.long), index], dim=1)
    left = torch.ones(B, N, dtype=torch.bool).scatter(1, index, False)
    stays = x.masked_select(~left[..., None]).view(B, best + 1, D)
    metric = keys[left].view(B, N - best - 1, keys.shape[2])
    others = x.masked_select(left[..., None]).view(B, N - best - 1, D)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    targets = torch.arange(0, metric.shape[1], max(1, metric.shape[1] // few))[:few]
    joins = torch.ones(metric.shape[1], dtype=torch.bool)
    joins[targets] = False
    similarity = metric[:, joins] @ metric[:, targets].transpose(1, 2)
    one_hot = torch.zeros(B, similarity.shape[1], few)
    one_hot.scatter_(2, similarity.argmax(dim=2)[..., None], 1)
    counts = one_hot.sum(dim=1).clamp(min=1)[..., None]
    means = one_hot.transpose(1, 2) @ others[:, joins] / counts
    return torch.cat([stays, others[:, targets] + means], dim=1)


def turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least processor seconds of each over some rounds, in which they take turns."""
    best = dict.fromkeys(contenders, float("inf"))
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = process_time()
            run()
            if number:
                best[name] = min(best[name], process_time() - start)
    return best


def by_first(y: Tensor) -> Tensor:
    """Outputs in one order, as peaks that are equal but for rounding come in any."""
    order = y[..., 0].argsort(dim=1)
    return y.gather(1, order[..., None].expand_as(y))


def speed(quick: bool) -> list[Figure]:
    """Four steps against the published code, with the same output."""
    x = scenes(FRAMES, PLACES, WIDTH)
    generator = torch.Generator().manual_seed(1)
    with_class = torch.cat([torch.randn(FRAMES, 1, WIDTH, generator=generator), x], dim=1)
    logits = torch.randn(FRAMES, 16, PLACES + 1, PLACES + 1, generator=generator)
    attention = (3 * logits).softmax(dim=-1)
    keys = torch.randn(FRAMES, PLACES + 1, 72, generator=generator)

    def our_visionzip() -> Tensor:
        score = attention[:, :, 0].sum(dim=1)
        score[:, 0] = torch.inf
        return visionzip_step(score, keys, 54, 10).apply(with_class)

    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "ToMe, 196 to 98 in each frame": (
            lambda: tome_round(x, 98).apply(x),
            lambda: plain_tome(x, 98),
        ),
        "DPC-KNN, 196 to 64 in each frame": (
            lambda: cluster(x, 64, 5).apply(x),
            lambda: plain_dpc(x, 64, 5),
        ),
        "DyCoke, k = 0.7": (
            lambda: dycoke(x[None], k=0.7, upstream_ends=True).apply(x)[0],
            lambda: plain_dycoke(x, 0.7),
        ),
        "VisionZip, 54 + 10 of 197 in each frame": (
            our_visionzip,
            lambda: plain_visionzip(with_class, attention, keys, 53, 10),
        ),
    }
    figures = []
    for name, (ours, theirs) in pairs.items():
        outputs = [by_first(run()) if "DPC" in name else run() for run in (ours, theirs)]
        torch.testing.assert_close(*outputs, atol=2e-4, rtol=1e-4)
        times = turns({"ours": ours, "theirs": theirs}, 3 if quick else 11)
        figures.append(
            Figure(
                name=name,
                measured=f"{1e3 * times['ours']:.0f} ms",
                against=f"{1e3 * times['theirs']:.0f} ms of the published code",
                ratio=times["ours"] / times["theirs"],
                most=0.5,
            )
        )
    return figures


def quarter(name: str, x: Tensor) -> Callable[[], object]:
    """A method to time: deciding, and applying what it decided, at a quarter of the tokens."""
    generator = torch.Generator().manual_seed(2)
    shape = (*x.shape[:2], x.shape[1]) if METHODS[name].matrix else x.shape[:2]
    attention = (3 * torch.randn(shape, generator=generator)).softmax(dim=-1)
    text = torch.randn(8, x.shape[2], generator=generator)
    return lambda: plan(name, x, 0.25, attention=attention, text=text).apply(x)


def growth(quick: bool) -> list[Figure]:
    """Methods that compare neighbours only: 16 times the frames."""
    width = 128 if quick else 512
    short, long = (scenes(frames, PLACES, width) for frames in (16, 256))
    figures = []
    for name in NEIGHBOURS_ONLY:
        runs = {"short": quarter(name, short), "long": quarter(name, long)}
        times = turns(runs, 2 if quick else 5)
        figures.append(
            Figure(
                name=f"{name}, 256 frames",
                measured=f"{1e3 * times['long']:.0f} ms",
                against=f"{1e3 * times['short']:.0f} ms of 16 frames",
                ratio=times["long"] / times["short"],
                most=18,
            )
        )
    return figures


class Layer:
    """A decoder layer of a language model of a billion parameters: 16 of these, 2048 wide."""

    layers, width, heads, groups, hidden = 16, 2048, 32, 8, 8192

    def __init__(self) -> None:
        wide = self.width + 2 * self.width * self.groups // self.heads
        sizes = {"qkv": (wide, self.width), "out": (self.width, self.width)}
        sizes |= {"up": (2 * self.hidden, self.width), "down": (self.width, self.hidden)}
        self.weight = {name: torch.randn(size) / size[1] ** 0.5 for name, size in sizes.items()}

    def __call__(self, x_BND: Tensor) -> Tensor:
        """What it makes of hidden states."""
        head = self.width // self.heads
        inside = F.rms_norm(x_BND, x_BND.shape[2:])
        qkv = rearrange(F.linear(inside, self.weight["qkv"]), "b n (h k) -> b h n k", k=head)
        q, k, v = qkv[:, : self.heads], *qkv[:, self.heads :].chunk(2, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x_BND = x_BND + F.linear(mixed.transpose(1, 2).flatten(2), self.weight["out"])
        inside = F.linear(F.rms_norm(x_BND, x_BND.shape[2:]), self.weight["up"])
        up, gate = inside.chunk(2, dim=2)
        return x_BND + F.linear(F.silu(gate) * up, self.weight["down"])


def prefill(quick: bool) -> list[Figure]:
    """Every method's own time against the prefill that a quarter of the tokens saves."""
    x = scenes(16 if quick else FRAMES, PLACES, Layer.width)
    layer, tokens = Layer(), x.flatten(0, 1)[None]
    runs: dict[str, Callable[[], object]] = {
        "all": lambda: layer(tokens),
        "quarter": lambda: layer(tokens[:, ::4]),
    }
    times = turns(runs, 1)
    saved = layer.layers * (times["all"] - times["quarter"])
    figures = []
    for name in METHODS:
        own = turns({name: quarter(name, x)}, 2)[name]
        figures.append(
            Figure(
                name=f"{name}, {tokens.shape[1]} tokens to a quarter",
                measured=f"{1e3 * own:.0f} ms",
                against=f"{saved:.1f} s of prefill saved",
                ratio=own / saved,
                most=0.05,
            )
        )
    return figures


def main() -> None:
    """Run the benches that are named, and print a table for each."""
    benches = {"speed": speed, "growth": growth, "prefill": prefill}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(benches)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="less, for a look")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(benches)):
        parser.error(f"there is no bench {unknown[0]!r}; choose of {', '.join(benches)}")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    for name in args.names or benches:
        figures = benches[name](args.quick)
        print(f"\n### {name}\n", *table([HEAD, *(f.row for f in figures)]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
