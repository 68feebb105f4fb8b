"""The benches: what they count and how they judge. Their figures are measured elsewhere."""

import subprocess
import sys

import pytest
import torch
from small_models import small_model, small_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from omnitok.nn.stack import StackCache
from omnitok.presets import PRESETS
from tools import bench, bench_stream
from tools.bench_clips import forth_and_back, make_video, real_frames
from tools.bench_efficiency import changed, one_model
from tools.bench_figures import Figure, fastest
from tools.bench_flops import group_flops
from video import read


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_counted_operations_equal_those_that_torch_counts(name: str):
    model = small_model(name).eval()
    t, h, w = model.config.patch
    grid = (5, 9)
    encoding, decoding = StackCache(), StackCache()
    for group in range(4):
        x = torch.rand(1, 3, t if group else 1, grid[0] * h, grid[1] * w)
        z = torch.rand(1, 1, grid[0] * grid[1], model.quantizer.dim)
        for side, run in (
            ("encoder", lambda x=x: model.encode_groups(x, encoding)),
            ("decoder", lambda z=z: model.decode_groups(z, grid, decoding)),
        ):
            # only the plain kernel is counted on a CPU
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run()
            assert group_flops(model, side, grid, group) == counter.get_total_flops()


def test_a_figure_says_whether_its_ratio_is_reached():
    assert Figure(name="a", measured="1", ratio=0.51, least=0.5).row[3:] == [
        "0.51",
        "at least 0.5",
        "yes",
    ]
    assert Figure(name="a", measured="1", ratio=0.49, least=0.5).row[-1] == "NO"
    assert Figure(name="a", measured="1", ratio=1.06, most=1.05).row[4:] == ["at most 1.05", "NO"]
    assert Figure(name="a", measured="1", ratio=1.04, most=1.05).row[-1] == "yes"
    assert Figure(name="a", measured="1", ratio=0.3).row[3:] == ["0.3", "", ""]
    assert Figure(name="a", measured="1").row[2:] == ["", "", "", ""]


def test_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0, 0, 0, 5, 0, 7, 0, 4, 0, 8])  # the end of a warm-up is not looked at
    monkeypatch.setattr("tools.bench_figures.perf_counter", lambda: next(clock))
    seconds = fastest({"a": lambda: None, "b": lambda: None}, rounds=2)
    assert seconds == {"a": 4, "b": 7}


def test_a_clip_plays_forth_and_back():
    frames = torch.arange(4)
    playing = forth_and_back(frames)
    assert [int(next(playing)) for _ in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_made_videos_have_the_wanted_size_and_length(tmp_path):
    frames = real_frames(32, 48)
    clip = read(make_video(tmp_path / "a.mp4", frames[:5], 12, 30))
    assert clip.frames.shape == (12, 3, 32, 48)
    assert (clip.frames[:5].float() - frames[:5].float()).abs().mean() < 8


def test_efficiency_compares_with_a_product_of_the_same_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tools.bench_efficiency.SIDE", 128)
    monkeypatch.setattr("tools.bench_efficiency.SIZE", (32, 32))
    tok = small_tokenizer("tiny")
    encode, decode = one_model(tok, torch.bfloat16, groups=2, rounds=1, least=0.0)
    assert tok.dtype == torch.float32
    assert "bfloat16" in encode.name
    assert encode.ratio is not None
    assert decode.ratio is not None
    assert encode.ratio > 0 < decode.ratio


def test_changed_codes_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tools.bench_efficiency.SIZE", (32, 32))
    assert f"of {9 * 16:,} codes change" in changed(small_tokenizer("tiny")).measured
    assert "of their norm" in changed(small_tokenizer("tiny-kl")).measured


def test_streams_in_random_cuts_equal_the_whole():
    assert bench_stream.cuts(small_tokenizer("small"), tries=1).ratio == 1


def test_the_memory_of_a_process_is_its_own(tmp_path):
    # a process started by a large one must not report the size of that one
    ballast = torch.ones(2**27)
    command = [sys.executable, "-c", bench_stream.PEAK]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 0 < int(done.stdout) < ballast.nbytes / 2


def test_an_unknown_bench_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "speeed"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2
    assert "no bench 'speeed'" in capsys.readouterr().err


def test_a_bench_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "help", "--quick", "--threads", "1"])
    bench.main()
    out = capsys.readouterr().out
    assert "### help" in out
    assert "| omnitok --help |" in out
    assert "QUICK" in out
