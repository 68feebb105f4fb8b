"""Our own kernels in models, and how they are made."""

from __future__ import annotations

import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from native_layers import layer, needs_tiles
from PIL import Image
from small_models import noise, small_model, small_tokenizer
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from omnitok.config import StackConfig
from omnitok.native import build, kernels
from omnitok.nn.attention import Attention
from omnitok.nn.stack import StackCache
from omnitok.presets import PRESETS
from omnitok.quantize import QuantizerConfig, build_quantizer


@needs_tiles
@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_models_agree_with_pytorch(name: str):
    model = small_model(name).eval().bfloat16()
    t, h, w = model.config.patch
    x = (torch.rand(1, 3, 1 + 5 * t, 3 * h, 5 * w) * 2 - 1).bfloat16()
    z = torch.randn(1, 6, 15, model.quantizer.dim).bfloat16()
    steps = [0, 1, *range(1 + t, 1 + 6 * t, t)]

    def both() -> tuple[Tensor, ...]:
        own = StackCache()
        parts = [model.encode_groups(x[:, :, a:b], own) for a, b in pairwise(steps)]
        return model.encode_groups(x), torch.cat(parts, dim=1), model.decode_groups(z, (3, 5))

    ours = both()
    with build.switched_off():
        theirs = both()
    wanted = model.double().encode_groups(x.double()), model.decode_groups(z.double(), (3, 5))
    for own, other, right in zip(ours, theirs, (wanted[0], wanted[0], wanted[1]), strict=True):
        error, usual = ((y.double() - right).norm() / right.norm() for y in (own, other))
        assert error < 1.2 * usual


@needs_tiles
def test_weights_that_change_are_seen():
    tok = small_tokenizer("tiny-kl")
    tok.model.to(torch.bfloat16)
    clip = noise(9, 16, 24)
    with tok.stream() as stream, torch.no_grad():
        first = stream.push(clip[:5])
        tok.model.encoder.blocks[0].mlp.down.weight.mul_(-1)
        rest = stream.push(clip[5:])
    whole = tok.tokenize(clip)
    assert not torch.equal(first.latents, whole.latents[:2])
    tok.model.load_state_dict(small_model("tiny-kl").bfloat16().state_dict(), assign=True)
    before = tok.tokenize(clip)
    assert torch.equal(before.latents[:2], first.latents)
    assert not torch.equal(before.latents[2:], rest.latents)


@needs_tiles
@torch.no_grad()
def test_a_stream_may_change_its_way():
    tok = small_tokenizer("tiny-kl")
    tok.model.to(torch.bfloat16)
    clip = noise(21, 16, 24)
    wanted = tok.tokenize(clip).latents.double()
    with tok.stream() as stream:
        parts = [stream.push(clip[:5])]
        with build.switched_off():
            parts.append(stream.push(clip[5:9]))
        parts.append(stream.push(clip[9:]))
    got = torch.cat([part.latents for part in parts]).double()
    assert float((got - wanted).norm() / wanted.norm()) < 0.02


