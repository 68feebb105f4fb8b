"""Training data: folders, tars, lists; batches by number alone; broken files passed over."""

from __future__ import annotations

import csv
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import corpus, run_config  # noqa: F401 - a fixture
from video_clips import number_of

from omnitok.train.config import ConfigError, DatasetConfig, SourceConfig, TrainConfig, from_dict
from omnitok.train.sampler import SampleError, Sampler, load
from video.data.crops import span, window
from video.data.datasets import find_items

# ruff: noqa: F811 - tests take the fixture by its name


@pytest.fixture(scope="module")
def files(tmp_path_factory, clips):
    """Pictures that are one colour each, and a clip of 30 numbered frames."""
    root = tmp_path_factory.mktemp("files")
    for n in range(20):
        Image.new("RGB", (40, 30), (10 * n, 0, 0)).save(root / f"{n:02}.png")
    (root / "deep").mkdir()
    (root / "deep" / "clip.mp4").write_bytes(clips("steady.mp4").read_bytes())
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("no picture")
    return root


def source(kind, size, **changes):
    return SourceConfig(kind=kind, sizes=[size], batch=2, **changes)


def run_on(items, kind, size, **changes):
    mix = [{"kind": kind, "sizes": [list(size)], "batch": 2, **changes}]
    values = {
        "model": {"preset": "tiny-kl"},
        "stages": [{"name": "one", "steps": 6, "mix": mix}],
        "workers": 0,
    }
    return Sampler(from_dict(TrainConfig, values), {"files": items})


def test_a_folder_is_searched_and_sorted_by_kind(files):
    items = find_items(DatasetConfig(path=str(files)))
    assert [len(items[k]) for k in ("images", "videos")] == [20, 1]


def test_parts_share_the_files(files):
    parts = {
        part: find_items(DatasetConfig(path=str(files), part=part, holdout=0.3))["images"]
        for part in ("all", "train", "val")
    }
    names = {part: {item.name for item in items} for part, items in parts.items()}
    assert names["train"] | names["val"] == names["all"]
    assert not names["train"] & names["val"]
    assert 1 <= len(names["val"]) <= 12


def test_a_tar_holds_the_same_files(files, tmp_path):
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for path in sorted(files.rglob("*")):
            if path.is_file():
                tar.add(path, path.name)
    items = find_items(DatasetConfig(path=str(tmp_path)))
    assert [len(items[k]) for k in ("images", "videos")] == [20, 1]
    rng = np.random.default_rng(0)
    clip = items["videos"][0].sample(rng, source("videos", (5, 16, 16)), (5, 16, 16))["pixels"]
    again = find_items(DatasetConfig(path=str(files)))["videos"][0]
    rng = np.random.default_rng(0)
    assert torch.equal(
        clip, again.sample(rng, source("videos", (5, 16, 16)), (5, 16, 16))["pixels"]
    )


def test_a_list_names_files_weights_and_embeddings(files, tmp_path):
    np.save(tmp_path / "text.npy", np.arange(4, dtype=np.float32))
    path = tmp_path / "list.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "weight", "embedding"])
        writer.writerow([files / "03.png", 1, "text.npy"])
        writer.writerow([files / "04.png", 0, "text.npy"])
    batch = run_on(find_items(DatasetConfig(path=str(path))), "images", (1, 8, 8))[0]
    assert set(batch.files) == {str(files / "03.png")}
    assert torch.equal(batch.tensors["text"][1], torch.arange(4.0))
    assert batch.tensors["pixels"][:, 0].unique().tolist() == [30]


@pytest.mark.parametrize("text", ["file\n1.png\n", "path\n\n"])
def test_a_list_without_paths_is_refused(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"list\.csv"):
        find_items(DatasetConfig(path=str(path)))


def test_frames_of_a_clip_are_as_far_apart_as_asked(files):
    item = find_items(DatasetConfig(path=str(files)))["videos"][0]
    for seed in range(12):
        numbers = span(np.random.default_rng(seed), item.num_frames(), 5, 2.0)
        assert [number_of(frame) for frame in item.frames(numbers)] == numbers.tolist()
        assert set(np.diff(numbers)) == {2}
    uneven = span(np.random.default_rng(0), 1000, 50, 30 / 18)
    assert uneven[-1] - uneven[0] == round(49 * 30 / 18)
    bounced = span(np.random.default_rng(0), 3, 7, 1)
    assert set(np.abs(np.diff(bounced))) == {1}
    assert bounced.max() == 2


