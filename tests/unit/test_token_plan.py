"""Token files that hold a plan and only the tokens it keeps."""

import dataclasses
import hashlib
import math
from pathlib import Path

import pytest
import torch
from token_samples import LATENTS, make_info, make_tokens

from omnitok import Tokens
from omnitok.token_facts import TokensError
from omnitok.token_layout import TokenFile, to_rows
from omnitok.token_plan import TokenPlan
from omnitok.token_stream import TokenReader


def plan_of(grid: tuple[int, int, int], step: int = 3, **changes) -> TokenPlan:
    """Keep every third token; the next one went into it, and the one after was dropped."""
    N = math.prod(grid)
    place = torch.arange(0, N, step)
    source = torch.arange(N) // step
    source[torch.arange(N) % step == step - 1] = -1
    facts = {
        "method": "test",
        "budget": 0.33,
        "options": {"k": 2},
        "grid": grid,
        "place": place,
        "source": source,
        "size": torch.full((len(place),), 2.5),
    }
    return TokenPlan(**facts | changes)


def save(path: Path, tokens: Tokens, plan: TokenPlan) -> torch.Tensor:
    """Write the tokens that a plan keeps; returns them."""
    layout = dataclasses.replace(tokens.layout(), plan=plan)
    kept = tokens.data.flatten(0, 2)[plan.place]
    rows = to_rows(kept[:, None, None], layout.info)
    layout.write(path, hashlib.sha256(rows).hexdigest(), [rows])
    return kept


@pytest.mark.parametrize("info", [make_info(), LATENTS, make_info(codebook_size=2**40)])
def test_a_compact_file_gives_what_stands_for_every_token(tmp_path: Path, info) -> None:
    tokens = make_tokens(info)
    plan = plan_of(tokens.grid)
    kept = save(tmp_path / "a.safetensors", tokens, plan)
    wanted = kept[plan.standing].view_as(tokens.data)
    assert torch.equal(Tokens.load(tmp_path / "a.safetensors").data, wanted)
    with TokenReader(tmp_path / "a.safetensors", groups=1) as reader:
        parts = list(reader)
        assert torch.equal(Tokens.cat(parts).data, wanted)
        assert Tokens.cat(parts).size == tokens.size
    with TokenFile(tmp_path / "a.safetensors") as file:
        assert torch.equal(file.read_rows(0, len(kept)), kept)
        assert torch.equal(file.read_rows(2, 4), kept[2:4])
        read = file.layout.plan
    assert read is not None
    assert read.facts() == plan.facts()
    for name in ("place", "source", "size"):
        assert torch.equal(getattr(read, name), getattr(plan, name))


def test_files_without_a_plan_stay_what_they_were(tmp_path: Path) -> None:
    make_tokens().save(tmp_path / "a.safetensors")
    with TokenFile(tmp_path / "a.safetensors") as file:
        assert file.facts["version"] == 1
        assert "plan" not in file.facts
        assert file.layout.plan is None


def test_a_plan_says_no_more_than_has_to_be_said() -> None:
    pruned = torch.full((24,), -1)
    pruned[[3, 5]] = torch.tensor([0, 1])
    facts = {"place": torch.tensor([3, 5]), "source": pruned, "size": torch.ones(2)}
    plan = plan_of((2, 3, 4), **facts)
    assert {name: x.tolist() for name, x in plan.tensors().items()} == {"held": [0b00010100, 0, 0]}
    merged = pruned.clone()
    merged[0] = 1
    plan = plan_of((2, 3, 4), **facts | {"source": merged, "size": torch.tensor([1.0, 2.0])})
    assert set(plan.tensors()) == {"held", "source"}
    assert plan.tensors()["source"].dtype == torch.uint16
    plan = plan_of((2, 3, 4), **facts | {"source": merged})
    assert set(plan.tensors()) == {"held", "source", "size"}


