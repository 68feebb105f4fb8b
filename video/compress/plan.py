"""What a compression decided, as a sparse linear map from tokens to fewer tokens.

Shape suffixes: B batch, K outputs, M entries of the map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from video.compress.positions import grid_positions

Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """`y[b, out] = sum(weight * x[b, src])` over its entries, sorted by batch, out, src.

    Decided once, a plan is applied to whatever belongs to the tokens: features of every level,
    positions, times, sizes, masks.

    Attributes:
        batch: [M] int64, the sample of an entry.
        out: [M] int64, its output, below K.
        src: [M] int64, its source, below `num_in`; a source may go to several outputs, or to none.
        weight: [M] float32 or float64; those of an output need not sum to 1.
        rep: [B, K] int64, the source whose place and time an output takes; -1 where a sample has
            fewer than K outputs.
        size: [B, K] how many tokens each output stands for; may be fractional, 0 for no output.
        num_in: Sources of each sample; frames follow each other, `t * N + n`.
        sized: Whether `size` counts what the sources already stood for.
    """

    batch: Tensor
    out: Tensor
    src: Tensor
    weight: Tensor
    rep: Tensor
    size: Tensor
    num_in: int
    sized: bool = False

    @staticmethod
    def build(
        batch: Tensor,
        out: Tensor,
        src: Tensor,
        weight: Tensor,
        rep: Tensor,
        num_in: int,
        size: Tensor | None = None,
        sized: bool = False,
    ) -> Plan:
        """Make a plan of entries in any order; `size` defaults to the entries of each output."""
        key = (batch * rep.shape[1] + out) * num_in + src
        order = key.argsort()
        batch, out, src, weight = (e[order] for e in (batch, out, src, weight))
        plan = Plan(batch, out, src, weight, rep, weight.new_zeros(rep.shape), num_in, sized)
        if size is None:
            size = plan.apply(torch.ones_like(weight[:1]).expand(len(rep), num_in), "sum")
        return replace(plan, size=size)

    @staticmethod
    def keep(index: Tensor, num_in: int) -> Plan:
        """Keep the sources [B, K] of `index`, in that order, and drop the others."""
        B, K = index.shape
        return Plan(
            batch=torch.arange(B, device=index.device).repeat_interleave(K),
            out=torch.arange(K, device=index.device).repeat(B),
            src=index.flatten(),
            weight=torch.ones(B * K, device=index.device),
            rep=index,
            size=torch.ones(B, K, device=index.device),
            num_in=num_in,
        )

    @staticmethod
    def identity(
        batch: int, num_in: int, device: torch.device | str = "cpu", size: Tensor | None = None
    ) -> Plan:
        """Keep everything, of given sizes [B, N] or of 1 each."""
        plan = Plan.keep(torch.arange(num_in, device=device).expand(batch, num_in), num_in)
        return plan if size is None else replace(plan, size=size, sized=True)

    @staticmethod
    def from_labels(labels: Tensor) -> Plan:
        """Average the sources of equal label, e.g. of tracked objects.

        Args:
            labels: [B, N] int64; outputs follow the labels in ascending order, negative ones are
                dropped. The first source of an output represents it.
        """
        B, num_in = labels.shape
        batch, src = (labels >= 0).nonzero(as_tuple=True)
        used, slot = torch.unique(
            torch.stack([batch, labels[batch, src]]), dim=1, return_inverse=True
        )
        starts = torch.searchsorted(used[0].contiguous(), torch.arange(B, device=labels.device))
        out = slot - starts[batch]
        K = int(out.max()) + 1 if len(out) else 0
        count = torch.zeros(B, K, device=labels.device)
        count.index_put_((batch, out), torch.ones_like(count[:1, :1]).flatten(), accumulate=True)
        rep = torch.full((B, K), num_in, device=labels.device)
        rep.view(-1).scatter_reduce_(0, batch * K + out, src, "amin")
        rep = rep.masked_fill(rep == num_in, -1)
        return Plan.build(batch, out, src, 1 / count[batch, out], rep, num_in, count)

    @property
    def num_out(self) -> int:
        """Outputs of the sample that has most."""
        return self.rep.shape[1]

    def __repr__(self) -> str:
        B, outputs = len(self.rep), self.rep >= 0
        kept = outputs.sum(1)
        most, mean = int(kept.max()) if B else 0, float(kept.float().mean()) if B else 0.0
        times = torch.bincount(self.batch * self.num_in + self.src, minlength=B * self.num_in)
        traits = ["overlapping", "partition" if bool((times == 1).all()) else "pruned"]
        rep = self.rep.where(outputs, self.num_in + torch.arange(self.num_out, device=kept.device))
        ordered = bool((rep.diff(dim=1) > 0).all())
        count = f"{most}" if bool((kept == most).all()) else f"up to {most}"
        return (
            f"Plan({f'{B} x ' if B != 1 else ''}{self.num_in} -> {count} tokens, "
            f"{self.num_in / max(mean, 1e-9):.1f}x, {traits[int((times <= 1).all())]}, "
            f"{'kept order' if ordered else 'own order'})"
        )

    def rows(self, x: Tensor) -> Tensor:
        """Return tokens as [B, num_in, ...].

        Args:
            x: [B, num_in, ...] or [B, T, N, ...]; without B where the plan is of one sample.

        Raises:
            ValueError: It is not of the plan's tokens.
        """
        B, N = len(self.rep), self.num_in
        for tokens in (x, x[None]) if B == 1 else (x,):
            framed = tokens.dim() > 2 and tokens.shape[1] * tokens.shape[2] == N
            if len(tokens) == B and framed and (tokens.dim() > 3 or tokens.shape[1] != N):
                return tokens.flatten(1, 2)
            if tokens.shape[:2] == (B, N):
                return tokens
        raise ValueError(
            f"tokens are {list(x.shape)}; this plan is of {B} x {N} tokens: pass "
            f"[{B}, {N}, ...] or [{B}, T, N / T, ...]"
        )

    def bags(self) -> tuple[Tensor, Tensor]:
        """Rows of [B * num_in] in the order of the outputs, and where each output starts."""
        key = self.batch * self.num_out + self.out
        slots = torch.arange(self.rep.numel(), device=key.device)
        return self.batch * self.num_in + self.src, torch.searchsorted(key, slots)

    def apply(self, x: Tensor, reduce: str = "weight") -> Tensor:
        """Turn tokens into fewer, in their own dtype.

        Args:
            x: As `rows` takes it.
            reduce: "weight" for the plan's own sums, "sum" for plain sums of the members (sizes),
                "max" for their maximum, "rep" for the representatives alone (labels, masks).

        Returns:
            [B, K, ...]; zeros where a sample has fewer than K outputs.

        Raises:
            ValueError: `x` is not of the plan's tokens, or not float where it must be.
        """
        x = self.rows(x)
        shape = (*self.rep.shape, *x.shape[2:])
        if reduce == "rep":
            batch = torch.arange(len(x), device=x.device)[:, None]
            y = x[batch, self.rep.clamp(min=0)]
            outputs = (self.rep >= 0).view(*self.rep.shape, *[1] * (x.dim() - 2))
            return y.where(outputs, torch.zeros_like(y))
        if reduce not in ("weight", "sum", "max"):
            raise ValueError(f"reduce={reduce!r}; choose of 'weight', 'sum', 'max', 'rep'")
        if not x.is_floating_point():
            raise ValueError(f"{x.dtype} tokens cannot be averaged; pass reduce='rep'")
        src, starts = self.bags()
        weight = self.weight.to(x.dtype) if reduce == "weight" else None
        mode = "max" if reduce == "max" else "sum"
        table = x.reshape(len(x) * self.num_in, -1)
        if not len(src) or not table.numel():
            return x.new_zeros(shape)
        return F.embedding_bag(src, table, starts, mode=mode, per_sample_weights=weight).view(shape)

    def positions(self, grid: Grid | Tensor, pts: Tensor | None = None, how: str = "rep") -> Tensor:
        """Where every output is.

        Args:
            grid: (t, h, w) of the tokens, or the positions of the sources, [num_in, C].
            pts: [t] times in seconds, which then take the place of frame numbers.
            how: "rep" for the place of the representative, "mean" for the mean of the members.

        Returns:
            [B, K, 3] float64 (or [B, K, C]): time or frame, row, column.
        """
        device = self.rep.device
        at = grid_positions(grid, pts, device) if isinstance(grid, tuple) else grid.to(device)
        if len(at) != self.num_in:
            raise ValueError(
                f"{grid if isinstance(grid, tuple) else list(grid.shape)} has {len(at)} places; "
                f"this plan is of {self.num_in} tokens"
            )
        at = at.expand(len(self.rep), *at.shape)
        if how == "rep":
            return self.apply(at, "rep")
        if how != "mean":
            raise ValueError(f"how={how!r}; choose of 'rep', 'mean'")
        count = self.apply(at.new_ones(at.shape[:2]), "sum").clamp(min=1)
        return self.apply(at.double(), "sum") / count[..., None]

    def source(self) -> Tensor:
        """[B, num_in] the output that each source went to, -1 for none.

        Raises:
            ValueError: A source went to several outputs.
        """
        row = self.batch * self.num_in + self.src
        if bool((torch.bincount(row, minlength=1) > 1).any()):
            raise ValueError("a source of this plan goes to several outputs: it has no one output")
        source = torch.full((len(self.rep) * self.num_in,), -1, device=row.device)
        return source.scatter(0, row, self.out).view(len(self.rep), self.num_in)

    def spread(self, y: Tensor) -> Tensor:
        """Undo the plan as far as can be: each source gets the output that it went to, or zeros.

        Args:
            y: [B, K, ...].

        Returns:
            [B, num_in, ...].
        """
        source = self.source()
        batch = torch.arange(len(y), device=y.device)[:, None]
        x = y[batch, source.clamp(min=0)]
        return x * (source >= 0).view(*source.shape, *[1] * (y.dim() - 2)).to(y.dtype)

    def then(self, other: Plan) -> Plan:
        """This plan and then another on its outputs, as one.

        Raises:
            ValueError: The other is not of as many tokens as come out of this one.
        """
        if (len(self.rep), self.num_out) != (len(other.rep), other.num_in):
            raise ValueError(
                f"a plan of {len(other.rep)} x {other.num_in} tokens cannot follow one that gives "
                f"{len(self.rep)} x {self.num_out}"
            )
        _, starts = self.bags()
        ends = torch.cat([starts[1:], starts.new_tensor([len(self.src)])])
        middle = other.batch * self.num_out + other.src
        counts = (ends - starts)[middle]
        of_other = torch.arange(len(middle), device=middle.device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        step = torch.arange(len(of_other), device=middle.device) - first[of_other]
        of_self = starts[middle][of_other] + step
        batch, out, src = other.batch[of_other], other.out[of_other], self.src[of_self]
        key = (batch * other.num_out + out) * self.num_in + src
        keys, slot = torch.unique(key, return_inverse=True)
        product = other.weight[of_other] * self.weight[of_self]
        weight = product.new_zeros(len(keys)).index_add(0, slot, product)
        row = keys // self.num_in
        rep = self.rep.gather(1, other.rep.clamp(min=0)).where(other.rep >= 0, other.rep)
        return Plan(
            batch=row // max(other.num_out, 1),
            out=row % max(other.num_out, 1),
            src=keys % self.num_in,
            weight=weight,
            rep=rep,
            size=other.size if other.sized else other.apply(self.size, "sum"),
            num_in=self.num_in,
            sized=self.sized,
        )

    def in_order(self) -> Plan:
        """The same outputs, ordered by the place of their representatives in time and frame."""
        last = self.rep.where(self.rep >= 0, self.num_in)
        order = last.argsort(dim=1, stable=True)
        rank = order.argsort(dim=1)
        return self.build(
            self.batch,
            rank[self.batch, self.out],
            self.src,
            self.weight,
            self.rep.gather(1, order),
            self.num_in,
            self.size.gather(1, order),
            self.sized,
        )

    def fold(self, groups: int) -> Plan:
        """Join samples that follow each other, e.g. frames decided one by one, into one each.

        Args:
            groups: How many samples become one; outputs and sources follow each other.
        """
        B, K, N = len(self.rep) // groups, self.num_out, self.num_in
        group = self.batch % groups
        first = (torch.arange(groups, device=self.rep.device) * N)[None, :, None]
        rep = self.rep.reshape(B, groups, K)
        return Plan(
            batch=self.batch // groups,
            out=self.out + group * K,
            src=self.src + group * N,
            weight=self.weight,
            rep=(rep + first).where(rep >= 0, rep).view(B, groups * K),
            size=self.size.reshape(B, groups * K),
            num_in=groups * N,
            sized=self.sized,
        )

    @staticmethod
    def stack(plans: list[Plan]) -> Plan:
        """Plans of as many sources as a batch; outputs that some lack are padded."""
        K = max(plan.num_out for plan in plans)
        firsts = [sum(len(plan.rep) for plan in plans[:i]) for i in range(len(plans))]
        return Plan(
            batch=torch.cat([p.batch + first for p, first in zip(plans, firsts, strict=True)]),
            out=torch.cat([p.out for p in plans]),
            src=torch.cat([p.src for p in plans]),
            weight=torch.cat([p.weight for p in plans]),
            rep=torch.cat([F.pad(p.rep, (0, K - p.num_out), value=-1) for p in plans]),
            size=torch.cat([F.pad(p.size, (0, K - p.num_out)) for p in plans]),
            num_in=plans[0].num_in,
            sized=plans[0].sized,
        )

    @staticmethod
    def concat(plans: list[Plan]) -> Plan:
        """Outputs of plans of the same sources, one plan after the other."""
        starts = [sum(plan.num_out for plan in plans[:i]) for i in range(len(plans))]
        return Plan.build(
            torch.cat([p.batch for p in plans]),
            torch.cat([p.out + start for p, start in zip(plans, starts, strict=True)]),
            torch.cat([p.src for p in plans]),
            torch.cat([p.weight for p in plans]),
            torch.cat([p.rep for p in plans], dim=1),
            plans[0].num_in,
            torch.cat([p.size for p in plans], dim=1),
            plans[0].sized,
        )

    def each(self, places: int) -> Plan:
        """A plan of frames as one of tokens, in which all places of a frame do the same."""
        place = torch.arange(places, device=self.rep.device)
        rep = self.rep[..., None]
        return self.build(
            self.batch.repeat_interleave(places),
            (self.out[:, None] * places + place).flatten(),
            (self.src[:, None] * places + place).flatten(),
            self.weight.repeat_interleave(places),
            (rep * places + place).where(rep >= 0, rep).flatten(1),
            self.num_in * places,
            self.size.repeat_interleave(places, dim=1),
            self.sized,
        )

    def dense(self) -> Plan:
        """The same outputs without gaps: those that a sample lacks come last, and K is least."""
        outputs = self.rep >= 0
        K = int(outputs.sum(1).max())
        order = (~outputs).long().argsort(dim=1, stable=True)
        out = order.argsort(dim=1)[self.batch, self.out]
        rep, size = (e.gather(1, order)[:, :K] for e in (self.rep, self.size))
        return replace(self, out=out, rep=rep, size=size)
