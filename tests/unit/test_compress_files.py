"""Token files made compact: window by window as at once, in bounded memory, whatever they hold."""

import math
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from token_samples import make_info
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from omnitok import Tokens
from omnitok.token_layout import TokenFile
from omnitok.tokens import Placement
from video.compress import METHODS, plan
from video.compress.files import compress_file, compress_tokens, read_compact

WINDOW = 5
LOCAL: list[tuple[str, dict[str, Any]]] = [
    ("aim", {}),
    ("dpc_knn", {"k": 3}),
    ("dycoke", {}),
    ("dycoke", {"upstream_ends": True}),
    ("dynamic_vlm", {}),
    ("m3", {"scale": 4}),
    ("sta", {}),
    ("token_pooling", {"medoids": True}),
    ("tome", {}),
    ("ts_llava", {"num_samples": 17}),
]
BUDGETS = [None, 0.3, 0.02, 1, 7, 0.99, 1.0]


def made(grid: tuple[int, int, int], width: int = 6, **facts: Any) -> Tokens:
    """Latents of a clip that moves slowly, and stands still in between."""
    t, h, w = grid
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(t, h, w, width, generator=generator)
    steps[2::3] = 0
    patch = (4, 8, 8)
    info = make_info(kind="latents", codebook_size=None, latent_dim=width, patch=patch)
    return Tokens(latents=steps.cumsum(0), size=(4 * t - 3, 8 * h, 8 * w - 3), info=info, **facts)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many time groups of so many tokens a window has."""

    def set_(tokens: int) -> None:
        pairs = WINDOW * tokens * max(tokens, 256)
        monkeypatch.setattr("video.compress.budget._PAIRS", pairs)

    return set_


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many time groups every read of a token file was of."""
    counts: list[int] = []
    read = TokenFile.read

    def spy(file: TokenFile, start: int, stop: int) -> Tensor:
        counts.append(stop - start)
        return read(file, start, stop)

    monkeypatch.setattr(TokenFile, "read", spy)
    return counts


@pytest.mark.parametrize("grid", [(23, 3, 5), (5, 1, 1), (6, 4, 4), (1, 2, 3)], ids=str)
@pytest.mark.parametrize(("method", "options"), LOCAL, ids=str)
def test_windows_give_the_file_of_the_whole_to_the_bit(
    tmp_path: Path,
    windows: Callable[[int], None],
    reads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: dict[str, Any],
    grid: tuple[int, int, int],
) -> None:
    src, whole, parts = (tmp_path / f"{name}.safetensors" for name in ("src", "whole", "parts"))
    made(grid, pts=torch.arange(4.0 * grid[0] - 3).double()).save(src)
    at_once = lambda method, frames, tokens, budget, **given: (  # noqa: E731
        frames,
        partial(plan, method, budget=budget, **given),
    )
    budgets = BUDGETS if method != "dynamic_vlm" else BUDGETS[1:]
    for budget in budgets:
        with monkeypatch.context() as patched:
            patched.setattr("video.compress.files.in_windows", at_once)
            patched.setattr("video.compress.budget._PAIRS", 2**24)
            expected = compress_file(src, whole, method, budget, **options)
        with monkeypatch.context() as patched:
            windows(math.prod(grid[1:]))
            reads.clear()
            result = compress_file(src, parts, method, budget, **options)
        assert parts.read_bytes() == whole.read_bytes()
        assert (result.kept, result.total) == (expected.kept, math.prod(grid))
        assert sum(reads) == grid[0]
        assert max(reads) <= WINDOW


@pytest.mark.parametrize("method", ["evs", "testa", "dynamic_vlm"])
def test_methods_that_look_ahead_read_all_at_once(
    tmp_path: Path, windows: Callable[[int], None], reads: list[int], method: str
) -> None:
    src = tmp_path / "src.safetensors"
    made((12, 2, 3)).save(src)
    windows(6)
    compress_file(src, tmp_path / "dst.safetensors", method, None)
    assert reads == [12]


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors alive that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def _gone(self, key: int) -> None:
        self.now -= self._seen.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for y in result if isinstance(result, tuple | list) else (result,):
            if isinstance(y, Tensor):
                storage = y.untyped_storage()
                key = storage._cdata
                if key not in self._seen:
                    self._seen[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.now)
        return result


@pytest.mark.parametrize("method", ["dycoke", "sta", "tome", "m3", "ts_llava"])
def test_memory_grows_by_the_plan_alone(
    tmp_path: Path, windows: Callable[[int], None], method: str
) -> None:
    peaks = []
    windows(12)
    for t in (20, 120):
        src = tmp_path / f"{t}.safetensors"
        made((t, 3, 4), width=256).save(src)
        with Alive() as alive:
            compress_file(src, tmp_path / f"{t}.out.safetensors", method, 0.25)
        peaks.append(alive.peak)
    tokens = 100 * 12
    assert peaks[1] - peaks[0] < 64 * tokens  # a token is 1,024 bytes, half a plan of it 30


