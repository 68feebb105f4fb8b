"""`omnitok eval`: scores, baselines of equal size, tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import noise, small_model, small_tokenizer

from omnitok.checkpoint import save_checkpoint
from omnitok.metrics.baselines import LinearTokenizer
from omnitok.metrics.pixel import psnr
from omnitok.nn.patch import patchify
from omnitok.pixels import to_float, to_uint8
from tools.cli import main
from tools.commands import scoring, x264
from tools.commands.evaluating import table
from video import write

PATCH = (4, 8, 8)


def smooth(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """[T, H, W, 3] uint8 waves that move."""
    t, y, x, c = np.meshgrid(*(np.arange(n) for n in (frames, height, width, 3)), indexing="ij")
    rng = np.random.default_rng(seed)
    waves = sum(np.sin(x * a + y * b + t * c0 + c) for a, b, c0 in rng.normal(0, 0.3, (6, 3)))
    return np.clip(128 + 25 * waves, 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "DRAWS", 5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir()
        for kind, frames, size in (("images", 1, 160), ("videos", 24, 144)):
            entries, blob = [], b""
            for item in range(2):
                pixels = smooth(frames, size, size + 16, 10 * number + item)
                where = {"offset": len(blob), "height": size, "width": size + 16}
                entries.append({"key": f"{split}-{kind}-{item}", "frames": frames, **where})
                blob += pixels.tobytes()
            (root / split / f"{kind}.bin").write_bytes(blob)
            (root / split / f"{kind}.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: str(folder / f"{name}.safetensors") for name in ("tiny", "tiny-kl")}
    for name, path in paths.items():
        save_checkpoint(path, small_model(name))
    return paths


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["eval", "--frames", "6", "--size", "32", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_scores_of_equal_clips_and_of_a_known_error():
    frames = noise(3, 24, 16).clamp(0, 250)
    score = scoring.score(frames, frames + 5, tokens=12, bits=12 * 16.0)
    assert score.psnr == pytest.approx(20 * math.log10(255 / 5), abs=1e-4)
    assert score.frame_psnr == pytest.approx(score.psnr, abs=1e-4)
    assert score.flicker == 0
    assert score.bits_per_pixel == 12 * 16 / (3 * 24 * 16)


def test_a_clip_is_scored_as_a_whole_and_not_by_the_mean_of_its_frames():
    frames = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    recon = torch.stack([frames[0] + 1, frames[1] + 7])
    score = scoring.score(frames, recon, 1, 1.0)
    assert score.psnr == pytest.approx(10 * math.log10(255**2 / ((1 + 49) / 2)), abs=1e-4)
    assert score.frame_psnr == pytest.approx(float(psnr(frames, recon).mean()))
    assert score.frame_psnr > score.psnr


def clips() -> list[torch.Tensor]:
    arrays = [smooth(9, 64, 64, seed) for seed in range(4)]
    frames = torch.from_numpy(np.stack(arrays)).permute(0, 4, 1, 2, 3)
    return [to_float(frames, torch.float32)]


def test_a_linear_tokenizer_of_full_rank_returns_what_it_gets():
    linear = LinearTokenizer.fit(clips(), PATCH, rank=768)
    assert linear.num_patches == (4 * 64, 4 * 2 * 64)
    frames = noise(6, 21, 30)  # neither whole groups nor whole patches
    recon = linear.reconstruct(to_float(frames.transpose(0, 1)[None], torch.float32))
    assert torch.equal(to_uint8(recon[0]).transpose(0, 1), frames)


def test_the_error_of_a_linear_tokenizer_is_the_variance_that_it_leaves_out():
    linear = LinearTokenizer.fit(clips(), PATCH, rank=3)
    (x,) = clips()
    rest = x - linear.reconstruct(x)
    for pca, part, patch in (
        (linear.still, rest[:, :, :1], (1, 8, 8)),
        (linear.moving, rest[:, :, 1:], PATCH),
    ):
        left_out = pca.std[3:].square().sum()
        error = patchify(part, patch).square().sum(-1).mean()
        torch.testing.assert_close(error, left_out, rtol=1e-3, atol=1e-5)


def test_quantizing_costs_quality_and_more_bits_cost_less():
    (x,) = clips()
    scores = [
        float((LinearTokenizer.fit(clips(), PATCH, 16, bits).reconstruct(x) - x).square().mean())
        for bits in (4, 16, None)
    ]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


def test_baselines_have_as_many_bits_as_the_tokenizer(corpus: Path):
    baselines = scoring.Baselines(corpus)
    frames = torch.from_numpy(smooth(6, 32, 32, 5)).permute(0, 3, 1, 2)
    for name, bits in (("tiny", 16), ("tiny-kl", 512)):
        tok = small_tokenizer(name)
        _, code = baselines.of(tok)
        recon, tokens, in_all = code(scoring.Item(name="waves", frames=frames))
        assert recon.shape == frames.shape
        assert tokens == tok.tokenize(frames).num_tokens
        assert in_all == tokens * bits
    assert [fact["name"] for fact in baselines.facts()] == [
        "PCA quantized to 16 bits",
        "PCA, 16 numbers",
    ]
    assert all(fact["still_patches"] and fact["moving_patches"] for fact in baselines.facts())


def test_eval_scores_every_held_out_item_beside_its_baseline(
    corpus: Path,
    weights: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    model, out_file = weights["tiny"], tmp_path / "scores.json"
    words = ("--model", model, "--corpus", str(corpus), "--tokens", "9000", "--json")
    status, out, _ = run(capsys, *words, "-o", str(out_file))
    assert status == 0
    data = json.loads(out)
    assert data == json.loads(out_file.read_text())
    methods = [(result["data"], result["method"]) for result in data["results"]]
    base = "PCA quantized to 16 bits"
    codec = f"x264, bytes of {model}"
    assert methods == [(kind, m) for kind in ("video", "image") for m in (base, model, codec)]
    for before, result in zip(data["results"][::3], data["results"][1::3], strict=True):
        names = [f"val-{result['data']}s-{n}" for n in range(2)]
        assert list(result["items"]) == names == list(before["items"])
        mean = sum(item["psnr"] for item in result["items"].values()) / 2
        assert result["mean"]["psnr"] == pytest.approx(mean)
        assert result["gain"] == pytest.approx(mean - before["mean"]["psnr"])
        assert before["gain"] is None
    assert data["results"][0]["mean"]["psnr"] > 15
    assert data["results"][1]["gain"] < 0  # untrained
    use = data["codebooks"][model]
    assert use["num_tokens"] >= 9000
    assert use["codebook_size"] == 64000
    assert 0 < use["share"][0] <= 9000 / 64000 + 1
    assert 2 ** use["entropy"][0] == pytest.approx(use["perplexity"][0])


def test_x264_takes_no_more_bytes_than_it_may_and_uses_them():
    frames = torch.from_numpy(smooth(12, 64, 48, 3)).permute(0, 3, 1, 2)
    small, large = (x264.within(frames, budget) for budget in (1500, 6000))
    assert len(small) <= 1500 < len(large) <= 6000
    scores = [float(psnr(x264.decode(data), frames).mean()) for data in (small, large)]
    assert 15 < scores[0] < scores[1]
    assert len(x264.within(frames, 1)) == len(x264.encode(frames, x264.WORST))
    odd = frames[:1, :, :33, :31]
    assert x264.decode(x264.encode(odd, 20)).shape == odd.shape


def test_eval_of_a_folder_needs_no_corpus(
    weights: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner" / "a.mp4", torch.from_numpy(smooth(8, 40, 64, 0)).permute(0, 3, 1, 2))
    write(tmp_path / "b.png", torch.from_numpy(smooth(1, 48, 40, 1)).permute(0, 3, 1, 2))
    (tmp_path / "c.txt").write_text("no picture")
    absent = str(tmp_path / "no corpus")
    words = ("--model", weights["tiny-kl"], "--data", str(tmp_path), "--corpus", absent)
    status, out, err = run(capsys, *words)
    assert status == 0
    assert "no baselines" in err
    assert absent in err
    lines = out.splitlines()
    assert "1 videos, 6 frames of 32x32" in lines[2]
    assert "1 images, 32x32" in lines[3]
    assert len(lines) == 4
    status, out, _ = run(capsys, *words, "--json")
    results = json.loads(out)["results"]
    assert [list(result["items"]) for result in results] == [["inner/a.mp4"], ["b.png"]]


def test_without_corpus_or_data_eval_says_what_to_do(
    weights: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    status, _, err = run(capsys, "--model", weights["tiny"], "--corpus", str(tmp_path))
    assert status == 2
    assert "make corpus" in err


def test_an_empty_folder_is_an_error_that_names_it(
    weights: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    status, _, err = run(capsys, "--model", weights["tiny"], "--data", str(tmp_path))
    assert status == 3
    assert str(tmp_path) in err


def test_a_table_is_markdown_with_even_columns():
    assert table([["a", "bb"], ["ccc", ""]]) == ["| a   | bb |", "| --- | -- |", "| ccc |    |"]