def test_plans_of_many_tokens_tell_them_all_apart() -> None:
    grid = (1, 512, 512)
    place = torch.arange(0, 512 * 512, 2)
    source = torch.arange(512 * 512) // 2
    source[-1] = -1
    size = torch.ones(len(place))
    plan = plan_of(grid, place=place, source=source, size=size)
    assert plan.tensors()["source"].dtype == torch.int32
    read = TokenPlan.read(plan.facts(), plan.tensors(), grid)
    assert torch.equal(read.place, place)
    assert torch.equal(read.source, source)


def test_what_stands_for_a_dropped_token_is_near_in_time_then_in_place() -> None:
    source = torch.full((3, 1, 3), -1)
    source[1, 0, 0], source[2, 0, 0], source[2, 0, 1] = 0, 1, 2
    plan = plan_of(
        (3, 1, 3), place=torch.tensor([3, 6, 7]), source=source.flatten(), size=torch.ones(3)
    )
    plan.check()
    assert plan.standing.view(3, 3).tolist() == [[0, 2, 2], [0, 2, 2], [1, 2, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"place": torch.tensor([0, 0])}, "contradicts itself"),
        ({"place": torch.tensor([0, 99])}, "contradicts itself"),
        ({"place": torch.tensor([-1, 3])}, "contradicts itself"),
        ({"place": torch.tensor([0.0, 3.0])}, r"expected int64 \[K\]"),
        ({"source": torch.tensor([0, 0, 0, 1, 1, 2])}, "contradicts itself"),
        ({"source": torch.tensor([0, 0, 0, 1, 1, -2])}, "contradicts itself"),
        ({"source": torch.tensor([1, 1, 0, 0, 0, 1])}, "contradicts itself"),
        ({"source": torch.zeros(5, dtype=torch.int64)}, r"and \[6\]"),
        ({"size": torch.tensor([1.0, -1.0])}, "finite number"),
        ({"size": torch.tensor([1.0, torch.nan])}, "finite number"),
        ({"size": torch.ones(3)}, r"float32 \[2\]"),
        ({"place": torch.empty(0, dtype=torch.int64), "size": torch.empty(0)}, "keeps 0 of 6"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change, message) -> None:
    plan_of((1, 2, 3)).check()
    with pytest.raises(TokensError, match=message):
        plan_of((1, 2, 3), **change).check()


@pytest.mark.parametrize(
    "change",
    [
        {"held": torch.tensor([0b10010001], dtype=torch.uint8)},
        {"held": torch.tensor([0b10010000, 0], dtype=torch.uint8)},
        {"held": torch.tensor([0], dtype=torch.uint8)},
        {"held": torch.tensor([0b10010000], dtype=torch.int32)},
        {"source": torch.tensor([0, 0, 7, 1, 1, 1], dtype=torch.uint16)},
        {"source": torch.tensor([0, 0, -1, 1, 1], dtype=torch.int32)},
        {"size": torch.tensor([1.0, torch.inf])},
        {"size": torch.tensor([1, 1])},
    ],
)
def test_tensors_of_a_plan_are_checked(change) -> None:
    plan = plan_of((1, 2, 3))
    TokenPlan.read(plan.facts(), plan.tensors(), plan.grid)
    with pytest.raises(TokensError, match="plan"):
        TokenPlan.read(plan.facts(), plan.tensors() | change, plan.grid)


@pytest.mark.parametrize(
    "facts",
    [
        {"method": "a", "budget": 0.5},
        {"method": 3, "budget": 0.5, "options": {}},
        {"method": "a", "budget": "half", "options": {}},
        {"method": "a", "budget": 0.5, "options": [1]},
        [],
    ],
)
def test_facts_of_a_plan_are_checked(facts) -> None:
    with pytest.raises(TokensError, match="plan"):
        TokenPlan.read(facts, plan_of((1, 2, 3)).tensors(), (1, 2, 3))
