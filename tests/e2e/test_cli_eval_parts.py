"""What `omnitok eval` is made of: protocols, reading, codecs, scores."""

import json
import math
from dataclasses import replace

import pytest
import torch
from small_models import noise, small_tokenizer
from waves import waves, write_corpus

from omnitok.metrics.pixel import psnr
from tools.commands import eval_data, eval_methods, media_codecs, protocol, scoring
from tools.commands.errors import UsageError
from tools.commands.eval_data import Item
from tools.commands.eval_run import _overspent
from tools.commands.eval_table import csv_of, table
from tools.commands.protocol import Protocol
from video import read, write

PLAIN = Protocol(name="plain", frames=5, size=16)


def networks(tmp_path) -> scoring.Networks:
    return scoring.Networks(tmp_path, PLAIN, "cpu")


def score(tmp_path, frames, recon, tokens=12, bits=192.0, fps=None) -> scoring.Score:
    coded = scoring.Coded(frames=recon, bits=bits, tokens=tokens)
    return networks(tmp_path).score(Item(name="a", frames=frames, fps=fps), coded)


# protocols


def test_shipped_protocols_load_and_say_where_they_come_from():
    assert "ucf101-17x256" in protocol.names()
    for name in protocol.names():
        assert len(protocol.load_protocol(name).about) > 40
    ucf = protocol.load_protocol("ucf101-17x256")
    assert (ucf.frames, ucf.size, ucf.resize, ucf.start) == (17, 256, "stretch", "centre")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"frmes": 3}', "unknown keys"),
        ('{"frames": "3"}', "frames is '3'; expected int"),
        ('{"frames": 0}', "frames=0 must be above 0"),
        ('{"start": "end"}', "start='end' is unknown"),
        ('{"kinds": ["mesh"]}', "kinds="),
        ("[1]", "expected an object"),
        ("{", "Expecting"),
    ],
)
def test_a_protocol_that_is_not_well_formed_is_refused(tmp_path, text, why):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        protocol.load_protocol(str(path))


# reading


def test_clips_begin_where_the_protocol_says():
    middle = replace(PLAIN, start="centre", stride=2)  # 9 frames from first to last
    assert eval_data.place(PLAIN, "a", 20) == [0, 1, 2, 3, 4]
    assert eval_data.place(middle, "a", 20) == [6, 8, 10, 12, 14]
    assert eval_data.place(replace(PLAIN, start="centre"), "a", 7) == [1, 2, 3, 4, 5]
    anywhere = replace(PLAIN, start="random")
    starts = {eval_data.place(anywhere, name, 500)[0] for name in "abcdefgh"}
    assert len(starts) > 4
    assert eval_data.place(anywhere, "a", 500) == eval_data.place(anywhere, "a", 500)
    assert eval_data.place(anywhere, "a", 500) != eval_data.place(
        replace(anywhere, seed=1), "a", 500
    )
    assert eval_data.place(PLAIN, "a", 3) == [0, 1, 2]
    assert eval_data.place(replace(PLAIN, short="skip"), "a", 3) is None


@pytest.mark.parametrize("start", ["first", "centre"])
def test_frames_of_a_file_are_those_of_the_protocol(tmp_path, start):
    path = tmp_path / "clip.mp4"
    write(path, torch.from_numpy(waves(24, 32, 48, 0)).permute(0, 3, 1, 2))
    whole = read(path).frames
    wanted = replace(PLAIN, start=start, stride=3, resize="keep")
    item = eval_data.read_item(str(path), "clip.mp4", wanted)
    first = 0 if start == "first" else 6
    assert torch.equal(item.frames, whole[first : first + 13 : 3])
    assert item.fps == pytest.approx(25 / 3)
    slow = eval_data.read_item(str(path), "clip.mp4", replace(wanted, fps=12.5, stride=1))
    first = 0 if start == "first" else 8
    assert torch.equal(slow.frames, whole[first : first + 9 : 2])
    assert slow.fps == 12.5


def test_frames_are_cropped_or_stretched_to_size():
    frames = torch.zeros(2, 3, 20, 40, dtype=torch.uint8)
    frames[:, :, :, 10:30] = 255  # the centre square
    crop = eval_data.fit(frames, PLAIN)
    assert crop.shape == (2, 3, 16, 16)
    assert crop[..., 1:-1].min() == 255
    stretched = eval_data.fit(frames, replace(PLAIN, resize="stretch"))
    assert stretched.shape == (2, 3, 16, 16)
    assert stretched[..., :3].max() == 0
    assert torch.equal(eval_data.fit(frames, replace(PLAIN, resize="keep")), frames)


def test_a_choice_of_files_is_the_same_every_time_and_another_with_another_seed():
    sources = [
        eval_data.Source(name=str(n), kind="video" if n % 2 else "image", read=lambda: None)
        for n in range(40)
    ]
    few = replace(PLAIN, clips=5, kinds=("video",))
    chosen = [source.name for source in eval_data.choose(sources, few)]
    assert len(chosen) == 5
    assert all(int(name) % 2 for name in chosen)
    assert chosen == [source.name for source in eval_data.choose(sources, few)]
    other = [source.name for source in eval_data.choose(sources, replace(few, seed=1))]
    assert chosen != other


