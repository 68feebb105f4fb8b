"""Tokens for tests of tokens, and a way to write files that say what they should not."""

import dataclasses
import hashlib
import json

import torch
from safetensors.torch import load_file

from omnitok import token_file
from omnitok.tokens import Preprocess, Source, TokenizerInfo, Tokens, num_groups


def make_info(**changes):
    facts = {
        "name": "test",
        "config": {"width": 8, "patch": [4, 8, 8]},
        "weights_sha256": "ab" * 32,
        "version": "0.1.0",
        "kind": "codes",
        "codebook_size": 1000,
        "patch": (4, 8, 8),
        "causal": True,
        "latent_dim": 3,
    }
    return TokenizerInfo(**facts | changes)


LATENTS = make_info(kind="latents", codebook_size=None)


def make_tokens(info=None, T=11, seed=0, **changes):
    info = info or make_info()
    random = torch.Generator().manual_seed(seed)
    t = num_groups(T, info.patch[0], info.causal)
    books = (info.num_codebooks,) if info.num_codebooks > 1 else ()
    if info.codebook_size is None:
        values = {"latents": torch.randn(t, 2, 3, info.latent_dim, generator=random)}
    else:
        top = min(info.codebook_size, 2**63 - 1)
        values = {"codes": torch.randint(0, top, (t, 2, 3, *books), generator=random)}
    facts = {
        "size": (T, 15, 17),
        "pts": torch.arange(T).double() / 30,
        "info": info,
        "source": Source(
            key="a/b", uri="h\u00e9\udcff.mp4", fps="30000/1001", rotation=90, start=0.1
        ),
        "preprocess": Preprocess(fps=12.5, size=256, clip=(1, None), pad=(1, 1, 7)),
        "compute": {"dtype": "float32", "device": "cpu", "deterministic": True},
    }
    return Tokens(**values | facts | changes)


def assert_same(a, b):
    for field in dataclasses.fields(Tokens):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            assert token_file.to_bytes(x) == token_file.to_bytes(y)  # equal to the bit
        else:
            assert x == y


def reseal(path, edit_facts=lambda facts: facts, **tensors):
    """Write `path` again with other facts or tensors and a checksum that holds."""
    with path.open("rb") as file:
        text = token_file.read_header(file)[0]
    stored = load_file(path) | tensors
    new = {}
    for name, tensor in stored.items():
        if tensor is None:
            continue
        raw = token_file.to_bytes(tensor)
        entry = token_file.Entry(
            tensor.dtype, tuple(tensor.shape), 0, hashlib.sha256(raw).hexdigest()
        )
        new[name] = entry, [raw]
    facts = edit_facts(json.loads(text))
    token_file.write(path, facts if isinstance(facts, str) else json.dumps(facts), new)
