from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp

from omnitok.quantize import VQ, QuantizerConfig, build_quantizer


def vq(**options: Any) -> VQ:
    options = {"dim": 6, "codebook_size": 16, **options}
    quantizer = build_quantizer(QuantizerConfig(kind="vq", **options))
    assert isinstance(quantizer, VQ)
    return quantizer.train()


def latents(tokens: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(tokens, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_first_training_batch_fills_the_codebook(tokens: int) -> None:
    quantizer, z = vq(ema=True, num_codebooks=2, dim=12), torch.cat([latents(tokens)] * 2, -1)
    out = quantizer(z)
    used = out.codes[:, 0].unique().numel()
    assert used == min(tokens, 16)
    assert bool(quantizer.initialised)
    rows = {tuple(row) for row in out.z_q[:, :6].tolist()}
    assert rows <= {tuple(row) for row in latents(tokens).tolist()}


def test_resuming_does_not_fill_the_codebook_again() -> None:
    first = vq(ema=True, ema_restart=False)
    first(latents())
    second = vq(ema=True, ema_restart=False)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(latents(seed=1)).z_q, second(latents(seed=1)).z_q)
    assert torch.equal(first.codebook, second.codebook)


def test_eval_leaves_the_codebook_alone() -> None:
    quantizer = vq(ema=True)
    quantizer(latents())
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(latents(seed=1))
    quantizer.train().latents_to_codes(latents(seed=1))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_unused_rows_restart_as_inputs_and_used_ones_stay() -> None:
    quantizer, z = vq(ema=True, ema_decay=0.5), latents()
    quantizer.codebook[:, 0] = 100.0
    quantizer.embed_sum.copy_(quantizer.codebook)
    quantizer.initialised.fill_(True)
    quantizer(z)
    assert quantizer.cluster_size[0, 0] == 0.5
    assert quantizer.codebook[0, 0].tolist() in z.tolist()
    kept = quantizer.cluster_size[0] >= 1
    assert kept.any()
    expected = quantizer.embed_sum[0, kept] / quantizer.cluster_size[0, kept, None]
    torch.testing.assert_close(quantizer.codebook[0, kept], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("l2", [False, True])
def test_moving_averages_bring_the_codebook_to_the_data(l2: bool) -> None:
    torch.manual_seed(0)
    centres = 3 * torch.randn(16, 6)
    quantizer, losses = vq(ema=True, ema_decay=0.8, l2=l2, codebook_size=64), []
    quantizer.initialised.fill_(True)  # start far from the data
    for _ in range(40):
        z = centres[torch.randint(16, (256,))] + 0.05 * torch.randn(256, 6)
        losses.append(quantizer(z).losses["commitment"].item())
    assert losses[-1] < 0.01
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize("ema", [False, True])
def test_gradients_reach_what_learns(ema: bool) -> None:
    quantizer, z = vq(ema=ema, entropy_temperature=1.0), latents().requires_grad_()
    out = quantizer(z)
    (out.z_q.sum() + sum(out.losses.values())).backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0
    assert set(out.losses) == {"commitment", "per_sample_entropy", "codebook_entropy"} | (
        set() if ema else {"codebook"}
    )
    if not ema:
        assert quantizer.codebook.grad is not None
        assert quantizer.codebook.grad.abs().sum() > 0


def test_searching_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = vq(num_codebooks=2).eval()
    whole = quantizer(latents()).codes
    monkeypatch.setattr("omnitok.quantize.vq._SCORES_AT_ONCE", 100)
    assert torch.equal(quantizer(latents()).codes, whole)


def _train_one_part(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    quantizer = vq(ema=True, ema_decay=0.5)
    for step in range(3):
        quantizer(latents(seed=step).chunk(2)[rank])
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_keep_one_codebook(tmp_path: Path) -> None:
    mp.spawn(_train_one_part, args=(str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["cluster_size"].sum() == pytest.approx(16 / 8 + 40 * 7 / 8)