# codecs


@pytest.mark.parametrize("name", ["x264", "AV1", "JPEG", "WebP"])
def test_codecs_take_no_more_bytes_than_they_may_and_use_them(name):
    if not media_codecs.available(name):
        pytest.skip(f"this build has no {name}")
    frames = torch.from_numpy(waves(8, 64, 48, 3)).permute(0, 3, 1, 2)
    item = Item(name="waves", frames=frames if name in media_codecs.FOR["video"] else frames[:1])
    results = [media_codecs.code(name, item, budget) for budget in (1200, 4000)]
    assert [recon.shape for recon, _ in results] == [item.frames.shape] * 2
    assert results[0][1] <= 1200 < results[1][1] <= 4000
    scores = [float(psnr(recon, item.frames).mean()) for recon, _ in results]
    assert 15 < scores[0] < scores[1]
    smallest = media_codecs.code(name, item, 1)[1]
    assert 1 < smallest <= results[0][1]
    odd = Item(name="odd", frames=item.frames[:, :, :33, :31])
    assert media_codecs.code(name, odd, 3000)[0].shape == odd.frames.shape


# scores


def test_scores_of_a_known_error(tmp_path):
    frames = noise(3, 24, 16).clamp(0, 250)
    found = score(tmp_path, frames, frames + 5, fps=6.0)
    assert found.psnr == pytest.approx(20 * math.log10(255 / 5), abs=1e-4)
    assert found.frame_psnr == pytest.approx(found.psnr, abs=1e-4)
    assert found.flicker == 0
    assert found.bits_per_pixel == 192 / (3 * 24 * 16)
    assert found.tokens_per_second == 12 / (3 / 6.0)
    assert found.lpips is None


def test_means_over_clips_over_frames_and_over_everything_differ_as_they_should(tmp_path):
    black = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    tally = scoring.Tally(None)
    two = torch.stack([black[0] + 1, black[0] + 7])
    for name, frames, recon in (("two", black[:2], two), ("one", black[:1], black[:1] + 3)):
        tally.add(Item(name=name, frames=frames), score(tmp_path, frames, recon), None, None)

    def decibels(mse: float) -> float:
        return 10 * math.log10(255**2 / mse)

    found = tally.summary()
    assert (found["clips"], found["frames"]) == (2, 3)
    assert found["psnr"] == pytest.approx((decibels((1 + 49) / 2) + decibels(9)) / 2)
    assert found["psnr_frames"] == pytest.approx((decibels(1) + decibels(49) + decibels(9)) / 3)
    assert found["psnr_all"] == pytest.approx(decibels((1 + 49 + 9) / 3))


def test_linear_baselines_have_as_many_bits_as_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(eval_methods, "DRAWS", 3)
    said = []
    linear = eval_methods.LinearBaselines(write_corpus(tmp_path / "corpus"), said.append)
    frames = torch.from_numpy(waves(6, 32, 32, 5)).permute(0, 3, 1, 2)
    for name, bits in (("tiny", 16), ("tiny-kl", 512)):
        tok = small_tokenizer(name)
        method = linear.of(name, tok)
        coded = method.code(Item(name="waves", frames=frames), {})
        assert coded.frames.shape == frames.shape
        assert coded.tokens == tok.tokenize(frames).num_tokens
        assert coded.bits == coded.tokens * bits
    names = [fact["name"] for fact in linear.facts()]
    assert names == ["PCA quantized to 16 bits", "PCA, 16 numbers"]
    assert said == [f"fitting {name}" for name in names]
    assert all(fact["still_patches"] and fact["moving_patches"] for fact in linear.facts())


# tables


def test_codecs_that_need_more_bytes_are_counted_clip_by_clip():
    def row(method, *bits):
        items = {str(n): {"bits_per_pixel": x} for n, x in enumerate(bits)}
        return {"set": "image", "method": method, "model": "tiny", "items": items}

    rows = [row("tiny", 0.2, 0.2, 0.2), row("JPEG, bytes of tiny", 0.1, 0.3, 0.1)]
    (note,) = _overspent(rows)
    assert note.startswith("JPEG, bytes of tiny: 1 of 3 images need more bytes")
    assert not _overspent(rows[:1])


def test_a_table_is_markdown_with_even_columns():
    assert table([["a", "bb"], ["ccc", ""]]) == ["| a   | bb |", "| --- | -- |", "| ccc |    |"]


def test_a_csv_leaves_out_what_is_nested():
    rows = [{"a": 1, "b": None, "items": {}}, {"a": "x, y", "b": 2.5, "items": {}}]
    assert csv_of(rows) == 'a,b\n1,\n"x, y",2.5\n'
    assert csv_of([]) == ""
    assert json.dumps(rows)
