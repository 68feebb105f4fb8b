"""Downloads of published weights, against a server on this machine."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import omnitok
from omnitok.cache import cache_folder
from omnitok.checkpoint import CheckpointError
from omnitok.interop import download as module
from omnitok.interop import registry
from omnitok.interop.download import download
from tests.published_files import atoken_state

NAME = "omnitokenizer-imagenet-k600"


@dataclass
class Served:
    """A file on the server, and what goes wrong on the way.

    Attributes:
        data: The file.
        tag: Its ETag; None for no validator at all.
        cuts: For one answer after the other, bytes after which the connection breaks.
        ranges: Whether parts may be asked for.
        claim: Content-Length where it is a lie.
        counted: Whether the size of the whole is said with its parts.
        to: Where the address sends on to.
        status: An error to answer with.
        asked: The ranges that were asked for.
    """

    data: bytes = bytes(range(256)) * 40
    tag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    claim: int | None = None
    counted: bool = True
    to: str | None = None
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    served: Served

    def log_message(self, *_):
        pass

    def do_GET(self):
        served, wanted = self.served, self.headers["Range"]
        served.asked.append(wanted)
        if served.status is not None:
            self.send_error(served.status)
            return
        if served.to is not None and self.path == "/file.pt":
            self.send_response(302)
            self.send_header("Location", served.to)
            self.end_headers()
            return
        start = 0
        if wanted and served.ranges and self.headers["If-Range"] == served.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = served.data[start:]
        if start and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(served.data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            whole = len(served.data)
            total = whole if served.counted else "*"
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{total}")
        if served.tag is not None:
            self.send_header("ETag", served.tag)
        self.send_header("Content-Length", str(served.claim or len(body)))
        self.end_headers()
        self.wfile.write(body[: served.cuts.pop(0)] if served.cuts else body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    served = Served()
    handler = type("Bound", (Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        served.address = f"http://127.0.0.1:{http.server_port}"
        yield served
        http.shutdown()
        thread.join()


def get(server, path, **options):
    download(f"{server.address}/file.pt", path, **options)


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, tmp_path):
    told = []
    get(server, tmp_path / "new" / "file.pt", progress=lambda *now: told.append(now))
    assert (tmp_path / "new" / "file.pt").read_bytes() == server.data
    assert told[-1] == ("file.pt", len(server.data), len(server.data))
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"file.pt", ".file.pt.lock"}


def test_a_file_that_is_here_is_not_asked_for(server, tmp_path):
    (tmp_path / "file.pt").write_bytes(b"mine")
    get(server, tmp_path / "file.pt")
    assert server.asked == []


def test_a_broken_connection_goes_on_where_it_was(server, tmp_path):
    server.cuts = [1000, 0, 500]
    get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == server.data
    assert server.asked == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]


def test_a_part_of_a_whole_of_unknown_size_is_not_taken_for_it(server, tmp_path):
    server.cuts, server.counted = [1000, 500], False
    get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == server.data


def test_a_download_goes_on_where_it_is_sent(server, tmp_path):
    server.cuts, server.to = [1000], "/elsewhere"
    get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == server.data
    assert server.asked == [None, None, "bytes=1000-", "bytes=1000-"]


def test_a_server_that_sends_in_circles_costs_one_sentence(server, tmp_path):
    server.to = "/file.pt"
    with pytest.raises(CheckpointError, match="redirect") as caught:
        get(server, tmp_path / "file.pt")
    assert "\n" not in str(caught.value)


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.cuts = [1000, *[0] * module.TRIES]
    with pytest.raises(CheckpointError, match=r"1,000 bytes are kept, try again") as caught:
        get(server, tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()
    assert f"{server.address}/file.pt" in str(caught.value)
    assert str(tmp_path / "file.pt") in str(caught.value)
    server.asked.clear()
    get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == server.data
    assert server.asked == ["bytes=1000-"]


def test_a_file_that_only_lacks_its_name_is_not_sent_again(server, tmp_path):
    (tmp_path / ".file.pt.part").write_bytes(server.data)
    (tmp_path / ".file.pt.part.mark").write_text(server.tag)
    get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == server.data
    assert server.asked == [f"bytes={len(server.data)}-"]


@pytest.mark.parametrize("how", ["other tag", "no ranges", "no tag", "shorter"])
def test_a_part_that_cannot_be_gone_on_with_is_thrown_away(how, server, tmp_path):
    server.cuts = [1000, *[0] * module.TRIES]
    if how == "no tag":
        server.tag = None
    with pytest.raises(CheckpointError):
        get(server, tmp_path / "file.pt")
    if how == "other tag":
        server.data, server.tag = b"other" * 999, '"two"'
    elif how == "no ranges":
        server.ranges = False
    elif how == "shorter":
        server.data = b"short" * 20
    get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == server.data


def test_a_file_of_another_size_than_said_is_refused(server, tmp_path):
    server.claim = len(server.data) + 7
    server.ranges = False
    with pytest.raises(CheckpointError, match="the connection broke"):
        get(server, tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()


def test_a_page_in_the_place_of_weights_is_refused_before_it_is_kept(server, tmp_path):
    with pytest.raises(CheckpointError, match=r"has 10,240 bytes, but .* at least 99,999"):
        get(server, tmp_path / "file.pt", least=99_999)
    assert {path.name for path in tmp_path.iterdir()} == {".file.pt.lock"}


def test_a_missing_file_is_said_at_once(server, tmp_path):
    server.status = 404
    with pytest.raises(CheckpointError, match="404 Not Found"):
        get(server, tmp_path / "file.pt")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(CheckpointError, match="503"):
        get(server, tmp_path / "file.pt")
    assert len(server.asked) == module.TRIES


def test_of_two_callers_one_downloads(server, tmp_path):
    threads = [threading.Thread(target=get, args=(server, tmp_path / "file.pt")) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file.pt").read_bytes() == server.data
    assert server.asked == [None]


def test_an_address_of_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"'file:///a' is no address"):
        download("file:///a", tmp_path / "file.pt")


@pytest.fixture
def entry(server, tmp_path, monkeypatch):
    """A published name, whose file the server has instead of its makers."""
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path))
    monkeypatch.setenv(registry.MIRROR, f"{server.address}/mirror/")
    return registry.PUBLISHED[NAME]


def test_published_weights_are_fetched_once_from_the_mirror(entry, server):
    assert entry.address == f"{server.address}/mirror/imagenet_k600.ckpt"
    path = registry.fetch(NAME)
    assert registry.fetch(NAME) == path == entry.path
    assert registry.name_of(path) == NAME
    assert len(server.asked) == 1


def test_weights_from_their_makers_are_not_smaller_than_they_can_be(entry, server, monkeypatch):
    monkeypatch.delenv(registry.MIRROR)
    monkeypatch.setitem(registry.PUBLISHED, NAME, replace(entry, folder=server.address))
    with pytest.raises(CheckpointError, match="the weights take at least 103,000,000"):
        registry.fetch(NAME)


def test_a_mirrored_model_loads_by_name(entry, server):
    buffer = io.BytesIO()
    torch.save(atoken_state(), buffer)
    server.data, server.cuts = buffer.getvalue(), [100_000]
    tok = omnitok.load("atoken-so-d")
    assert tok.codebook_size == 4096
    assert registry.name_of_hash(tok.weights_sha256) == "atoken-so-d"
    assert omnitok.load("atoken-so-d").weights_sha256 == tok.weights_sha256
    assert server.asked == [None, "bytes=100000-"]


def test_published_weights_are_held_to_their_first_hash_and_size(entry, server):
    path = registry.fetch(NAME)
    registry.hold_to_first(path, "a" * 64)
    registry.hold_to_first(path, "a" * 64)
    with pytest.raises(CheckpointError, match=r"first loaded \(hash a{12}, now b{12}\)"):
        registry.hold_to_first(path, "b" * 64)
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"first loaded \(10,240 bytes, now 1\)"):
        registry.fetch(NAME)
    (path.parent / "imagenet_k600.ckpt.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"json is damaged"):
        registry.fetch(NAME)
    assert registry.name_of_hash("a" * 64) is None  # tokens of other weights are still decoded


def test_a_full_disk_is_no_fault_of_the_server(entry, server):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be kept in .* \(File too large\)"):
            registry.fetch(NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.asked) == 1
    assert registry.fetch(NAME).read_bytes() == server.data


def test_a_cache_that_cannot_be_made_costs_one_sentence(entry, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"Not a directory.* set OMNITOK_CACHE"):
        omnitok.load(NAME)


def test_without_a_network_one_sentence_says_what_to_do(entry, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setenv(registry.MIRROR, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(CheckpointError) as caught:
        registry.fetch(NAME)
    text = str(caught.value)
    assert f"get {entry.address} by other means and put it at {entry.path}" in text
    assert "\n" not in text


def test_without_name_resolution_nothing_is_tried_again(tmp_path):
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        download("http://nobody.invalid/file.pt", tmp_path / "file.pt")  # else this takes seconds


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("OMNITOK_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("OMNITOK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "omnitok"


def test_all_published_files_have_a_name():
    assert len(registry.PUBLISHED) == len({e.address for e in registry.PUBLISHED.values()}) == 18
    for name, entry in registry.PUBLISHED.items():
        assert registry.name_of(entry.path) == name
