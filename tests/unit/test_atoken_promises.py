"""AToken of any config against a plain reading of it, and what its tokenizer promises."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from omnitok.checkpoint import hash_weights
from omnitok.interop.atoken import FSQ_LEVELS, config_of, published_name
from omnitok.interop.atoken_gaussians import GaussianConfig, GaussianDecoder, gaussian_stack
from omnitok.interop.atoken_layout import grid_items, grid_steps, steps
from omnitok.interop.atoken_net import ATokenModel, PositionTable
from omnitok.interop.atoken_pixels import to_tokens, whole_patches
from omnitok.interop.atoken_tokenizer import ATokenTokenizer
from shapes import splats
from tests.published_files import arch
from tests.small_models import noise
from tools.plain_atoken import PlainAToken

CPU = torch.device("cpu")
SMALL = {
    "encoder_model_channels": 32,
    "decoder_model_channels": 48,
    "encoder_num_heads": 2,
    "decoder_num_heads": 2,
    "decoder_num_blocks": 1,
    "latent_channels": 12,
    "patch_size": (4, 4, 4),
}
FSQ = {"use_quantizer": True, "quantizer_codebook_size": 4096, "quantizer_num_codebooks": 2}


def model_of(seed: int = 0, **changes: object) -> ATokenModel:
    torch.manual_seed(seed)
    model = ATokenModel(config_of("small", arch(**{**SMALL, **changes}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
    return model


def tokenizer(**changes: object) -> ATokenTokenizer:
    model = model_of(**changes).requires_grad_(False)
    return ATokenTokenizer(model, hash_weights(model.state_dict()))


@pytest.fixture(scope="module", params=["kl", "fsq"])
def tok(request):
    return tokenizer(**(FSQ if request.param == "fsq" else {}))


def pixels(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(
    max_examples=6,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_config_equals_the_plain_computation(data):
    draw = data.draw
    changes: dict[str, object] = {"patch_size": draw(st.sampled_from([(4, 4, 4), (2, 8, 4)]))}
    heads = []
    for side in ("encoder", "decoder"):
        heads.append(draw(st.integers(1, 3)))
        rms = draw(st.booleans())
        changes |= {
            f"{side}_num_heads": heads[-1],
            f"{side}_model_channels": heads[-1] * draw(st.sampled_from([8, 24, 72])),
            f"{side}_num_blocks": draw(st.integers(1, 3)),
            f"{side}_mlp_channels": draw(st.integers(1, 70)),
            f"{side}_qk_rms_norm": draw(st.booleans()),
            f"{side}_use_bias": draw(st.booleans()),
            f"{side}_use_rms_norm": rms,
        }
    model = model_of(draw(st.integers(0, 99)), **changes)
    patch = model.config.patch
    sizes = draw(
        st.lists(st.tuples(*(st.integers(1, m) for m in (40, 20, 20))), min_size=1, max_size=3)
    )
    parts = []
    for item, (t, h, w) in enumerate(sizes):
        x = whole_patches(pixels(3, t, h + 7, w + 7, seed=item), patch)
        patches, coords = to_tokens(x, patch)
        parts.append((patches, F.pad(coords, (1, 0), value=item)))
    patches, coords = (torch.cat(part) for part in zip(*parts, strict=True))
    weights = {published_name(name): t for name, t in model.state_dict().items()}
    plain = PlainAToken(weights, (heads[0], heads[1]), 16 // patch[0])
    with torch.no_grad():
        now = list(steps(coords.numpy(), model.window, 0, CPU))
        moments = model.proj(model.encode(patches, now))
        want = plain.encode(patches, coords.int())
        torch.testing.assert_close(moments, want, atol=2e-5, rtol=2e-5)
        mean = want[:, : model.quantizer.dim]
        want = plain.decode(mean, coords.int())
        torch.testing.assert_close(model.decode(mean, now), want, atol=2e-5, rtol=2e-5)


def test_so_d_splits_channels_into_codebooks_like_any_size():
    for size, books in ((16, 6), (1024, 3), (5**8, 2)):
        changes = {"quantizer_codebook_size": size, "quantizer_num_codebooks": books}
        changes["latent_channels"] = books * len(FSQ_LEVELS[size])
        tok = tokenizer(**{**FSQ, **changes})
        levels = FSQ_LEVELS[size]
        assert (tok.codebook_size, tok.model.quantizer.num_codebooks) == (prod(levels), books)
        z = tok.encode(pixels(1, 3, 5, 9, 6))
        codes = tok.quantize(z)
        z_q = tok.model.quantizer(z.movedim(1, -1)).z_q.movedim(-1, 1)
        assert torch.equal(tok.dequantize(codes), z_q)


@pytest.mark.parametrize(
    "setting",
    [
        {"encoder_attn_mode": "swin"},
        {"decoder_pe_mode": "ape"},
        {"in_channels": 100},
        {**FSQ, "quantizer_num_codebooks": 3},
        {**FSQ, "quantizer_codebook_size": 3000},
        {**FSQ, "quantizer_type": "lfq"},
    ],
    ids=str,
)
def test_settings_that_were_never_published_are_refused(setting):
    with pytest.raises(ValueError, match=r"supported|must be|channels"):
        config_of("other", arch(**{**SMALL, **setting}))


# promises


def test_promises_say_what_an_image_and_a_window_are(tok):
    broken = {name for name, holds in tok.promises.items() if holds is not True}
    assert broken == {"P2", "P3"}
    assert all(len(tok.promises[name]) > 20 for name in broken)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    frames=st.integers(1, 40),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kept=st.sampled_from([0, 4, 8]),
    data=st.data(),
)
def test_any_clip_comes_back_in_its_size_however_it_is_cut(tok, frames, size, kept, data):
    clip = noise(frames, *size)
    tok.keep_frames(kept)
    tokens = tok.tokenize(clip)
    whole = tok.detokenize(tokens)
    assert whole.shape == clip.shape
    parts, rest = [], clip
    with tok.stream() as stream:
        while len(rest):
            many = data.draw(st.integers(1, len(rest)))
            parts.append(stream.push(rest[:many]))
            rest = rest[many:]
        parts.append(stream.finish())
    joined = type(tokens).cat(parts)
    assert torch.equal(joined.data, tokens.data)
    assert torch.equal(torch.cat(list(tok.stream_decode(parts))), whole)


def test_tokens_do_not_depend_on_the_batch(tok):
    clips = [pixels(3, *size, seed=i) for i, size in enumerate([(1, 9, 5), (21, 8, 8), (6, 4, 17)])]
    together = tok.encode(clips)
    for clip, z in zip(clips, together, strict=True):
        torch.testing.assert_close(tok.encode(clip[None])[0], z, atol=1e-5, rtol=1e-5)
    vectors = tok.embed(clips)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    alone = torch.cat([tok.embed(clip[None]) for clip in clips])
    torch.testing.assert_close(alone, vectors, atol=1e-5, rtol=1e-5)


def test_frames_of_one_window_see_each_other_and_no_others():
    tok, x = tokenizer(), pixels(1, 3, 40, 8, 8)
    z, changed = tok.encode(x), x.clone()
    changed[:, :, 20] *= -1
    moved = (tok.encode(changed) != z).flatten(3).any(-1)[0].any(0)
    assert moved.tolist() == [False] * 4 + [True] * 4 + [False] * 2
    tok.keep_frames(8)
    assert not torch.equal(tok.decode(z), tokenizer().decode(z))
    assert torch.equal(tok.decode(z)[:, :, :8], tok.decode(z[:, :, :2]))


@pytest.mark.parametrize(("kept", "stride"), [(3, None), (0, 6), (-4, 8), (16, None), (0, 0)])
def test_frames_are_kept_in_whole_groups(kept, stride):
    with pytest.raises(ValueError, match="must be multiples of 4"):
        tokenizer().keep_frames(kept, stride)


def test_the_mean_is_given_unless_a_sample_is_asked_for():
    tok, x = tokenizer(), pixels(2, 3, 5, 9, 9)
    mean = tok.encode(x)
    assert torch.equal(tok.encode(x), mean)
    samples = [tok.encode(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    listed = tok.encode([x[0]], torch.Generator().manual_seed(1))
    assert (listed[0] - mean[0]).abs().max() > 0.01
    with pytest.raises(ValueError, match="nothing to sample"):
        tokenizer(**FSQ).encode(x, torch.Generator())


def test_calls_that_cannot_hold_raise(tok):
    bad = pixels(1, 3, 4, 8, 8)
    for wrong in (bad[0], bad.byte(), bad[:, :2]):
        with pytest.raises(ValueError, match=r"expected float \[B, 3, T, H, W\]"):
            tok.encode(wrong)
    for wrong in (bad[:, 0], bad.byte(), bad[:, :2]):
        for call in (tok.embed, lambda x: tok.encode(list(x))):
            with pytest.raises(ValueError, match=r"expected float \[(B, )?3, T, H, W\]"):
                call(wrong)
    with pytest.raises(ValueError, match="no clips"):
        tok.embed([])
    if tok.codebook_size is None:
        with pytest.raises(TypeError, match="continuous and has no codes"):
            tok.quantize(tok.encode(bad))
    with pytest.raises(ValueError, match="needs a grid"):
        tok.decode(tok.encode(bad), size=(9, 8, 8))


def test_bfloat16_is_close_to_float32():
    tok, x = tokenizer(), pixels(1, 3, 16, 16, 16)
    exact = tok.decode(tok.encode(x))
    tok.model.to(torch.bfloat16)
    rough = tok.decode(tok.encode(x)).float()
    assert rough.shape == exact.shape
    assert (rough - exact).norm() < 0.1 * exact.norm()


# training


@pytest.mark.parametrize("kind", ["kl", "fsq"])
def test_gradients_reach_every_parameter(kind):
    model = model_of(**(FSQ if kind == "fsq" else {})).train()
    x = pixels(2, 3, 6, 9, 7)
    result = model(x)
    grid = (2, 3, 2)
    patches = torch.cat([to_tokens(whole_patches(clip, (4, 4, 4)), (4, 4, 4))[0] for clip in x])
    features = model.encode(patches, grid_steps(((1, 2, 1),) * 2, model.window, 0, CPU))
    pooled = model.head(features, grid_items(((1, 2, 1),) * 2, CPU))
    assert result.recon.shape == x.shape
    assert result.quantized.z_q.shape[0] == 2 * grid[0] * grid[1] * grid[2]
    loss = (result.recon - x).abs().mean() + pooled.square().mean()
    loss = loss + sum(result.quantized.losses.values(), torch.zeros(()))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]
        assert rows.abs().sum() > 0, name
    variances = model.proj.weight.grad[model.quantizer.dim :].abs().sum()
    assert bool(variances > 0) == (kind == "kl")  # FSQ has no use for them, as published


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for saving in (False, True):
        model = model_of(**FSQ).train()
        for side in (model.encoder, model.decoder):
            side.stack.gradient_checkpointing = saving
        model(pixels(1, 3, 6, 9, 7)).recon.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, saved, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 5, 20])
def test_positions_of_a_single_column_are_those_of_a_row(size):
    table = PositionTable(8)
    torch.nn.init.normal_(table.weight)
    column = table([(size, 1)], torch.arange(size))
    turned = table.weight.view(16, 16, 8).transpose(0, 1).flatten(0, 1)
    table.weight = torch.nn.Parameter(turned)
    torch.testing.assert_close(table([(1, size)], torch.arange(size)), column)


def test_training_goes_on_after_inference():
    model, x = model_of().train(), pixels(1, 3, 6, 11, 13)
    with torch.inference_mode():  # tables that this makes must not stop training
        model(x)
    model(x).recon.square().mean().backward()
    assert model.encoder.positions.weight.grad.any()


# voxels


def voxels(many: int, objects: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    places = torch.stack(
        [torch.randperm(12**3, generator=generator)[:many] for _ in range(objects)]
    )
    items = torch.arange(objects).repeat_interleave(many)
    flat = places.flatten()
    coords = torch.stack([items, flat // 144, flat // 12 % 12, flat % 12], dim=1)
    return torch.rand(many * objects, 48, generator=generator), coords


def test_voxels_go_to_gaussians_in_a_file(tok, tmp_path):
    values, coords = voxels(20)
    z = tok.encode_voxels(values, coords)
    assert z.shape == (40, 12)
    if tok.codebook_size is not None:
        z = tok.model.quantizer(z).z_q
    out = tok.decode_voxels(z, coords)
    assert out.shape == values.shape
    assert tok.embed_voxels(values, coords).shape == (2, 32)
    config = GaussianConfig(
        stack=gaussian_stack(48, 1, 2, 64, 4), latent_channels=48, resolution=12, num_gaussians=3
    )
    decoder = GaussianDecoder(config).eval().requires_grad_(False)
    objects = decoder.gaussians(decoder(out, coords), coords)
    assert [len(one.xyz) for one in objects] == [60, 60]
    assert all(one.xyz.abs().max() <= 0.55 for one in objects)
    splats.write(tmp_path / "a.ply", splats.Splats(**objects[0].splats()))
    back = splats.read(tmp_path / "a.ply")
    sizes = torch.from_numpy(back.log_scale).exp()
    torch.testing.assert_close(sizes, objects[0].scaling)
    opacity = torch.from_numpy(back.opacity).sigmoid()[:, None]
    torch.testing.assert_close(opacity, objects[0].opacity)
    turned = F.normalize(torch.from_numpy(back.rotation), dim=-1)
    torch.testing.assert_close(turned, objects[0].rotation)


def test_objects_do_not_depend_on_each_other_nor_on_the_order(tok):
    values, coords = voxels(15)
    z = tok.encode_voxels(values, coords)
    first = coords[:, 0] == 0
    alone = tok.encode_voxels(values[first], coords[first])
    torch.testing.assert_close(z[first], alone, atol=1e-5, rtol=1e-5)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    mixed = tok.encode_voxels(values[first][order], coords[first][order])
    torch.testing.assert_close(mixed, alone[order], atol=1e-5, rtol=1e-5)


def test_voxels_of_other_shapes_are_refused(tok):
    values, coords = voxels(3)
    for bad_values, bad_coords in (
        (values[:, :9], coords),
        (values, coords[:, 1:]),
        (values, coords.float()),
        (values[:4], coords),
        (values, coords - 12),
    ):
        with pytest.raises(ValueError, match="expected"):
            tok.encode_voxels(bad_values, bad_coords)
