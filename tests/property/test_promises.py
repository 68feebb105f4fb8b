"""The promises of docs/promises.md, over every preset."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnitok import Tokens
from omnitok.groups import group_frames, num_groups
from omnitok.native.build import library
from omnitok.presets import PRESETS
from omnitok.tokenizer import Tokenizer
from tests.small_models import noise, small_model, small_tokenizer

every_preset = pytest.mark.parametrize("name", sorted(PRESETS))
HALF = " in bfloat16"  # where our own kernels compute
every_type = pytest.mark.parametrize(
    "name", [*sorted(PRESETS), *(name + HALF for name in sorted(PRESETS) if library())]
)
quick = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
sides = st.integers(1, 40)
lengths = st.integers(1, 40)


@cache
def tokenizer(name: str) -> Tokenizer:
    tok = small_tokenizer(name.removesuffix(HALF))
    if name.endswith(HALF):
        tok.model.to(torch.bfloat16)
    return tok


def values(tokens: Tokens) -> torch.Tensor:
    data = tokens.codes if tokens.codes is not None else tokens.latents
    assert data is not None
    return data


def with_values(tokens: Tokens, data: torch.Tensor, frames: int) -> Tokens:
    field = "codes" if tokens.codes is not None else "latents"
    return Tokens(**{field: data}, size=(frames, *tokens.size[1:]), info=tokens.info)


def cut_tokens(tokens: Tokens, cuts: list[int], patch_t: int) -> list[Tokens]:
    starts = group_frames(tokens.size[0], patch_t)
    edges = sorted({0, tokens.grid[0], *(c % tokens.grid[0] for c in cuts)})
    return [
        with_values(tokens, values(tokens)[a:b], starts[b] - starts[a]) for a, b in pairwise(edges)
    ]


def push_in_pieces(tok: Tokenizer, frames: torch.Tensor, cuts: list[int]) -> list[Tokens]:
    edges = sorted({0, len(frames), *(c % len(frames) for c in cuts)})
    with tok.stream() as stream:
        parts = [stream.push(frames[a:b]) for a, b in pairwise(edges)]
        return [*parts, stream.finish()]


@every_type
@quick
@given(frames=lengths, height=sides, width=sides)
def test_p1_what_comes_back_has_the_same_frames_and_pixels(name, frames, height, width):
    tok, clip = tokenizer(name), noise(frames, height, width)
    tokens = tok.tokenize(clip)
    pt, ph, pw = tok.patch
    assert tokens.grid == (num_groups(frames, pt), -(-height // ph), -(-width // pw))
    assert tok.detokenize(tokens).shape == clip.shape
    x = torch.zeros(1, 3, frames, height, width)
    assert tok.decode(tok.encode(x), size=(frames, height, width)).shape == x.shape


@every_type
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 70), (5, 9, 8), (6, 100, 3)])
def test_p1_holds_at_the_edges(name, size):
    tok = tokenizer(name)
    assert tok.reconstruct(noise(*size)).shape == (size[0], 3, *size[1:])


@every_type
@quick
@given(frames=lengths, height=sides, width=sides)
def test_p2_an_image_is_the_first_step_of_a_video(name, frames, height, width):
    tok, clip = tokenizer(name), noise(frames, height, width)
    assert torch.equal(values(tok.tokenize(clip[:1]))[0], values(tok.tokenize(clip))[0])


@every_type
@quick
@given(frames=st.integers(2, 30), data=st.data())
def test_p3_a_later_frame_changes_no_earlier_token(name, frames, data):
    tok, clip = tokenizer(name), noise(frames, 20, 20)
    n = data.draw(st.integers(1, frames - 1))
    changed = clip.clone()
    changed[n] = 255 - changed[n]
    group = num_groups(n + 1, tok.patch[0]) - 1
    before, after = values(tok.tokenize(clip)), values(tok.tokenize(changed))
    assert torch.equal(before[:group], after[:group])
    assert not torch.equal(before[group:], after[group:])


@every_type
@quick
@given(frames=st.integers(2, 30), data=st.data())
def test_p3_a_later_token_changes_no_earlier_frame(name, frames, data):
    tok = tokenizer(name)
    tokens, other = (tok.tokenize(noise(frames, 20, 20, seed=s)) for s in (0, 1))
    group = data.draw(st.integers(1, tokens.grid[0] - 1))
    mixed = torch.cat([values(tokens)[:group], values(other)[group:]])
    a, b = tok.detokenize(tokens), tok.detokenize(with_values(tokens, mixed, frames))
    first = group_frames(frames, tok.patch[0])[group]
    assert torch.equal(a[:first], b[:first])
    assert not torch.equal(a[first:], b[first:])


@every_type
@quick
@given(
    frames=lengths,
    height=sides,
    width=sides,
    cuts=st.lists(st.integers(0, 1000), max_size=8),
    token_cuts=st.lists(st.integers(0, 1000), max_size=4),
)
def test_p4_any_cuts_give_the_whole(name, frames, height, width, cuts, token_cuts):
    tok, clip = tokenizer(name), noise(frames, height, width)
    whole = tok.tokenize(clip)
    streamed = Tokens.cat(push_in_pieces(tok, clip, cuts))
    assert torch.equal(values(whole), values(streamed))
    assert streamed.size == whole.size
    for parts in (push_in_pieces(tok, clip, cuts), cut_tokens(whole, token_cuts, tok.patch[0])):
        decoded = torch.cat(list(tok.stream_decode(parts)))
        assert torch.equal(decoded, tok.detokenize(whole))


@every_type
def test_p4_tokens_come_as_soon_as_a_group_is_complete(name):
    tok, clip = tokenizer(name), noise(6, 9, 9)
    with tok.stream() as stream:
        arrived = [stream.push(clip[n : n + 1]).grid[0] for n in range(6)]
        rest = stream.finish()
    assert arrived == [1, 0, 0, 0, 1, 0]
    assert rest.grid[0] == 1
    assert rest.size[0] == 1


@every_type
def test_p4_memory_of_a_stream_does_not_grow(name):
    tok, clip = tokenizer(name), noise(4, 17, 17)

    def held(stream) -> int:
        layers = stream._cache.layers
        kept = sum(k.numel() + v.numel() for layer in layers for k, v in layer)
        return kept + sum(w.numel() for w in stream._waiting)

    with tok.stream() as stream:
        sizes = []
        for _ in range(12):
            stream.push(clip)
            sizes.append(held(stream))
        stream.finish()
    assert len(set(sizes[-6:])) == 1
    for layer in stream._cache.layers:
        for k, _ in layer:  # a slice of a longer tensor would keep all of it alive
            assert k.untyped_storage().nbytes() <= 2 * k.numel() * k.element_size()


@every_type
def test_p5_tokens_do_not_depend_on_the_batch_or_the_threads(name):
    tok = tokenizer(name)
    clips = [noise(5, 24, 24, seed=s) for s in range(3)] + [noise(7, 9, 30), noise(1, 1, 1)]
    alone = [values(tok.tokenize(clip)) for clip in clips]
    together = [values(t) for t in tok.tokenize(clips)]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
    x = torch.stack([c.float() / 127.5 - 1 for c in clips[:3]]).transpose(1, 2)
    z = tok.encode(x)
    scale = z.abs().max()
    for n in range(3):
        assert (tok.encode(x[n : n + 1])[0] - z[n]).abs().max() <= 1e-5 * scale
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = [values(tok.tokenize(clip)) for clip in clips]
    finally:
        torch.set_num_threads(threads)
    if tok.codebook_size is None:
        assert all(
            torch.allclose(a, b, rtol=0, atol=1e-5 * float(scale))
            for a, b in zip(alone, two, strict=True)
        )
    else:
        changed = sum(int((a != b).sum()) for a, b in zip(alone, two, strict=True))
        total = sum(a.numel() for a in alone)
        print(f"{name}: {changed} of {total} codes differ between 1 and 2 threads")
        assert changed <= 1e-5 * total


@every_preset
@pytest.mark.parametrize("size", [(9, 21, 30), (1, 40, 7), (19, 9, 70)])
def test_p6_decoding_codes_is_what_training_saw(name, size):
    model = small_model(name)
    tok = Tokenizer(model, "0" * 64)
    x = noise(*size).float().transpose(0, 1)[None] / 127.5 - 1
    seen = model(x)  # whole clip at once, with gradients
    z = tok.encode(x)
    if tok.codebook_size is not None:
        codes = tok.quantize(z)
        assert torch.equal(codes.flatten(2), seen.quantized.codes)
        z = tok.dequantize(codes)
    decoded = tok.decode(z, size=size)
    assert (decoded - seen.recon).abs().max() <= 1e-5 * seen.recon.abs().max()


@every_preset
def test_p6_a_token_file_reads_back_equal(name, tmp_path):
    tok = tokenizer(name)
    tokens = tok.tokenize(noise(6, 10, 10))
    tokens.save(tmp_path / "a.safetensors")
    again = Tokens.load(tmp_path / "a.safetensors")
    assert torch.equal(values(again), values(tokens))
    assert torch.equal(tok.detokenize(again), tok.detokenize(tokens))


def test_p8_fresh_processes_write_the_same_bytes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.small_models import *\n"
        f"for name in {sorted(PRESETS)}:\n"
        "    tok, path = small_tokenizer(name), Path(sys.argv[1]) / name\n"
        "    path.parent.mkdir(exist_ok=True)\n"
        "    tokens = tok.tokenize(noise(6, 33, 20))\n"
        "    tokens.save(path.with_suffix('.tokens'))\n"
        "    path.write_bytes(tok.detokenize(tokens).numpy().tobytes())"
    )
    for folder in ("a", "b"):
        command = [sys.executable, "-c", code, str(tmp_path / folder)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 2 * len(PRESETS)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_shipped_tokenizers_claim_every_promise():
    assert tokenizer("tiny").promises == {f"P{n}": True for n in range(1, 9)}
