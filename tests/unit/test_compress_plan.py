"""Plans, budgets, windows, frames, and what is refused."""

import pytest
import torch
from torch import Tensor

from omnitok import Tokens
from omnitok.tokens import TokenizerInfo
from video.compress import METHODS, Plan, merge_frames, plan, pool, pool_time, select_frames
from video.compress.assign import density_peaks
from video.compress.budget import evenly, exact, outliers, share
from video.compress.merge import distinct
from video.compress.recipes.framefusion import framefusion
from video.compress.recipes.tome import tome_round
from video.compress.recipes.visionzip import visionzip_step
from video.compress.score import change, cosine, patch_entropy, received
from video.compress.select import every, top


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def three_of_five() -> Plan:
    """Sources 0 and 3 averaged, 1 alone, 2 twice as much, 4 dropped."""
    e = torch.tensor
    return Plan.build(
        e([0, 0, 0, 0]), e([0, 2, 1, 0]), e([3, 2, 1, 0]), e([0.5, 2, 1, 0.5]), e([[0, 1, 2]]), 5
    )


def test_a_plan_sums_its_entries() -> None:
    x = torch.arange(5.0)[:, None] * torch.tensor([1.0, 10.0])
    p = three_of_five()
    assert p.apply(x).tolist() == [[[1.5, 15], [1, 10], [4, 40]]]
    assert p.apply(x, "sum").tolist() == [[[3, 30], [1, 10], [2, 20]]]
    assert p.apply(x, "max").tolist() == [[[3, 30], [1, 10], [2, 20]]]
    assert p.apply(x.long(), "rep").tolist() == [[[0, 0], [1, 10], [2, 20]]]
    assert p.size.tolist() == [[2, 1, 1]]
    assert p.source().tolist() == [[0, 1, 2, 0, -1]]
    assert p.spread(p.apply(x))[0, :, 0].tolist() == [1.5, 1, 4, 1.5, 0]


def test_a_plan_says_what_it_does() -> None:
    assert repr(three_of_five()) == "Plan(5 -> 3 tokens, 1.7x, pruned, kept order)"
    x = torch.randn(2, 8, 4)
    assert repr(tome_round(x, 2)) == "Plan(2 x 8 -> 6 tokens, 1.3x, partition, own order)"
    assert "overlapping" in repr(Plan.concat([three_of_five(), three_of_five()]))


def test_tokens_come_in_any_form_that_fits() -> None:
    p = Plan.keep(torch.tensor([[0, 5]]), 6)
    x = torch.randn(2, 3, 4)
    for form in (x, x[None], x.flatten(0, 1), x.flatten(0, 1)[None]):
        assert torch.equal(p.apply(form), x.flatten(0, 1)[None, [0, 5]])
    assert p.apply(x[..., 0]).shape == (1, 2)
    with pytest.raises(ValueError, match=r"tokens are \[5, 4\]; this plan is of 1 x 6 tokens"):
        p.apply(torch.randn(5, 4))
    with pytest.raises(ValueError, match="cannot be averaged; pass reduce='rep'"):
        p.apply(x.long())
    with pytest.raises(ValueError, match="reduce='mean'; choose of"):
        p.apply(x, "mean")


def test_positions_are_those_of_representatives_or_means() -> None:
    p = Plan.from_labels(torch.tensor([[0, 1, 0, 1, -1, 2]]))
    assert p.positions((2, 1, 3))[0].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 2]]
    assert p.positions((2, 1, 3), how="mean")[0].tolist() == [[0, 0, 1], [0.5, 0, 0.5], [1, 0, 2]]
    times = torch.tensor([0.5, 0.75])
    assert p.positions((2, 1, 3), pts=times)[0, :, 0].tolist() == [0.5, 0.5, 0.75]
    at = torch.rand(6, 2)
    assert torch.equal(p.positions(at)[0], at[[0, 1, 5]])
    with pytest.raises(ValueError, match="has 4 places; this plan is of 6 tokens"):
        p.positions((1, 2, 2))
    with pytest.raises(ValueError, match="needs one time a frame"):
        p.positions((2, 1, 3), pts=torch.zeros(3))
    with pytest.raises(ValueError, match="how='centre'"):
        p.positions((2, 1, 3), how="centre")


