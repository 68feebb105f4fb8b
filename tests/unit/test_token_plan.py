"""Token files that hold a plan and only the tokens it keeps."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from token_samples import LATENTS, make_info, make_tokens

from omnitok import Tokens
from omnitok.token_facts import TokensError
from omnitok.token_layout import TokenFile, to_rows
from omnitok.token_plan import TokenPlan
from omnitok.token_stream import TokenReader


def plan_of(num_tokens: int, step: int = 3) -> TokenPlan:
    """Keep every third token; the next one went into it, and it stands in for the one after."""
    place = torch.arange(0, num_tokens, step)
    source = torch.arange(num_tokens, dtype=torch.int32) // step
    dropped = torch.arange(num_tokens) % step == step - 1
    return TokenPlan(
        method="test",
        budget=0.33,
        options={"k": 2},
        place=place,
        source=torch.where(dropped, ~source, source),
        size=torch.full((len(place),), 2.0),
    )


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
    plan = plan_of(tokens.num_tokens)
    kept = save(tmp_path / "a.safetensors", tokens, plan)
    wanted = kept[torch.arange(tokens.num_tokens) // 3].view_as(tokens.data)
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
    for name, tensor in plan.tensors().items():
        assert torch.equal(getattr(read, name), tensor)


def test_files_without_a_plan_stay_what_they_were(tmp_path: Path) -> None:
    make_tokens().save(tmp_path / "a.safetensors")
    with TokenFile(tmp_path / "a.safetensors") as file:
        assert file.facts["version"] == 1
        assert "plan" not in file.facts
        assert file.layout.plan is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"place": torch.tensor([0, 0])}, "contradicts itself"),
        ({"place": torch.tensor([0, 99])}, "contradicts itself"),
        ({"place": torch.tensor([-1, 3])}, "contradicts itself"),
        ({"place": torch.tensor([0.0, 3.0])}, r"expected int64 \[K\]"),
        ({"source": torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.int32)}, "contradicts itself"),
        ({"source": torch.tensor([0, 0, 0, 1, 1, ~2], dtype=torch.int32)}, "contradicts itself"),
        ({"source": torch.tensor([1, 1, 0, 0, 0, 1], dtype=torch.int32)}, "contradicts itself"),
        ({"source": torch.zeros(5, dtype=torch.int32)}, r"int32 \[6\]"),
        ({"size": torch.tensor([1.0, -1.0])}, "finite number"),
        ({"size": torch.tensor([1.0, torch.nan])}, "finite number"),
        ({"place": torch.empty(0, dtype=torch.int64), "size": torch.empty(0)}, "keeps 0 of 6"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change, message) -> None:
    plan = plan_of(6)
    plan.check(6)
    with pytest.raises(TokensError, match=message):
        dataclasses.replace(plan, **change).check(6)


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
        TokenPlan.read(facts, plan_of(6).tensors())