def test_windows_stay_inside_and_keep_the_shape():
    rng = np.random.default_rng(0)
    for _ in range(200):
        frame = rng.integers(1, 400, 2).tolist()
        size = tuple(rng.integers(1, 200, 2).tolist())
        top, left, height, width = window(rng, *frame, size)
        assert top >= 0
        assert left >= 0
        assert top + height <= frame[0]
        assert left + width <= frame[1]


def test_batches_depend_on_the_seed_and_their_number_alone(corpus):
    a, b = (Sampler(run_config(), {"x": corpus}) for _ in "ab")
    ahead = [a[n] for n in range(6)]
    for n in reversed(range(6)):
        assert torch.equal(ahead[n].tensors["pixels"], b[n].tensors["pixels"])
    other = Sampler(run_config(seed=1), {"x": corpus})
    assert not torch.equal(ahead[0].tensors["pixels"], other[0].tensors["pixels"])


def test_processes_share_a_batch(corpus):
    whole = Sampler(run_config(), {"x": corpus})
    shares = [Sampler(run_config(), {"x": corpus}, (rank, 2)) for rank in range(2)]
    for n in range(4):
        parts = [share[n].tensors["pixels"] for share in shares]
        assert torch.equal(torch.cat(parts), whole[n].tensors["pixels"])
    with pytest.raises(ConfigError, match="3 processes"):
        Sampler(run_config(), {"x": corpus}, (0, 3))


def test_workers_prepare_the_same_batches_from_any_point_on(corpus):
    sampler = Sampler(run_config(workers=2), {"x": corpus})
    for number, batch in zip(range(7, 12), load(sampler, 7), strict=True):
        assert torch.equal(batch.tensors["pixels"], sampler[number].tensors["pixels"])


def test_broken_files_are_passed_over_and_named(files, tmp_path):
    (tmp_path / "good.png").write_bytes((files / "05.png").read_bytes())
    (tmp_path / "bad.png").write_bytes((files / "05.png").read_bytes()[:60])
    sampler = run_on(find_items(DatasetConfig(path=str(tmp_path))), "images", (1, 8, 8))
    batches = [sampler[n] for n in range(6)]
    assert {name for b in batches for name in b.files} == {str(tmp_path / "good.png")}
    broken = {name for b in batches for name, _ in b.broken}
    assert broken == {str(tmp_path / "bad.png")}


def test_nothing_but_broken_files_is_an_error(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    sampler = run_on(find_items(DatasetConfig(path=str(tmp_path))), "images", (1, 8, 8))
    with pytest.raises(SampleError, match=r"in a row.*bad\.png"):
        sampler[0]


def test_colours_change_alike_in_all_frames(files):
    items = find_items(DatasetConfig(path=str(files)))
    plain = run_on(items, "videos", (3, 16, 16))[0].tensors["pixels"].float()
    moved = run_on(items, "videos", (3, 16, 16), jitter=0.5)[0].tensors["pixels"].float()
    assert not torch.equal(plain, moved)
    change = (moved.mean((1, 3, 4)) - plain.mean((1, 3, 4))).std(dim=1)
    assert change.max() < 12


def test_a_mix_that_names_missing_data_or_kinds_is_refused(files):
    items = find_items(DatasetConfig(path=str(files)))
    with pytest.raises(ConfigError, match=r"asks for meshes.*hold none"):
        run_on(items, "meshes", (10, 10, 1))
    with pytest.raises(ConfigError, match=r"'else'.*\['files'\]"):
        run_on(items, "images", (1, 8, 8), data=["else"])


def test_sizes_share_the_pixels_of_a_batch():
    many = SourceConfig(kind="images", batch=8, sizes=[(1, 64, 64), (1, 128, 128), (1, 32, 64)])
    assert [many.batch_of(size) for size in many.sizes] == [8, 2, 16]