def test_labels_of_samples_may_be_of_different_numbers() -> None:
    p = Plan.from_labels(torch.tensor([[7, 7, -1], [5, 2, 9], [-1, -1, -1]]))
    assert p.rep.tolist() == [[0, -1, -1], [1, 0, 2], [-1, -1, -1]]
    assert p.size.tolist() == [[2, 0, 0], [1, 1, 1], [0, 0, 0]]
    x = torch.tensor([[1.0, 3, 5], [1, 2, 3], [1, 2, 3]])[..., None]
    assert p.apply(x)[..., 0].tolist() == [[2, 0, 0], [2, 1, 3], [0, 0, 0]]


def test_no_two_outputs_have_one_representative_where_there_are_enough() -> None:
    twice = Plan.concat([three_of_five(), three_of_five()])
    assert distinct(three_of_five()).rep.tolist() == [[0, 1, 2]]
    with_room = Plan.concat([three_of_five(), Plan.keep(torch.tensor([[0]]), 5)])
    assert distinct(with_room).rep.tolist() == [[0, 1, 2, 3]]
    assert len(set(distinct(twice).rep[0, :5].tolist())) == 5


def test_sizes_compose_however_they_are_counted() -> None:
    x = torch.randn(2, 12, 4)
    first = tome_round(x, 5)
    y = first.apply(x)
    by_size, plainly = tome_round(y, 3, first.size), tome_round(y, 3)
    for second in (by_size, plainly):
        both = first.then(second)
        assert both.size.sum(1).tolist() == [12, 12]
        torch.testing.assert_close(both.apply(x), second.apply(y))
    mean = (first.then(by_size).apply(x) * by_size.size[..., None]).sum(1) / 12
    torch.testing.assert_close(mean, x.mean(1))
    with pytest.raises(ValueError, match="a plan of 2 x 12 tokens cannot follow one that gives"):
        first.then(tome_round(x, 1))


def test_a_source_of_several_outputs_has_no_one_output() -> None:
    with pytest.raises(ValueError, match="goes to several outputs"):
        Plan.concat([three_of_five(), three_of_five()]).source()


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, -0.1, True, "half", None, float("nan")])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(ValueError, match="expected a fraction"):
        exact(budget, 10)  # type: ignore[arg-type]


def test_budgets_are_shared_exactly() -> None:
    assert [exact(b, 10) for b in (0.25, 0.24, 0.001, 1.0, 3, 30)] == [3, 2, 1, 10, 3, 10]
    assert evenly(7, 3) == [2, 2, 3]
    weights = torch.tensor([[1.0, 1, 2], [0, 0, 9], [0, 0, 0]])
    assert share(8, weights, 5).tolist() == [[2, 2, 4], [2, 1, 5], [3, 3, 2]]
    assert share(15, weights, 5).tolist() == [[5, 5, 5]] * 3
    rows = torch.tensor([[1.0, 1, 1, 1, 9], [1, 2, 3, 4, 5]])
    assert outliers(rows).tolist() == [[False] * 4 + [True], [False] * 5]


def test_equal_scores_go_to_the_first() -> None:
    score = torch.tensor([[1.0, 3, 3, 3, 2]])
    assert top(score, 2).tolist() == [[1, 2]]
    assert top(score, 4, order="score").tolist() == [[1, 2, 3, 4]]
    assert every(10, 4).tolist() == [0, 3, 6, 9]
    centres, label = density_peaks(torch.zeros(1, 6, 2), 3, 2)
    assert centres.tolist() == [[0, 1, 2]]
    assert label.tolist() == [[0, 1, 2, 0, 0, 0]]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2), (4, 4)])
def test_bands_cut_a_frame_into_any_number_of_windows(size: tuple[int, int]) -> None:
    h, w = size
    for count in range(1, h * w + 1):
        label = pool.bands(h, w, count)
        sizes = torch.bincount(label)
        assert (len(sizes), label.shape[0]) == (count, h * w)
        assert sizes.min() > 0