def test_a_clip_too_large_to_look_at_whole_is_refused_in_a_sentence(
    tmp_path: Path, windows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows(6)
    src, dst = tmp_path / "src.safetensors", tmp_path / "dst.safetensors"
    made((12, 2, 3)).save(src)
    monkeypatch.setattr("os.sysconf", lambda name: 100)  # 10,000 bytes
    with pytest.raises(ValueError, match=r"72 tokens, and evs looks at all.*about .* GiB.*'tome'"):
        compress_file(src, dst, "evs")
    assert not dst.exists()
    assert compress_file(src, dst, "evs", 1.0).kept == 72  # nothing to look at
    assert compress_file(src, dst, "tome").kept == 18


@pytest.mark.parametrize("method", sorted(n for n, m in METHODS.items() if m.needs == ("tokens",)))
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 5, 3), (3, 1, 7)], ids=str)
def test_images_and_odd_grids_go_through_every_method(
    tmp_path: Path, method: str, grid: tuple[int, int, int]
) -> None:
    src, dst = tmp_path / "src.safetensors", tmp_path / "dst.safetensors"
    tokens = made(grid)
    tokens.save(src)
    for budget in (None, 0.01, 0.5):
        compress_file(src, dst, method, budget)
        few = read_compact(dst)
        assert Tokens.load(dst).latents.shape == tokens.latents.shape
        assert torch.equal(few.data, compress_tokens(tokens, method, budget).data)
        if budget is not None:
            assert len(few.data) == max(1, int(budget * math.prod(grid) + 0.5))


@pytest.mark.parametrize(("books", "size"), [(1, 1000), (3, 64), (1, 2**20), (1, 2**40)], ids=str)
def test_codes_of_every_kind_keep_their_own(
    tmp_path: Path,
    windows: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    books: int,
    size: int,
) -> None:
    windows(6)
    info = make_info(codebook_size=size, num_codebooks=books)
    generator = torch.Generator().manual_seed(0)
    shape = (6, 2, 3) if books == 1 else (6, 2, 3, books)
    codes = torch.randint(0, size, shape, generator=generator)
    src, dst = tmp_path / "src.safetensors", tmp_path / "dst.safetensors"
    Tokens(codes=codes, size=(21, 16, 24), info=info).save(src)

    class Maker:
        calls, weights_sha256 = 0, info.weights_sha256

        def dequantize(self, codes: Tensor) -> Tensor:
            z = codes.float() if books > 1 else codes.float()[..., None]
            return torch.cat([z, z.sin(), z.cos()], dim=-1).movedim(-1, 1)

    def load() -> Any:
        Maker.calls += 1
        return Maker()

    for method in ("tome", "dycoke", "evs"):
        compress_file(src, dst, method, 0.25, load=load)
        few = read_compact(dst)
        assert torch.equal(few.data, codes.flatten(0, 2)[few.plan.place])
    assert Maker.calls == 3  # once for each file, not for each window
    monkeypatch.setattr(Maker, "weights_sha256", "cd" * 32)
    with pytest.raises(ValueError, match=r"made by 'test' with weights abab.*, but these are cdcd"):
        compress_file(src, dst, "tome", load=load)
    with pytest.raises(ValueError, match="codes need the tokenizer that made them"):
        compress_file(src, dst, "tome")


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (0, {}, "budget=0; expected a fraction"),
        (1.5, {}, "budget=1.5; expected a fraction"),
        (math.nan, {}, "budget=nan; expected a fraction"),
        (True, {}, "budget=True; expected a fraction"),
        (0.5, {"k": 2.0}, "setting k is 2.0; expected a number from 0 to 1"),
        (0.5, {"k": math.nan}, "setting k is nan"),
        (0.5, {"k": "much"}, "setting k is 'much'; expected float"),
    ],
)
def test_budgets_and_settings_that_are_none_are_refused(
    tmp_path: Path, budget: Any, options: dict[str, Any], message: str
) -> None:
    src, dst = tmp_path / "src.safetensors", tmp_path / "dst.safetensors"
    made((3, 2, 3)).save(src)
    with pytest.raises(ValueError, match=message):
        compress_file(src, dst, "dycoke", budget, **options)
    assert list(tmp_path.iterdir()) == [src]


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("m3", "scale", 0),
        ("lftr", "window", 0),
        ("dart", "num_pivots", 0),
        ("ts_llava", "num_samples", 0),
        ("token_pooling", "steps", -1),
        ("tome", "r", -3),
        ("tome", "r", True),
        ("chat_univi", "spatial", [4, "two"]),
        ("chat_univi", "temporal", -1.0),
        ("evs", "q", 1.5),
        ("bvllm", "threshold", math.inf),
    ],
)
def test_settings_out_of_range_are_named(method: str, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{method} setting {setting} is "):
        compress_tokens(made((3, 2, 3)), method, None, **{setting: value})


def test_chat_univi_asks_for_as_many_neighbours_as_levels() -> None:
    with pytest.raises(ValueError, match="has 4 numbers for 2 levels; give one for each level"):
        compress_tokens(made((3, 2, 3)), "chat_univi", spatial=[4, 2])


def test_what_is_no_clip_of_tokens_is_refused() -> None:
    tokens = made((3, 2, 3))
    with pytest.raises(KeyError, match="unknown method 'dicoke'; did you mean 'dycoke'"):
        compress_tokens(tokens, "dicoke")
    with pytest.raises(ValueError, match="visionzip needs attention, which no token file holds"):
        compress_tokens(tokens, "visionzip")
    with pytest.raises(ValueError, match="quota needs text, which"):
        compress_tokens(tokens, "quota")
    with pytest.raises(TypeError, match="dycoke has no option 'q'"):
        compress_tokens(tokens, "dycoke", q=0.1)
    with pytest.raises(ValueError, match="metric is a tensor, which no token file can record"):
        compress_tokens(tokens, "tome", metric=torch.ones(3, 6, 2))
    asset = Placement(scale=1.0, offset=(0.0, 0.0, 0.0), colors=False)
    with pytest.raises(ValueError, match="of a 3D asset"):
        compress_tokens(made((3, 2, 3), placement=asset))