@needs_tiles
@torch.no_grad()
def test_threads_change_nothing():
    config = StackConfig(width=64, heads=2, layers=("global",), mlp_hidden=8)
    attention = Attention(config).bfloat16()
    x = torch.randn(1, 1, 200, 64).bfloat16()
    results = []
    threads = torch.get_num_threads()
    try:
        for many in (1, 2, 3):
            torch.set_num_threads(many)
            q = kernels.linear(attention.qkv, x)[0].view(1, 200, 6, 32).transpose(1, 2)
            results.append(kernels.attention(q[:, :2], q[:, 2:4], q[:, 4:], 0.2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_tiles
def test_codes_are_those_of_float64_for_ties_too():
    config = QuantizerConfig(kind="vq", dim=4, codebook_size=50, num_codebooks=2)
    quantizer = build_quantizer(config)
    with torch.no_grad():
        quantizer.codebook[:, 25:] = quantizer.codebook[:, :25]
        quantizer.codebook[0, 3] = quantizer.codebook[0, 7] + 1e-7
    z = torch.randn(3, 40, 4)
    z[0, 0] = float("nan")
    found = quantizer.latents_to_codes(z)
    with build.switched_off():
        assert torch.equal(quantizer.latents_to_codes(z), found)


@needs_tiles
@torch.no_grad()
def test_hooks_are_called():
    model, seen = small_model("tiny").requires_grad_(False), []
    mlp = model.encoder.blocks[0].mlp
    x = torch.rand(1, 3, 1, 16, 16)
    wanted = model.encode_groups(x)
    mlp.up.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model.encode_groups(x), wanted)
    assert seen


@needs_tiles
def test_what_needs_a_graph_or_another_type_is_left_to_pytorch():
    of = layer(16, 16, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.fits(torch.zeros(2, 16), of.float())
    assert kernels.fits(torch.zeros(2, 16), of.float())
    with FlopCounterMode(display=False):
        assert not kernels.fits(torch.zeros(2, 16), of)
    with FakeTensorMode():
        assert not kernels.fits(torch.zeros(2, 16))
    try:
        torch.set_float32_matmul_precision("medium")
        assert not kernels.fits(torch.zeros(2, 16), of)
    finally:
        torch.set_float32_matmul_precision("highest")
    of.bfloat16()
    assert kernels.fits(torch.zeros(2, 16).bfloat16(), of)
    assert not kernels.fits(torch.zeros(2, 16), of)
    assert not kernels.fits(torch.zeros(0, 16).bfloat16(), of)
    assert not kernels.fits(torch.zeros(2, 16).bfloat16(), of.float())
    with torch.inference_mode():
        assert not kernels.fits(torch.zeros(2, 16).bfloat16(), layer(16, 16, True))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A processor with tiles, an empty cache and nothing loaded."""
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "has_tiles", lambda: True)
    monkeypatch.delenv(build.SWITCH, raising=False)
    build._loaded.cache_clear()
    yield tmp_path / "cache"
    build._loaded.cache_clear()


def test_without_a_compiler_a_warning_says_so(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler .install g"):
        assert build.library() is None


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch: pytest.MonkeyPatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "tiles.h:1: no such thing\nmore")

    monkeypatch.setattr(build.subprocess, "run", fail)
    monkeypatch.setattr(build.shutil, "which", lambda name: "/bin/c++")
    with pytest.warns(RuntimeWarning, match="cannot compile them .tiles.h:1: no such thing."):
        assert build.library() is None
    assert list(fresh.iterdir()) == []


def test_the_switch_turns_them_off_without_a_word(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(build.SWITCH, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.library() is None


@needs_tiles
def test_they_are_compiled_once(fresh, monkeypatch: pytest.MonkeyPatch):
    path = build.compiled()
    assert [path] == list(fresh.iterdir())
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.compiled() == path


@needs_tiles
def test_what_another_user_put_in_the_cache_is_not_run(fresh, monkeypatch: pytest.MonkeyPatch):
    build.compiled()
    monkeypatch.setattr(build, "_TRUSTED", (4711, 4712))
    with pytest.raises(build.BuildError, match="belongs to another user"):
        build.compiled()


def test_commands_say_it_in_one_sentence(tmp_path):
    """Without a compiler the work is done all the same."""
    if not build.has_tiles():
        pytest.skip("this processor has no matrix tiles")
    source, empty = tmp_path / "picture.png", tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (16, 16), "orange").save(source)
    environ = {"PATH": str(empty), "OMNITOK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tools.cli", "tokenize", str(source), "-o", str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=root)
    assert done.returncode == 0
    (warning,) = (line for line in done.stderr.splitlines() if "kernels" in line)
    assert warning.startswith("omnitok: networks run slower, without omnitok's own kernels")
    assert "RuntimeWarning" not in done.stderr