def test_blocks_of_rows_find_what_whole_matrices_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 40, 6)
    whole = [density_peaks(x, 9, 4), (tome_round(x, 13).out,)]
    monkeypatch.setattr("video.compress.score._CPU_BLOCK", 2)
    cut = [density_peaks(x, 9, 4), (tome_round(x, 13).out,)]
    for a, b in zip(whole, cut, strict=True):
        assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    torch.testing.assert_close(change(x[None])[0, 1], 1 - cosine(x[1], x[0]))


@pytest.mark.parametrize("name", ["tome", "mctf", "dpc_knn", "prumerge", "m3", "llama_vid"])
def test_stretches_of_a_long_video_are_decided_as_all_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, attention, text = torch.randn(2, 7, 9, 4), torch.rand(2, 7, 9), torch.randn(2, 3, 4)
    whole = plan(name, x, 0.37, attention=attention, text=text)
    monkeypatch.setattr("video.compress.budget._PAIRS", 2 * 81 * 2)  # two frames at once
    cut = plan(name, x, 0.37, attention=attention, text=text)
    assert torch.equal(whole.rep, cut.rep)
    torch.testing.assert_close(whole.apply(x), cut.apply(x))


def test_scores() -> None:
    attention = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert received(attention).tolist() == [0.75, 0.25]
    gray = torch.tensor([[0, 0, 0, 255], [0, 0, 255, 0]], dtype=torch.uint8)
    assert patch_entropy(gray, (2, 2)).tolist() == [0, 1]


def test_visionzip_can_average_what_it_gathers() -> None:
    x, score = torch.randn(1, 8, 4), torch.arange(8.0)[None]
    p = visionzip_step(score, x, 3, 2, norm="mean")
    torch.testing.assert_close(p.apply(torch.ones(1, 8, 1)), torch.ones(1, 5, 1))
    assert p.rep.tolist() == [[5, 6, 7, 0, 2]]
    with pytest.raises(ValueError, match="norm='sum'"):
        visionzip_step(score, x, 3, 2, norm="sum")


def test_equal_frames_merge_into_one() -> None:
    x = torch.randn(1, 1, 6, 4).expand(1, 5, 6, 4)
    p = framefusion(x)
    assert p.num_out == 6
    torch.testing.assert_close(p.apply(x), x[:, 0])
    assert p.size.tolist() == [[5.0] * 6]


def test_frames_that_repeat_themselves_keep_less() -> None:
    x = torch.randn(1, 2, 9, 16)
    x[:, 0, 3:] = x[:, 0, :1]  # three kinds of tokens
    p = plan("token_correlation", x, attention=torch.rand(1, 2, 9), order="upstream")
    assert ((p.rep < 9) & (p.rep >= 0)).sum() == 3
    assert p.num_out == 12
    exactly = plan("token_correlation", x, 4, attention=torch.rand(1, 2, 9))
    assert (exactly.rep < 9).sum() == 1


X = torch.randn(3, 4, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plan("nosuch", X), KeyError, "unknown method 'nosuch'; choose one of"),
        (lambda: plan("tome", X[0]), ValueError, r"tokens are torch.float32 \[4, 8\]"),
        (lambda: plan("tome", X.long()), ValueError, "tokens are torch.int64"),
        (lambda: plan("tome", X[:0]), ValueError, "none of them 0"),
        (lambda: plan("tome", X, 2.5), ValueError, "budget=2.5; expected a fraction"),
        (lambda: plan("tome", X, rate=2), TypeError, "tome has no option 'rate'; it takes"),
        (lambda: plan("tome", X, order="best"), ValueError, "order='best'"),
        (lambda: plan("tome", X, scope="clip"), ValueError, "scope='clip'"),
        (lambda: plan("visionzip", X), ValueError, "visionzip needs attention; pass attention="),
        (lambda: plan("quota", X), ValueError, "quota needs text; pass text="),
        (lambda: plan("evit", X, attention=X), ValueError, r"attention is \[3, 4, 8\]; expected"),
        (lambda: plan("vid_tldr", X, attention=X[..., 0]), ValueError, "attention of every query"),
        (lambda: plan("vflowopt", X, attention=X[..., 0]), ValueError, "attention of every query"),
        (lambda: plan("ppllava", X, text=X[0, :, :5]), ValueError, r"text is \[1, 4, 5\]"),
        (lambda: plan("m3", X, grid=(3, 2)), ValueError, "a frame has 4 tokens, the grid is"),
        (lambda: plan("m3", X[:, :3]), ValueError, "pass grid="),
        (lambda: plan("hired", X, attention=X[..., 0], crops=(2, 2)), ValueError, "crops="),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    call: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_methods_say_what_they_need() -> None:
    assert METHODS["tome"].needs == ("tokens",)
    assert METHODS["visionzip"].needs == ("tokens", "attention")
    assert METHODS["ppllava"].needs == ("tokens", "text")
    assert {name for name, m in METHODS.items() if m.matrix} == {"vid_tldr", "vflowopt"}
    assert METHODS["dycoke"].options == {"k": 0.7, "upstream_ends": False}
    for method in METHODS.values():
        assert method.note.endswith(".")


