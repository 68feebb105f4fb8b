"""Whatever is done to a token file, reading it gives the same tokens or one TokensError."""

import copy
import hashlib
import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnitok import token_file
from omnitok.token_stream import TokenReader, TokenWriter
from omnitok.tokens import Preprocess, Source, TokenizerInfo, Tokens, TokensError, num_groups

many = settings(
    max_examples=600,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def make(T=6, size=300, books=1, latents=False, pts=True, seed=0):
    info = TokenizerInfo(
        name="fuzz",
        config={"depth": 2},
        weights_sha256="0" * 64,
        version="0.1.0",
        kind="latents" if latents else "codes",
        codebook_size=None if latents else size,
        num_codebooks=books,
        patch=(4, 8, 8),
        causal=True,
        latent_dim=2,
    )
    random = torch.Generator().manual_seed(seed)
    grid = (num_groups(T, 4), 1, 2)
    more = (books,) if books > 1 else ()
    return Tokens(
        codes=None if latents else torch.randint(0, size, grid + more, generator=random),
        latents=torch.randn(*grid, 2, generator=random).bfloat16() if latents else None,
        size=(T, 8, 9),
        pts=torch.arange(T).double() / 25 if pts else None,
        info=info,
        source=Source(uri="a.mp4", fps="25"),
        preprocess=Preprocess(size=9),
        compute={"dtype": "float32"},
    )


VALID = [make(), make(size=2**40, books=2, pts=False), make(latents=True)]


def same(a, b):
    return (
        torch.equal(a.data, b.data)
        and a.data.dtype == b.data.dtype
        and (a.pts is None) == (b.pts is None)
        and (a.pts is None or torch.equal(a.pts, b.pts))
        and (a.size, a.info, a.source, a.preprocess, a.compute)
        == (b.size, b.info, b.source, b.preprocess, b.compute)
    )


def outcome(read, path):
    """Return the tokens, or the sentence that says why not."""
    try:
        return read(path)
    except TokensError as error:
        return str(error)


def read_in_parts(path):
    with TokenReader(path) as reader:
        return Tokens.cat(reader) if reader.grid[0] else Tokens.load(path)


def read_all(path):
    """Read a file both ways, which must agree; None where it is refused."""
    tokens, parts = outcome(Tokens.load, path), outcome(read_in_parts, path)
    if isinstance(tokens, str):
        assert parts == tokens
        assert tokens.startswith(f"{path}: ")
        assert "\n" not in tokens
        return None
    assert same(tokens, parts)
    return tokens


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "a.safetensors"


@pytest.fixture(scope="module")
def whole_files(path):
    contents = []
    for tokens in VALID:
        tokens.save(path)
        contents.append(path.read_bytes())
    return contents


@many
@given(data=st.data())
def test_bytes_flipped_cut_put_in_or_moved_are_always_refused(data, path, whole_files):
    whole = whole_files[data.draw(st.integers(0, len(VALID) - 1))]
    place = st.integers(0, len(whole))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        start, stop = sorted((data.draw(place), data.draw(place)))
        action = data.draw(st.sampled_from(["flip", "cut", "put", "swap", "repeat", "end"]))
        if action == "flip" and start < len(content):
            content[start] ^= data.draw(st.integers(1, 255))
        elif action == "cut":
            del content[start:stop]
        elif action == "put":
            content[start:start] = data.draw(st.binary(max_size=9))
        elif action == "swap":
            content[start:stop] = content[start:stop][::-1]
        elif action == "repeat":
            content[start:start] = content[start:stop]
        elif action == "end":
            del content[start:]
    path.write_bytes(content)
    tokens = read_all(path)
    assert (tokens is None) == (bytes(content) != whole)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["U8", "I64", "BF16", "float16", "int32", "codes", "latents", "t h w"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def edit_json(data, value):
    """Replace, remove or add something at a random place of a JSON value."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 4)) == 0:
            break
        place = place[key]
    action = data.draw(st.sampled_from(["set", "near", "remove", "add"]))
    if keys and action == "remove":
        del place[key]
    elif keys and action == "near" and type(place[key]) is int:
        place[key] += data.draw(st.integers(-2, 2))
    elif keys and action != "add":
        place[key] = data.draw(values)
    elif isinstance(place, dict):
        place[data.draw(st.text(max_size=5))] = data.draw(values)
    else:
        place.append(data.draw(values))
    return value


@many
@given(data=st.data())
def test_an_edited_header_never_gives_other_tokens(data, path, whole_files):
    which = data.draw(st.integers(0, len(VALID) - 1))
    whole = whole_files[which]
    length = struct.unpack("<Q", whole[:8])[0]
    header = edit_json(data, json.loads(whole[8 : 8 + length]))
    text = json.dumps(header, indent=data.draw(st.sampled_from([None, 1]))).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    tokens = read_all(path)
    assert tokens is None or same(tokens, VALID[which])


def seal(path, text, tensors):
    """Write a file whose checksum holds, whatever it says."""
    sealed = {}
    for name, tensor in tensors.items():
        raw = token_file.to_bytes(tensor)
        digest = hashlib.sha256(raw).hexdigest()
        sealed[name] = token_file.Entry(tensor.dtype, tuple(tensor.shape), 0, digest), [raw]
    token_file.write(path, text, sealed)


def edit_tensor(data, tensor):
    """Change the type, the shape or a value of a tensor."""
    action = data.draw(st.sampled_from(["type", "shape", "value", "huge"]))
    if action == "type":
        return tensor.to(data.draw(st.sampled_from(list(token_file.DTYPES.values()))))
    if action == "shape":
        sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
        return torch.zeros(sizes, dtype=tensor.dtype)
    raw = bytearray(token_file.to_bytes(tensor))
    if raw and action == "value":
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    elif action == "huge":
        raw = bytearray(b"\xff\xff\xff\xff\xff\xff\xff\x7f" * len(raw))[: len(raw)]
    return token_file.from_bytes(raw, tensor.dtype, tuple(tensor.shape))


@many
@given(data=st.data())
def test_a_forged_file_with_a_good_checksum_is_refused_or_makes_sense(data, path, whole_files):
    path.write_bytes(whole_files[data.draw(st.integers(0, len(VALID) - 1))])
    with path.open("rb") as file:
        text, _, entries = token_file.read_header(file)
        tensors = {
            name: token_file.from_bytes(
                bytearray().join(token_file.pieces(file, entry.start, entry.num_bytes)),
                entry.dtype,
                entry.shape,
            )
            for name, entry in entries.items()
        }
    for _ in range(data.draw(st.integers(1, 2))):
        action = data.draw(st.sampled_from(["facts", "facts", "facts", "tensor", "drop", "text"]))
        if action == "facts":
            try:
                text = json.dumps(edit_json(data, json.loads(text)))
            except (ValueError, RecursionError, TypeError):
                pass  # already broken by an edit of the text
        elif action == "tensor" and tensors:
            name = data.draw(st.sampled_from(sorted(tensors)))
            tensors[name] = edit_tensor(data, tensors[name])
        elif action == "drop" and tensors:
            del tensors[data.draw(st.sampled_from(sorted(tensors)))]
        elif action == "text":
            cut = data.draw(st.integers(0, len(text)))
            text = text[:cut] + data.draw(st.sampled_from(["", "[", "{", '"', "0", "NaN", "]}"]))
    seal(path, text, tensors)
    tokens = read_all(path)
    if tokens is not None:  # then it can be saved, and means the same
        tokens.save(path)
        assert same(Tokens.load(path), tokens)


@settings(many, max_examples=150)
@given(
    T=st.integers(1, 20),
    size=st.integers(1, 2**63) | st.sampled_from([2, 2**16, 2**16 + 1, 2**31, 2**31 + 1]),
    books=st.integers(1, 3),
    latents=st.booleans(),
    pts=st.booleans(),
    groups=st.integers(1, 6),
)
def test_any_tokens_come_back_whole_in_parts_and_streamed(
    path, T, size, books, latents, pts, groups
):
    tokens = make(T, min(size, 2**63 - 1), 1 if latents else books, latents, pts, seed=T)
    tokens.save(path)
    content = path.read_bytes()
    with TokenReader(path, groups=groups) as reader:
        parts = list(reader)
    with TokenWriter(path) as writer:
        for part in parts:
            writer.write(part)
    assert path.read_bytes() == content
    assert same(Tokens.load(path), tokens)
    assert same(Tokens.cat(parts), tokens)
