"""How many tokens stay, and where.

Shape suffixes: B batch, T frames or crops.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from video.compress.plan import Plan


def exact(budget: float | int, total: int) -> int:
    """Tokens that a budget leaves of `total`: known before anything is looked at.

    Args:
        budget: A fraction (float, above 0 and at most 1; halves round up) or a count (int, at
            least 1; counts above `total` leave all).
        total: Tokens there are.

    Raises:
        ValueError: It is neither.
    """
    check_budget(budget)
    return max(1, int(budget * total + 0.5)) if isinstance(budget, float) else min(budget, total)


def check_budget(budget: object) -> None:
    """Refuse what is no budget.

    Raises:
        ValueError: It is none.
    """
    share = isinstance(budget, float) and 0 < budget <= 1
    count = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1
    if not (share or count):
        raise ValueError(
            f"budget={budget!r}; expected a fraction of the tokens as a float in (0, 1], or a "
            "count as an int of 1 or more"
        )


def evenly(total: int, parts: int) -> list[int]:
    """Share `total` over parts so that any two differ by 1 at most."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def share(total: int, weights_BT: Tensor, cap: int) -> Tensor:
    """Share a whole number in proportion to weights, exactly, none above a cap.

    Largest remainders get what rounding down leaves; ties go to the lowest index. What a capped
    part cannot hold is shared among the others.

    Args:
        total: To be shared, at most `cap` times the parts.
        weights_BT: Weights, at least 0.
        cap: The most that a part may get.

    Returns:
        [B, T] int64, each row of sum `total`.
    """
    weights = weights_BT.double()
    counts = torch.zeros_like(weights, dtype=torch.long)
    for _ in range(weights.shape[1] + 1):
        room = cap - counts
        left = total - counts.sum(1, keepdim=True)
        if not bool((left > 0).any()):
            break
        live = weights.where(room > 0, 0)
        live = live.where(live.sum(1, keepdim=True) > 0, (room > 0).double())
        ideal = left * live / live.sum(1, keepdim=True).clamp(min=1e-300)
        ideal = (ideal * 1e4).round() / 1e4  # weights equal but for rounding share equally
        whole = ideal.floor().long().minimum(room)
        rest = (left - whole.sum(1, keepdim=True)).clamp(min=0)
        remainder = (ideal - whole).where((room > whole) & (live > 0), -1.0)
        rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        counts += whole + ((rank < rest) & (remainder >= 0)).long()
    return counts


def outliers(score_PN: Tensor) -> Tensor:
    """Scores above the third quartile by 1.5 interquartile ranges, of each row by itself.

    Returns:
        [P, N] bool.
    """
    quartiles = torch.quantile(score_PN, score_PN.new_tensor([0.25, 0.75]), dim=1, keepdim=True)
    return score_PN > quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])


Pick = Callable[[Tensor], Tensor]
Keep = int | Sequence[int]  # outputs of a sample, or of each of its frames
_PAIRS = 2**24  # of tokens of the frames that are decided at once


def window(tokens: int, batch: int = 1) -> int:
    """Frames that are decided at once where frames are decided by themselves.

    Args:
        tokens: Tokens of a frame.
        batch: Samples.
    """
    return max(1, _PAIRS // (batch * tokens * max(tokens, 256)))


def per_frame(
    batch: int, frames: int, tokens: int, keep: Keep, decide: Callable[[Pick, int], Plan]
) -> Plan:
    """Decide frame by frame with an exact count over the whole.

    Long videos are decided window by window, so that no more pairs of tokens are ever compared at
    once than a window has.

    Args:
        batch: Samples.
        frames: Frames of each.
        tokens: Tokens of a frame.
        keep: Outputs of each sample, shared evenly over its frames, or of each frame.
        decide: Takes a function that turns any [B, T, ...] into the [P, ...] of the frames to
            decide, each a problem of its own, and the outputs that each gets.

    Returns:
        A plan of `batch` samples.
    """
    counts = evenly(min(keep, frames * tokens), frames) if isinstance(keep, int) else list(keep)
    step = window(tokens, batch)
    parts = []
    for start in range(0, frames, step):
        here = counts[start : start + step]
        for count in sorted(set(here) - {0}):
            index = [start + t for t, n in enumerate(here) if n == count]

            def pick(x: Tensor, index: list[int] = index) -> Tensor:
                return (x if len(index) == frames else x[:, index]).flatten(0, 1)

            parts.append((index, decide(pick, count)))
    return join(parts, counts, tokens)


def join(parts: list[tuple[list[int], Plan]], counts: list[int], tokens: int) -> Plan:
    """Make one plan of those of groups of frames.

    Args:
        parts: Numbers of frames, and their plan, as `per_frame` has them.
        counts: Outputs of each frame.
        tokens: Sources of each frame.
    """
    frames = len(counts)
    if len(parts) == 1 and len(parts[0][0]) == frames:
        return parts[0][1].fold(frames)
    device = parts[0][1].rep.device
    starts = torch.tensor([0, *accumulate(counts)], device=device)
    B = len(parts[0][1].rep) // len(parts[0][0])
    entries: list[list[Tensor]] = []
    rep = torch.full((B, sum(counts)), -1, device=device)
    size = torch.zeros(B, sum(counts), device=device, dtype=parts[0][1].size.dtype)
    for index, plan in parts:
        frame = torch.tensor(index, device=device)
        at = frame[plan.batch % len(index)]
        out, src = plan.out + starts[at], plan.src + at * tokens
        entries.append([plan.batch // len(index), out, src, plan.weight])
        slots = (starts[frame][:, None] + torch.arange(plan.num_out, device=device)).flatten()
        rep[:, slots] = (plan.rep.reshape(B, len(index), -1) + frame[:, None] * tokens).flatten(1)
        size[:, slots] = plan.size.reshape(B, len(slots))
    batch, out, src, weight = (torch.cat(e) for e in zip(*entries, strict=True))
    sized = parts[0][1].sized
    return Plan.build(batch, out, src, weight, rep, frames * tokens, size, sized)