def made(T: int = 9, codes: bool = False, causal: bool = True) -> Tokens:
    info = TokenizerInfo(
        name="toy",
        config={},
        weights_sha256="0" * 64,
        version="0",
        kind="codes" if codes else "latents",
        codebook_size=64 if codes else None,
        patch=(4, 8, 8),
        causal=causal,
        latent_dim=2,
    )
    t = 1 + -(-(T - 1) // 4)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(t, 2, 3, 2, generator=generator)
    kind = {"codes": data[..., 0].mul(9).long() % 64} if codes else {"latents": data}
    pts = torch.arange(T, dtype=torch.float64) / 10
    return Tokens(**kind, size=(T, 16, 24), pts=pts, info=info)


def test_frames_of_token_files_keep_their_times() -> None:
    tokens = made()
    some = select_frames(tokens, 2)
    assert some.latents is not None
    assert torch.equal(some.latents, tokens.latents[[0, 2]])  # type: ignore[index]
    assert some.size == (5, 16, 24)
    assert some.pts.tolist() == [0, 0.5, 0.6, 0.7, 0.8]  # type: ignore[union-attr]
    codes = select_frames(made(codes=True), 0.3)
    assert codes.codes is not None
    assert codes.grid == (1, 2, 3)
    pooled = pool_time(tokens, 2)
    torch.testing.assert_close(pooled.latents[0], tokens.latents[:2].mean(0))  # type: ignore[index]
    assert pooled.grid == (2, 2, 3)
    merged = merge_frames(tokens, 2)
    assert merged.grid == (2, 2, 3)
    assert merged.info == tokens.info


def test_frames_of_plain_tensors() -> None:
    x = torch.randn(4, 3, 5)
    still = x.repeat_interleave(3, dim=0)
    torch.testing.assert_close(merge_frames(still), x)
    torch.testing.assert_close(merge_frames(still, 4, average=False), x)
    torch.testing.assert_close(pool_time(still, 3), x)
    assert torch.equal(pool_time(x, 3)[1], x[3])
    assert torch.equal(select_frames(still, 4, by="change"), x)
    best = select_frames(x, 1, by="text", text=x[2].mean(0, keepdim=True))
    assert torch.equal(best, x[2:3])
    assert select_frames(torch.arange(6).view(3, 2), 2).tolist() == [[0, 1], [4, 5]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pool_time(made(codes=True), 2), "cannot be averaged; use latents"),
        (lambda: merge_frames(torch.ones(3, 2).long()), "cannot be merged"),
        (lambda: pool_time(X, 0), "stride=0"),
        (lambda: select_frames(X, 0.5, by="beauty"), "by='beauty'"),
        (lambda: select_frames(X, 0.5, by="text"), "it is missing"),
        (lambda: select_frames(torch.ones(3, 2).long(), 2, by="change"), "needs float tokens"),
        (lambda: select_frames(torch.ones(3), 2), "expected .T, N, ...."),
    ],
)
def test_frames_that_cannot_be_made_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_no_matrix_of_all_pairs_of_a_long_video_is_held() -> None:
    x = torch.randn(1, 6000, 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for y in result if isinstance(result, tuple | list) else (result,):
                if isinstance(y, Tensor):
                    largest = max(largest, y.numel())
            return result

    with Watch():
        tome_round(x, 100)
        density_peaks(x, 10, 5)
    assert largest < 6000 * 6000 / 2
