"""Training data: folders, tars, lists; batches by number alone; broken files passed over."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
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
    items = find_items(DatasetConfig(path=str(path)))
    batch = run_on(items, "images", (1, 8, 8), losses=contrastive(4))[0]
    assert set(batch.files) == {str(files / "03.png")}
    assert torch.equal(batch.tensors["text"][1], torch.arange(4.0))
    assert batch.tensors["pixels"][:, 0].unique().tolist() == [30]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"file\n1.png\n", r"no column 'path'; it has \['file'\]"),
        (b"path\n\n", "holds no pictures"),
        (b"path,weight\n,1\n", "'path' of row 1 is ''; expected a file"),
        (b"path,weight\n1.png,much\n", "'weight' of row 1 is 'much'; expected a number"),
        (b"path,weight\n1.png,-1\n", "expected a number of at least 0"),
        (b"path\n\xff\xfe.png\n", "no csv in UTF-8"),
    ],
)
def test_a_list_that_is_not_well_formed_is_refused(tmp_path, text, words):
    path = tmp_path / "list.csv"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"list\.csv.*{words}"):
        find_items(DatasetConfig(path=str(path)))


def test_a_list_that_a_spreadsheet_saved_is_read(files, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"path,caption\n{files / '03.png'},two words\n", encoding="utf-8-sig")
    (item,) = find_items(DatasetConfig(path=str(path)))["images"]
    assert (item.name, item.weight, item.text) == (str(files / "03.png"), 1.0, "two words")


def test_a_parquet_list_needs_a_package_and_a_whole_file(tmp_path, monkeypatch):
    path = tmp_path / "list.parquet"
    path.write_bytes(b"PAR1 and no more")
    if importlib.util.find_spec("pyarrow"):
        with pytest.raises(ConfigError, match=r"list\.parquet is no parquet file"):
            find_items(DatasetConfig(path=str(path)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs pyarrow; pip install pyarrow"):
        find_items(DatasetConfig(path=str(path)))


def test_a_parquet_list_may_hold_the_numbers_of_captions(files, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"path": [str(files / "03.png")], "embedding": [[1.0, 2.0]], "caption": ["words"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "list.parquet")
    (item,) = find_items(DatasetConfig(path=str(tmp_path / "list.parquet")))["images"]
    assert item.caption("embedding").tolist() == [1.0, 2.0]
    assert item.caption("text") == "words"


def test_files_that_all_weigh_nothing_are_refused(files, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(f"path,weight\n{files / '03.png'},0\n")
    with pytest.raises(ConfigError, match="all have weight 0"):
        run_on(find_items(DatasetConfig(path=str(path))), "images", (1, 8, 8))


# captions


def contrastive(width, **settings):
    return {"contrastive": {"width": 8, "embedding": width, **settings}}


@pytest.fixture(scope="module")
def captioned(files, tmp_path_factory):
    """A tar with pictures 0 to 5: 0 and 1 have embeddings, 2 text, 3 JSON, 4 none; and a clip."""
    root = tmp_path_factory.mktemp("captioned")
    with tarfile.open(root / "shard.tar", "w") as tar:
        for n in range(6):
            tar.add(files / f"{n:02}.png", f"set/{n}.png")
        tar.add(files / "deep" / "clip.mp4", "set/clip.mp4")
        for name, data in (
            ("0.npy", npy([0.0, 1.0, 2.0])),
            ("1.npy", npy([1.0, 1.0, 1.0])),
            ("2.txt", b" a dark red field\n"),
            ("3.json", json.dumps({"caption": "darker", "url": "x"}).encode()),
            ("5.json", b'{"caption": 7}'),
            ("other.txt", b"of nothing"),
        ):
            member = tarfile.TarInfo(f"set/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root


def npy(numbers):
    file = io.BytesIO()
    np.save(file, np.array(numbers))
    return file.getvalue()


def test_embeddings_come_from_members_beside_the_pictures(captioned):
    items = find_items(DatasetConfig(path=str(captioned)))
    sampler = run_on(items, "images", (1, 8, 8), losses=contrastive(3))
    wanted = {"0.png": [0.0, 1.0, 2.0], "1.png": [1.0, 1.0, 1.0]}
    seen = set()
    for n in range(6):
        batch = sampler[n]
        names = [name.rsplit("/", 1)[1] for name in batch.files]
        assert batch.tensors["text"].tolist() == [wanted[name] for name in names]
        assert not batch.captions
        seen |= set(names)
    assert seen == set(wanted)


def test_captions_come_from_members_beside_the_pictures(captioned):
    items = find_items(DatasetConfig(path=str(captioned)))
    sampler = run_on(items, "images", (1, 8, 8), losses=contrastive(3, texts="encoder"))
    wanted = {"2.png": "a dark red field", "3.png": "darker"}
    batches = [sampler[n] for n in range(6)]
    for batch in batches:
        names = [name.rsplit("/", 1)[1] for name in batch.files]
        assert batch.captions == [wanted[name] for name in names]
        assert "text" not in batch.tensors
    assert {name for batch in batches for name in batch.files} == {
        f"{captioned}/shard.tar/set/{name}" for name in wanted
    }
    broken = {pair for batch in batches for pair in batch.broken}
    assert broken == {
        (
            f"{captioned}/shard.tar/set/5.png",
            f"{captioned}/shard.tar/set/5.json has no 'caption' or 'text' in words",
        )
    }


def test_captions_are_not_read_where_no_loss_looks_at_them(captioned):
    sampler = run_on(find_items(DatasetConfig(path=str(captioned))), "images", (1, 8, 8))
    batches = [sampler[n] for n in range(6)]
    assert not any(batch.captions or batch.broken or "text" in batch.tensors for batch in batches)
    assert len({name for batch in batches for name in batch.files}) > 3


def test_captions_that_are_missing_or_of_another_form_are_said_in_a_sentence(captioned, files):
    items = find_items(DatasetConfig(path=str(captioned)))
    with pytest.raises(ConfigError, match=r"none of its 1 videos has one; put x\.npy beside"):
        run_on(items, "videos", (1, 8, 8), losses=contrastive(3))
    text = [item for item in items["images"] if item.text is not None]
    with pytest.raises(ConfigError, match=r"are text; give the loss `texts`, a folder"):
        run_on({"images": text}, "images", (1, 8, 8), losses=contrastive(3))
    two = {**contrastive(3), "distill": {"kind": "captions", "width": 8, "embedding": 5}}
    with pytest.raises(ConfigError, match="the same for both"):
        run_on(items, "images", (1, 8, 8), losses=two)
    with pytest.raises(SampleError, match=r"embedding \[3\], but loss .* embedding=4"):
        run_on(items, "images", (1, 8, 8), losses=contrastive(4))[0]


def test_a_folder_has_captions_as_a_tar_has(files, tmp_path):
    (tmp_path / "a.png").write_bytes((files / "05.png").read_bytes())
    (tmp_path / "a.txt").write_text("fifty")
    (item,) = find_items(DatasetConfig(path=str(tmp_path)))["images"]
    assert item.caption("text") == "fifty"


# archives


def test_a_member_that_is_no_picture_is_named_with_its_archive(files, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(files / "05.png", "good.png")
        tar.add(files / "notes.txt", "bad.png")
    sampler = run_on(find_items(DatasetConfig(path=str(tmp_path))), "images", (1, 8, 8))
    broken = dict(pair for n in range(6) for pair in sampler[n].broken)
    assert list(broken) == [f"{tmp_path}/a.tar/bad.png"]
    assert broken[f"{tmp_path}/a.tar/bad.png"].startswith(f"{tmp_path}/a.tar/bad.png is no")


def test_an_archive_that_is_cut_or_gone_is_one_sentence(files, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for n in range(5):
            tar.add(files / f"{n:02}.png", f"{n}.png")
    items = find_items(DatasetConfig(path=str(path)))
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(SampleError, match=r"50 files in a row .*a\.tar/\d\.png: .*No such file"):
        run_on(items, "images", (1, 8, 8))[0]
    path.write_bytes(whole[:600])
    with pytest.raises(ConfigError, match=r"a\.tar is no tar archive that can be read"):
        find_items(DatasetConfig(path=str(path)))


def test_a_folder_with_an_index_of_another_kind_is_no_corpus(files, tmp_path):
    (tmp_path / "a.png").write_bytes((files / "05.png").read_bytes())
    (tmp_path / "images.json").write_text('{"annotations": []}')
    assert len(find_items(DatasetConfig(path=str(tmp_path)))["images"]) == 1
    (tmp_path / "images.bin").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"images\.json does not say what lies in .*make corpus"):
        find_items(DatasetConfig(path=str(tmp_path)))


@pytest.mark.parametrize("side", [(1, 1), (2, 7), (300, 3), (3, 300)])
def test_pictures_of_any_size_give_clips(tmp_path, side):
    Image.new("RGB", side, (9, 9, 9)).save(tmp_path / "a.png")
    items = find_items(DatasetConfig(path=str(tmp_path)))
    for kind, size in (("images", (1, 16, 8)), ("pans", (5, 8, 16))):
        sampler = run_on(items, kind, size)
        for n in range(6):
            assert sampler[n].tensors["pixels"].shape == (2, 3, *size)


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


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_files_is_one_sentence(tmp_path, workers):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    sampler = run_on(find_items(DatasetConfig(path=str(tmp_path))), "images", (1, 8, 8))
    sampler.config.workers = workers
    with pytest.raises(SampleError, match=r"in a row.*bad\.png") as caught:
        next(load(sampler, 0))
    assert "Traceback" not in str(caught.value)


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
