"""What every compression method promises, whatever the tokens are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from video.compress import METHODS, Plan, plan

NAMES = sorted(METHODS)
# weights of an output do not sum to 1, by the definition of these
SUMS = {"evit", "prumerge", "visionzip"}
# a token may go to several outputs, or count by a fraction
UNEQUAL = {"chat_univi", "llama_vid", "prumerge", "vid_tldr"}
each_method = pytest.mark.parametrize("name", NAMES)


def inputs(
    T: int, h: int, w: int, B: int = 1, D: int = 8, seed: int = 0
) -> tuple[Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    N = h * w
    x = torch.randn(B, T, N, D, generator=generator)
    attention = torch.randn(B, T, N, N, generator=generator).mul(2).softmax(-1)
    text = torch.randn(B, 3, D, generator=generator)
    return x, {"attention": attention, "text": text, "grid": (h, w)}


def entries(p: Plan, sample: int) -> list[tuple[int, int, float]]:
    mine = p.batch == sample
    columns = (p.out[mine], p.src[mine], p.weight[mine])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def same_plan(a: Plan, b: Plan) -> bool:
    pairs = [(getattr(a, k), getattr(b, k)) for k in ("batch", "out", "src", "weight", "rep")]
    return all(torch.equal(x, y) for x, y in pairs)


@each_method
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    T=st.integers(1, 7),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
    B=st.integers(1, 2),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_the_count_is_exact_and_in_order(
    name: str, T: int, h: int, w: int, B: int, share: float, seed: int
) -> None:
    x, given_ = inputs(T, h, w, B, seed=seed)
    total = T * h * w
    for budget in (share, max(1, int(share * total))):
        p = plan(name, x, budget, **given_)
        want = budget if isinstance(budget, int) else max(1, int(budget * total + 0.5))
        assert p.num_out == want
        assert p.rep.min() >= 0
        assert (p.rep.diff(dim=1) > 0).all()  # distinct, in the order of time and place
        assert p.src.max() < total
        assert p.out.max() < want
        assert torch.bincount(p.batch * want + p.out, minlength=B * want).min() > 0
        y = p.apply(x)
        assert y.shape == (B, want, 8)
        assert torch.isfinite(y).all()
        if name not in SUMS:
            ones = p.apply(torch.ones(B, total, 1))
            torch.testing.assert_close(ones, torch.ones_like(ones))
        if name not in UNEQUAL:
            times = torch.bincount(p.batch * total + p.src, minlength=B * total)
            assert times.max() == 1
            assert torch.equal(p.size.sum(1), times.view(B, total).sum(1).float())


@each_method
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 1, 1), (5, 3, 4), (2, 5, 1)])
def test_published_defaults_work_for_any_shape(name: str, shape: tuple[int, int, int]) -> None:
    x, given_ = inputs(*shape, B=2)
    p = plan(name, x, **given_)
    assert torch.isfinite(p.apply(x)).all()
    assert (p.rep >= 0).any(1).all()


@each_method
def test_all_of_the_tokens_come_back_to_the_bit(name: str) -> None:
    x, given_ = inputs(3, 2, 3, B=2)
    for budget in (1.0, 18, 1000):
        assert torch.equal(plan(name, x, budget, **given_).apply(x), x.flatten(1, 2))


@each_method
@pytest.mark.parametrize("kind", ["zeros", "constant", "still", "spread", "sharp", "none"])
def test_ties_and_zeros_are_decided(name: str, kind: str) -> None:
    x, given_ = inputs(5, 3, 3, B=2)
    x = {"zeros": x * 0, "constant": x * 0 + 1, "still": x[:, :1].expand_as(x)}.get(kind, x)
    uniform = torch.full_like(given_["attention"], 1 / 9)
    sharp = torch.eye(9).expand_as(uniform)  # all others exactly 0
    new = {"spread": uniform, "sharp": sharp, "none": sharp * 0}
    given_["attention"] = new.get(kind, given_["attention"])
    for budget in (None, 0.6, 0.25, 3):
        p = plan(name, x, budget, **given_)
        assert torch.isfinite(p.apply(x)).all()
        assert torch.isfinite(p.weight).all()
        if budget is not None:
            assert (p.rep.diff(dim=1) > 0).all()
        assert same_plan(p, plan(name, x, budget, **given_))


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("tome", {"scope": "video"}),
    ("dycoke", {"upstream_ends": True}),
    ("visionzip", {"norm": "mean"}),
    ("mctf", {"norm": "size"}),
    ("fopru", {"by": "row"}),
    ("quota", {"how": "sample"}),
    ("quota", {"how": "merge"}),
    ("quota", {"how": "bilinear"}),
    ("lftr", {"average": False}),
    ("token_pooling", {"medoids": True}),
    ("prumerge", {"plus": True}),
    ("prumerge", {"ratio": 0.2, "plus": True}),
    ("hired", {"crops": (2, 2)}),
    ("globalcom2", {"crops": (2, 2)}),
    ("testa", {"r_frame": 2}),
    ("chat_univi", {"spatial": (4, 2), "k": (3, 2, 3)}),
    ("ats", {"heights": 4}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("budget", [None, 0.3])
def test_a_sample_does_not_depend_on_its_batch(
    name: str, options: dict[str, Any], budget: float | None
) -> None:
    x, given_ = inputs(5, 4, 4, B=3)
    given_ |= options
    together = plan(name, x, budget, **given_)
    for b in range(3):
        own = {k: v[b] if isinstance(v, Tensor) else v for k, v in given_.items()}
        alone = plan(name, x[b], budget, **own)
        K = alone.num_out
        assert together.rep[b, :K].tolist() == alone.rep[0].tolist()
        assert (together.rep[b, K:] == -1).all()
        ours, theirs = entries(together, b), entries(alone, 0)
        assert [e[:2] for e in ours] == [e[:2] for e in theirs]
        torch.testing.assert_close([e[2] for e in ours], [e[2] for e in theirs])


@each_method
@pytest.mark.parametrize("budget", [None, 0.3])
def test_nothing_given_is_changed_and_threads_do_not_matter(
    name: str, budget: float | None
) -> None:
    x, given_ = inputs(6, 3, 4, B=2)
    before = [x.clone(), given_["attention"].clone(), given_["text"].clone()]
    first = plan(name, x, budget, **given_)
    for old, new in zip(before, [x, given_["attention"], given_["text"]], strict=True):
        assert torch.equal(old, new)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert same_plan(first, plan(name, x, budget, **given_))
    finally:
        torch.set_num_threads(threads)


@each_method
def test_half_precision_decides_as_single_does(name: str) -> None:
    x, given_ = inputs(6, 3, 4, B=2)
    low = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in given_.items()}
    wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in low.items()}
    for budget in (None, 0.3):
        p = plan(name, x.bfloat16(), budget, **low)
        q = plan(name, x.bfloat16().float(), budget, **wide)
        # methods of several rounds decide later ones on averages kept in the type of the tokens
        kept = set(map(tuple, p.rep.tolist())) == set(map(tuple, q.rep.tolist()))
        assert kept or len(set(p.rep[0].tolist()) & set(q.rep[0].tolist())) >= 0.7 * p.num_out
        assert p.weight.dtype == torch.float32
        assert p.apply(x.bfloat16()).dtype == torch.bfloat16


@each_method
def test_double_precision_decides_alike(name: str) -> None:
    x, given_ = inputs(6, 3, 4, B=2)
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in given_.items()}
    p, q = plan(name, x, 0.3, **given_), plan(name, x.double(), 0.3, **double)
    assert torch.equal(p.rep, q.rep)
    assert torch.equal(p.src, q.src)
    torch.testing.assert_close(p.apply(x).double(), q.apply(x.double()), atol=1e-5, rtol=1e-5)


@each_method
def test_gradients_flow_through_the_tokens_alone(name: str) -> None:
    x, given_ = inputs(4, 3, 3)
    x.requires_grad_()
    given_["attention"].requires_grad_()
    p = plan(name, x, 0.4, **given_)
    assert not p.weight.requires_grad
    p.apply(x).square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    touched = torch.zeros(36, dtype=torch.bool)
    touched[p.src[p.weight != 0]] = True
    assert torch.equal(x.grad.flatten(0, 2).abs().sum(1) > 0, touched)


@each_method
def test_the_published_order_is_a_permutation(name: str) -> None:
    x, given_ = inputs(5, 3, 4)
    ours = plan(name, x, 0.4, **given_)
    theirs = plan(name, x, 0.4, order="upstream", **given_)
    a, b = (p.apply(x)[0] for p in (ours, theirs))
    a, b = (y[y[:, 0].argsort(stable=True)] for y in (a, b))
    torch.testing.assert_close(a, b)


@each_method
def test_plans_compose(name: str) -> None:
    x, given_ = inputs(5, 3, 4, B=2)
    first = plan(name, x, 0.6, **given_)
    y = first.apply(x)
    second = plan("tome", y[:, None], 0.5)
    both = first.then(second)
    torch.testing.assert_close(both.apply(x), second.apply(y), atol=1e-6, rtol=1e-5)
    assert both.num_in == 60
    torch.testing.assert_close(both.size, second.apply(first.size, "sum"))


@each_method
def test_everything_is_made_where_the_tokens_are(name: str) -> None:
    x, given_ = inputs(5, 3, 4, B=2)
    with torch.device("meta"):  # whatever does not say where it belongs cannot be computed with
        for budget in (None, 0.3, 1.0):
            p = plan(name, x, budget, **given_)
            y = p.then(Plan.identity(2, p.num_out, x.device)).apply(x)
            made = (y, p.size, p.weight, p.positions((5, 3, 4)), p.positions((5, 3, 4), how="mean"))
            assert all(tensor.device == x.device for tensor in made)
