"""AToken against recorded tensors of its published code: every file and every case found.

float32, tolerance 2e-5 absolute and relative; integers are equal.
"""

from __future__ import annotations

import json
import re
from math import isqrt, prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from omnitok.checkpoint import build
from omnitok.interop.atoken import GAUSSIANS, published_gaussian_name, to_ours
from omnitok.interop.atoken_gaussians import GaussianConfig, GaussianDecoder, sines, spread
from omnitok.interop.atoken_layout import items_of, steps
from omnitok.interop.atoken_net import ATokenModel
from omnitok.interop.atoken_pixels import (
    dense_tokens,
    frames_alone,
    resized_tokens,
    select_frames,
    to_tokens,
)
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from omnitok.interop.loading import Opened
from omnitok.quantize.kl import reparameterise
from shapes.voxels import voxels_of_views
from tests.parity.atoken_goldens import (
    FOLDER,
    Golden,
    bottleneck,
    clip,
    clips,
    every,
    fresh_tokenizer,
    inputs,
    of_kind,
    same,
    tokenizer,
)

CPU = torch.device("cpu")
KEPT = r"rec_(?:mode|quant)_s(\d+)c(\d+)"  # decoded frames of a stride that saw others before them


@every("autoencoder", "coords")
@torch.no_grad()
def test_results_equal_those_of_the_published_code(golden: Golden, case: str):
    model, recorded = tokenizer(golden).model, golden.recorded(case)
    patches, coords = inputs(golden, case)
    windows = list(steps(coords.numpy(), model.window, 0, CPU))
    got = {"tokens": patches, "coords": coords}
    got["enc_full"] = model.encode(patches, windows)
    got["pooled_raw"] = model.head(got["enc_full"], items_of(coords[:, 0].numpy(), CPU))
    got["pooled"] = F.normalize(got["pooled_raw"], dim=-1)
    got["proj"] = model.proj(got["enc_full"])
    got["mean"], got["logvar"] = got["proj"].chunk(2, dim=-1)
    z, codes = bottleneck(model, got["proj"])
    if codes is None:
        got["rec_mode"] = model.decode(z, windows)
    else:
        if "rec_mode" in recorded:
            got["rec_mode"] = model.decode(got["mean"], windows)
        got["indices"], got["quantized"], got["rec_quant"] = codes, z, model.decode(z, windows)
    if "noise" in recorded:
        noise = golden.tensor(f"{case}.noise")
        got["sample"] = reparameterise(got["mean"], got["logvar"], noise)
        got["rec_sample"] = model.decode(got["sample"], windows)
        if "rec_image_sample0" in recorded:
            tok, x = tokenizer(golden), clips(golden, case)[0]
            grid = tok.grid((x.shape[2], x.shape[3]))
            z = got["sample"].T.reshape(1, -1, 1, *grid)
            got["rec_image_sample0"] = tok.decode(z, size=(1, *x.shape[2:]))[:, :, 0]
    for name in recorded:
        if kept := re.fullmatch(KEPT, name):
            pt = model.config.patch[0]
            sizes = [int(number) // pt for number in kept.groups()]
            cached = list(steps(coords.numpy(), *sizes, CPU))
            got[name] = model.decode(z, cached)
            for number, step in enumerate(cached):
                order = step.tokens.argsort()
                mark = re.sub("rec_[a-z]+", f"win{number}.coords", name)
                got[mark] = torch.from_numpy(step.coords)[order]
    compared = recorded & set(got)
    for name in sorted(compared):
        same(got[name], golden.tensor(f"{case}.{name}"))
    assert {"coords", "proj", "pooled"} <= compared
    untouched = {n for n in recorded - compared if not re.match(r"win\d+\.|pixels|feats01", n)}
    assert untouched <= {"noise", "keep_mask", "voxel_coords"}


class Listener:
    """What a tower computes on the way, by the names of the recorded tensors."""

    def __init__(self, model: ATokenModel, side: str) -> None:
        self.heard: dict[str, Tensor] = {}
        tower = getattr(model, side)
        self.listen(tower.embed, "input_layer", lambda out: out)
        self.listen(tower.positions, "pos_emb", lambda out: out)
        for i, block in enumerate(tower.stack.blocks):
            self.listen(block, f"block{i}", lambda out: out[0][0, 0])
            self.listen(block.attention, f"block{i}.attn", lambda out: out[0][0, 0])
            self.listen_to_rotation(block.attention, f"block{i}")

    def listen(self, module: torch.nn.Module, name: str, pick: Any) -> None:
        module.register_forward_hook(
            lambda _module, _args, out: self.heard.__setitem__(name, pick(out).clone())
        )

    def listen_to_rotation(self, attention: Any, name: str) -> None:
        plain = attention._project

        def heard(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = plain(*args)
            for side, part in zip("qk", (q, k), strict=True):
                self.heard[f"{name}.{side}_rope"] = part[0, 0].clone()
            return q, k, v

        attention._project = heard


@every("autoencoder", "coords")
@torch.no_grad()
def test_what_is_on_the_way_equals_that_of_the_published_code(golden: Golden, case: str):
    model = fresh_tokenizer(golden).model
    patches, coords = inputs(golden, case)
    (step,) = steps(coords.numpy(), model.window, 0, CPU)
    order = step.layout.partitions["global"].order
    listeners = {side: Listener(model, side) for side in ("encoder", "decoder")}
    z, _ = bottleneck(model, model.proj(model.encode(patches, [step])))
    model.decode(z, [step])
    which = (coords[:, 1] - coords[:, 1].min()) // model.window
    for name in sorted(n for n in golden.recorded(case) if re.match(r"win\d+\.(en|de)coder", n)):
        window, side, part = name.split(".", 2)
        inside = which == int(window[3:])
        if part == "win_coords":
            got = torch.from_numpy(step.coords)
        elif part.startswith("block"):  # in the order of the windows
            got = listeners[side].heard[part][order.argsort()]
        else:
            got = listeners[side].heard[part]
        same(got[inside], golden.tensor(f"{case}.{name}"))


@every("FSQ", "bound")
def test_the_quantizer_alone_equals_the_published_one(golden: Golden, case: str):
    quantizer = tokenizer(golden).model.quantizer
    quantized = quantizer(golden.tensor(f"{case}.z"))
    bound = quantizer._merge(quantizer._bound(quantizer._split(golden.tensor(f"{case}.z"))))
    same(bound, golden.tensor(f"{case}.bound"))
    same(quantized.codes, golden.tensor(f"{case}.indices"))
    same(quantized.z_q, golden.tensor(f"{case}.quantized"))
    same(quantizer.codes_to_latents(quantized.codes), golden.tensor(f"{case}.quantized"))
    assert quantizer.levels == tuple(json.loads(golden.meta["fsq_levels"]))


@every("autoencoder", "coords")
@torch.no_grad()
def test_the_tokenizer_gives_the_recorded_results(golden: Golden, case: str):
    """Where nothing is cropped or dropped, through the public face, alone and as a list."""
    tok, recorded = tokenizer(golden), golden.recorded(case)
    codes = golden.tensor(f"{case}.indices") if "indices" in recorded else None
    proj, pooled = golden.tensor(f"{case}.proj"), golden.tensor(f"{case}.pooled")
    rec = golden.tensor(f"{case}.{'rec_quant' if codes is not None else 'rec_mode'}")
    dim = tok.model.quantizer.dim
    if "feats01" in recorded:
        feats = golden.tensor(f"{case}.feats01").float()
        coords = F.pad(golden.tensor(f"{case}.voxel_coords"), (1, 0))
        z = tok.encode_voxels(feats, coords)
        same(z, proj[:, :dim])
        same(tok.embed_voxels(feats, coords), pooled)
        same(tok.decode_voxels(bottleneck_of(tok, z), coords), rec[:, : feats.shape[1]])
        return
    items, patch = clips(golden, case), tok.patch
    whole = all(
        (x.shape[1] < patch[0] or x.shape[1] % patch[0] == 0)
        and not (x.shape[2] % patch[1] or x.shape[3] % patch[2])
        for x in items
    )
    if not whole or "keep_mask" in recorded:
        pytest.skip("the published code crops, or tokens were left out")
    same(tok.embed(items), pooled)
    start = 0
    for x, together in zip(items, tok.encode(items), strict=True):
        (z,) = tok.encode(x[None])
        stop = start + z[0].numel()
        want = proj[start:stop, :dim].T.reshape(z.shape)
        same(z, want)
        same(together, want)
        if codes is not None:
            got = tok.quantize(z[None])[0]
            same(got, codes[start:stop].view(got.shape))
            z = tok.dequantize(got[None])[0]
        frames = max(x.shape[1], patch[0])  # what an image's padding decodes to, too
        recon = tok.decode(z[None], size=(frames, *x.shape[2:]))[0]
        same(to_tokens(recon, patch)[0], rec[start:stop])
        start = stop


def bottleneck_of(tok: ATokenTokenizer, z: Tensor) -> Tensor:
    return z if tok.codebook_size is None else tok.model.quantizer(z).z_q


def kept_cases() -> list[Any]:
    return [
        pytest.param(golden, case, name, id=f"{golden.path.stem}-{case}-{name}")
        for golden in of_kind("autoencoder")
        for case in golden.cases("coords")
        for name in sorted(golden.recorded(case))
        if re.fullmatch(KEPT, name) and f"{case}.pixels1" not in golden.names
    ] or [pytest.param(None, None, None, marks=pytest.mark.skip(reason=f"none at {FOLDER}"))]


@pytest.mark.parametrize(("golden", "case", "name"), kept_cases())
def test_a_tokenizer_that_keeps_frames_decodes_the_recorded_ones(
    golden: Golden, case: str, name: str
):
    tok = fresh_tokenizer(golden)
    stride, kept = (int(number) for number in re.findall(r"\d+", name))
    tok.keep_frames(kept, stride)
    (x,) = clips(golden, case)
    z = tok.encode(x[None])
    z = z if tok.codebook_size is None else tok.dequantize(tok.quantize(z))
    recon = tok.decode(z, size=x.shape[1:])[0]
    same(to_tokens(recon, tok.patch)[0], golden.tensor(f"{case}.{name}"))


@every("gaussian decoder", "out")
@torch.no_grad()
def test_gaussians_equal_those_of_the_published_code(golden: Golden, case: str):
    config = GaussianConfig.published(json.loads(golden.meta["cfg"]))
    weights, recorded = golden.weights(), golden.recorded(case)
    same(spread(config.num_gaussians, config.voxel_size), weights["offset_perturbation"])
    network = build(golden.path, config, GaussianDecoder)
    tensors = to_ours(weights, network, published_gaussian_name, golden.path)
    opened = Opened(path=golden.path, system=GAUSSIANS, config=config, tensors=tensors)
    decoder = opened.load()
    coords = golden.tensor(f"{case}.coords")
    if "feats" in recorded:
        feats = golden.tensor(f"{case}.feats")
    else:
        feats = chained(golden, config.latent_channels, coords)
    heard: dict[str, Tensor] = {}
    decoder.embed.register_forward_hook(lambda _m, _a, out: heard.update(input_layer=out))
    layout = decoder.layout(coords.long().numpy(), CPU)
    for i, block in enumerate(decoder.stack.blocks):
        back = layout.partitions[config.stack.layers[i]].order.argsort()
        block.register_forward_hook(
            lambda _m, _a, out, i=i, back=back: heard.update({f"block{i}": out[0][0, 0][back]})
        )
    out = heard["out"] = decoder(feats, coords)
    heard["pos_emb"] = sines(coords[:, 1:], config.stack.width)
    for i, gaussians in enumerate(decoder.gaussians(out, coords)):
        for part in ("xyz", "features_dc", "scaling", "rotation", "opacity"):
            heard[f"g{i}.{part}"] = getattr(gaussians, part)
        heard[f"g{i}._features_dc"] = gaussians.features_dc
        heard[f"g{i}._opacity"] = gaussians.opacity_logit - np.log(
            config.opacity_bias / (1 - config.opacity_bias)
        )
        heard[f"g{i}._rotation"] = gaussians.quaternion - torch.tensor([1.0, 0, 0, 0])
        heard[f"g{i}._xyz"] = gaussians.xyz + 0.5
    compared = recorded & set(heard)
    for name in sorted(compared):
        same(heard[name], golden.tensor(f"{case}.{name}"))
    left = {n for n in recorded - compared if not n.endswith("._scaling")}
    assert left <= {"coords", "feats", "out_nosoftcap"}
    if "out_nosoftcap" in recorded:
        assert not torch.allclose(out, golden.tensor(f"{case}.out_nosoftcap"), atol=1e-4)


def chained(golden: Golden, channels: int, coords: Tensor) -> Tensor:
    """Voxels that an autoencoder beside the Gaussian decoder reconstructed."""
    for other in of_kind("autoencoder"):
        for case in other.cases("voxel_coords"):
            name = f"{case}.{'rec_quant' if 'FSQ' in other.meta['kind'] else 'rec_mode'}"
            same_voxels = torch.equal(other.tensor(f"{case}.voxel_coords"), coords[:, 1:])
            if same_voxels and other.tensor(name).shape[1] >= channels:
                return other.tensor(name)[:, :channels]
    return pytest.skip(f"no autoencoder beside {golden.path.name} made its voxels")


@every("preprocessing", None)
def test_pixels_are_prepared_as_published(golden: Golden, case: str):
    for name, arguments in json.loads(golden.meta["cases"]).items():
        bounds = (arguments[f"{end}_resolution"] for end in ("min", "max"))
        smallest, largest = (tuple(bound) if bound else None for bound in bounds)
        tokens, coords = resized_tokens(
            clip(golden.tensor(f"{name}.pixels")),
            tuple(arguments["patch_size"]),
            smallest=smallest,
            largest=largest,
            square=arguments["square_image_length"],
            factor=arguments["size_factor"],
            pad=None if arguments.get("padding_type") == "repeat" else 127.5,
        )
        same(coords, golden.tensor(f"{name}.coords"))
        same(tokens, golden.tensor(f"{name}.tokens"))


@every("preprocessing", None)
def test_single_frames_and_dense_batches_are_prepared_as_published(golden: Golden, case: str):
    if "framepad.pixels" in golden.names:
        x, want = clip(golden.tensor("framepad.pixels")), golden.tensor("framepad.coords")
        rows, columns = (want.amax(0)[2:4] + 1).tolist()
        sides = (x.shape[2] // rows, x.shape[3] // columns)
        frames = golden.tensor("framepad.tokens").shape[1] // (3 * prod(sides))
        tokens, coords = frames_alone(x / 127.5 - 1, (frames, *sides))
        same(tokens, golden.tensor("framepad.tokens"))
        same(F.pad(coords, (1, 0)), want)
    if "dense.pixels" in golden.names:
        x = torch.stack([clip(image) for image in golden.tensor("dense.pixels")]) / 127.5 - 1
        side = isqrt(golden.tensor("dense.tokens_row0").shape[0] // 3)
        parts = dense_tokens(x, (1, side, side))
        tokens = torch.cat([tokens for tokens, _ in parts])
        coords = torch.cat([F.pad(c, (1, 0), value=i) for i, (_, c) in enumerate(parts)])
        same(coords, golden.tensor("dense.coords"))
        same(tokens[0], golden.tensor("dense.tokens_row0"))
        torch.testing.assert_close(
            tokens.sum(1), golden.tensor("dense.tokens_sum"), atol=1e-3, rtol=2e-5
        )


@every("preprocessing", None)
def test_frames_are_selected_as_published(golden: Golden, case: str):
    for text, (indices, stride) in json.loads(golden.meta["select_frame_indices"]).items():
        given = dict(pair.split("=") for pair in text.split(","))
        got = select_frames(
            int(given["total"]),
            int(given["select"]),
            stride=given["mode"],
            shortest=int(given["min_stride"]),
            longest=int(given["max_stride"]),
        )
        assert got == (indices, stride), text


@every("voxel packing", None)
def test_views_are_packed_into_voxels_as_published(golden: Golden, case: str):
    arrays = {name: golden.tensor(name).numpy() for name in golden.names}
    coords, values = voxels_of_views(
        *(arrays[name] for name in ("pixels", "depth", "w2c", "intrinsics")),
        resolution=int(golden.meta["vol_resolution"]),
        radius=float(golden.meta["bounding_radius"]),
    )
    assert np.array_equal(coords, arrays["coords"])
    assert np.array_equal(values, arrays["feats_u8"])
