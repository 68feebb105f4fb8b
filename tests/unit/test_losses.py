"""Losses: by hand where they can be, against each other where they cannot, and as a set."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small_networks import save_network
from torch.nn import functional as F

from omnitok import losses
from omnitok.losses import LossInputs
from omnitok.losses.adversarial import Adversarial, AdversarialConfig, discriminator_loss
from omnitok.losses.discriminator import PatchDiscriminator
from omnitok.losses.perceptual import gram, gram_distance
from omnitok.losses.pixel import charbonnier
from omnitok.losses.semantic import all_texts, caption_divergence, sigmoid_contrast
from omnitok.quantize.base import Quantized

CLIP = (2, 3, 5, 16, 16)


def inputs(seed: int = 0, shape: tuple[int, ...] = CLIP, **more: object) -> LossInputs:
    random = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=random) * 2 - 1
    recon = (target + 0.1 * torch.randn(shape, generator=random)).requires_grad_()
    return LossInputs(recon=recon, target=target, **more)


def value(name: str, given: LossInputs, **settings: object) -> torch.Tensor:
    return losses.build({name: {"weight": 1.0, **settings}})(given).total


# pixels


def test_pixel_losses_of_one_wrong_pixel_are_counted_by_hand():
    target = torch.zeros(2, 3, 1, 2, 2)
    recon = target.clone()
    recon[0, 0, 0, 0, 0] = 0.5
    given, size = LossInputs(recon=recon, target=target), target.numel()
    expected = {
        "l1": 0.5 / size,
        "l2": 0.25 / size,
        "huber": (0.5 - 0.05) / size,  # beyond delta = 0.1
        "charbonnier": (math.hypot(0.5, 1e-3) + 1e-3 * (size - 1)) / size,
        "logit_laplace": 0.8 * 0.25 / size,  # of a range of 1
        "rmse": (math.sqrt(0.25 / 12 + 1e-4) + math.sqrt(1e-4)) / 2,
    }
    for name, wanted in expected.items():
        assert float(value(name, given)) == pytest.approx(wanted, rel=1e-5), name


def test_huber_is_a_square_below_its_delta():
    given = LossInputs(recon=torch.full(CLIP, 0.05), target=torch.zeros(CLIP))
    assert float(value("huber", given, delta=0.1)) == pytest.approx(0.05**2 / 0.2)


def test_charbonnier_is_smooth_where_nothing_differs():
    recon = torch.zeros(CLIP, requires_grad=True)
    charbonnier(recon, torch.zeros(CLIP)).backward()
    assert recon.grad.abs().max() == 0


@pytest.mark.parametrize("name", ["l1", "l2", "huber", "charbonnier", "rmse", "logit_laplace"])
def test_pixel_losses_are_float32_and_reach_a_bfloat16_reconstruction(name):
    given = inputs()
    half = LossInputs(recon=given.recon.detach().bfloat16().requires_grad_(), target=given.target)
    loss = value(name, half)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.recon.grad.isfinite().all()
    assert half.recon.grad.abs().sum() > 0
    torch.testing.assert_close(loss, value(name, given), rtol=0.02, atol=0)


# textures


def test_a_gram_matrix_is_counted_by_hand_and_ignores_where_things_are():
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 2, 1, 2)  # 2 channels, 2 places
    assert gram(x).tolist() == [[[5 / 4, 3 / 4], [3 / 4, 9 / 4]]]
    assert float(gram_distance([x], [torch.zeros_like(x)])) == pytest.approx((25 + 9 + 9 + 81) / 16)
    assert float(gram_distance([x], [x.flip(3)])) == 0


# bottleneck


def bottleneck(**terms: float) -> Quantized:
    z = torch.zeros(2, 3, 4, 8)
    return Quantized(z, None, {k: torch.tensor(v) for k, v in terms.items()}, None)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("token", 8), ("sample", 96)])
def test_a_divergence_is_summed_over_what_is_asked_for(reduction, factor):
    given = inputs(quantized=bottleneck(kl=0.5))
    assert float(value("kl", given, reduction=reduction)) == 0.5 * factor


def test_terms_of_the_quantizer_are_weighted_and_missing_ones_are_named():
    given = inputs(quantized=bottleneck(commitment=0.5, codebook_entropy=2.0))
    both = {"commitment": {"weight": 0.25}, "codebook_entropy": {"weight": -0.1}}
    result = losses.build(both)(given)
    assert float(result.total) == pytest.approx(0.125 - 0.2)
    assert {k: float(v) for k, v in result.terms.items()} == {
        "commitment": 0.5,
        "codebook_entropy": 2.0,
    }
    with pytest.raises(ValueError, match=r"'kl' is not among the terms \['codebook_entropy'"):
        value("kl", given)


# adversaries


def test_hinge_and_vanilla_losses_of_known_scores():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert float(discriminator_loss(real, fake, "hinge")) == pytest.approx((0.5 + 0.75) / 2)
    wanted = (math.log1p(math.exp(-2)) + math.log(2)) / 2
    wanted += (math.log1p(math.exp(-3)) + math.log1p(math.exp(0.5))) / 2
    assert float(discriminator_loss(real, fake, "vanilla")) == pytest.approx(wanted / 2)


def test_discriminators_have_the_published_shapes():
    frames = PatchDiscriminator(2)(torch.zeros(1, 3, 32, 32))
    assert [tuple(x.shape[1:]) for x in frames] == [
        (64, 17, 17),
        (128, 9, 9),
        (256, 5, 5),
        (512, 6, 6),
        (1, 7, 7),
    ]
    clips = PatchDiscriminator(3, width=8)(torch.zeros(1, 3, 17, 32, 32))
    assert [tuple(x.shape[1:]) for x in clips] == [
        (8, 9, 17, 17),
        (16, 5, 9, 9),
        (32, 3, 5, 5),
        (64, 4, 6, 6),
        (1, 5, 7, 7),
    ]
    kinds = [type(part).__name__ for part in PatchDiscriminator(3).stages[-1]]
    assert kinds == ["Conv3d", "SharedNorm", "LeakyReLU"]
    assert [type(part).__name__ for part in PatchDiscriminator(2).stages[-1]] == ["Conv2d"]


@pytest.mark.parametrize(("name", "frames"), [("gan2d", 1), ("gan2d", 5), ("gan3d", 5)])
def test_each_player_trains_itself_and_not_the_other(name, frames):
    torch.manual_seed(0)
    game = losses.build({name: {"width": 4}})
    given = inputs(shape=(2, 3, frames, 16, 16))
    result = game(given)
    result.total.backward()
    assert given.recon.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in game.discriminator_parameters())
    assert set(result.terms) == {name, f"{name}_features"}
    given = inputs(shape=(2, 3, frames, 16, 16))
    other = game.discriminate(given)
    other.total.backward()
    assert given.recon.grad is None
    assert all(weight.grad is not None for weight in game.discriminator_parameters())
    assert set(other.terms) == {f"{name}_discriminator"}


def test_a_discriminator_learns_to_tell_the_two_apart():
    torch.manual_seed(0)
    game = losses.build({"gan2d": {"width": 8, "weight": 1.0}})
    optimizer = torch.optim.Adam(game.discriminator_parameters(), 5e-3)
    history = []
    for step in range(20):
        given = inputs(step, (4, 3, 1, 16, 16))
        given.recon = F.avg_pool3d(given.target, (1, 3, 3), 1, (0, 1, 1))
        total = game.discriminate(given).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert history[-1] < 0.5 * history[0]


def test_an_adversary_waits_for_its_step_and_for_clips():
    game = losses.build({"gan2d": {"start": 3, "width": 4}, "gan3d": {"width": 4}})
    still = inputs(shape=(2, 3, 1, 16, 16), step=2)
    result = game(still)
    assert all(float(term) == 0 for term in result.terms.values())
    assert game.discriminate(still) is None
    still.step = 3
    assert float(game(still).terms["gan2d"]) != 0
    assert set(game.discriminate(still).terms) == {"gan2d_discriminator"}


def test_an_adaptive_weight_makes_both_gradients_equally_long():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    given = inputs()
    recon = layer(given.target.transpose(1, -1)).transpose(1, -1)
    given = LossInputs(recon=recon, target=given.target, last_layer=[layer.weight])
    config = {"adaptive": True, "weight": 1.0, "feature_matching": 0.0, "width": 4}
    game = losses.build({"gan2d": config, "l1": {}})
    result = game(given)
    (whole,) = torch.autograd.grad(result.total, layer.weight, retain_graph=True)
    (pixels,) = torch.autograd.grad(F.l1_loss(recon, given.target), layer.weight)
    adversary = (whole - pixels).norm()
    torch.testing.assert_close(adversary, pixels.norm(), rtol=0.01, atol=0)
    assert "gan2d_factor" in result.terms
    with pytest.raises(ValueError, match="last_layer"):
        game(inputs())


def test_lecam_holds_scores_near_their_moving_averages():
    torch.manual_seed(0)
    config = AdversarialConfig(lecam=1.0, lecam_decay=0.5, width=4)
    game = Adversarial(config, axes=2)
    given = inputs(shape=(2, 3, 1, 16, 16))
    real, fake = (game.discriminator(x[:, :, 0])[-1] for x in (given.target, given.recon))
    means = torch.stack([real.mean(), fake.mean()]) / 2
    terms = game.discriminate(given)
    torch.testing.assert_close(game.means, means)
    wanted = F.relu(real - means[1]).square().mean() + F.relu(means[0] - fake).square().mean()
    torch.testing.assert_close(terms["_lecam"], wanted)
    torch.testing.assert_close(
        game.discriminator_total(terms), config.weight * terms[""] + terms["_lecam"]
    )


def test_a_discriminator_that_is_far_ahead_rests():
    game = losses.build({"gan2d": {"skip_below": 1e9, "width": 4}})
    game.discriminate(inputs()).total.backward()
    assert all(weight.grad.abs().max() == 0 for weight in game.discriminator_parameters())


# meaning


def test_a_sigmoid_contrast_is_counted_by_hand():
    image = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    scale, bias = torch.tensor(2.0), torch.tensor(-1.0)
    # cosines 1 1 / 0 0, so logits 1 1 / -1 -1 with signs + - / - +
    softplus = [math.log1p(math.exp(x)) for x in (-1, 1, -1, 1)]
    loss = sigmoid_contrast(image, text, scale, bias)
    assert float(loss) == pytest.approx(sum(softplus) / 2, rel=1e-6)
    moved = sigmoid_contrast(image, torch.cat([text[:1], text]), scale, bias, first=1)
    assert float(moved) == pytest.approx(sum(softplus) / 2 + (softplus[1] + softplus[0]) / 2)


def test_a_student_equal_to_its_teacher_has_no_divergence():
    random = torch.Generator().manual_seed(0)
    a, b, text = (torch.randn(4, 8, generator=random) for _ in range(3))
    assert float(caption_divergence(3 * a, a, text, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(caption_divergence(a, b, text, 2.0)) > 1e-3


def test_heads_of_semantic_losses_learn_from_tokens():
    torch.manual_seed(0)
    teacher = torch.nn.Linear(3, 6)
    tokens = torch.randn(4, 7, 5, requires_grad=True)
    given = inputs(shape=(4, 3, 2, 8, 8), features=tokens, text=torch.randn(4, 6))
    for kind in ("cosine", "l2", "captions"):
        shape = {"width": 5, "embedding": 6}
        config = {"distill": {"kind": kind, "frames": None, **shape}, "contrastive": shape}
        both = losses.build(config, teacher=lambda x: teacher(x.mean((2, 3))))
        result = both(given)
        result.total.backward()
        assert tokens.grad.abs().sum() > 0
        assert all(weight.grad is not None for weight in both.head_parameters())
        assert all(weight.grad is None for weight in teacher.parameters())
        assert set(result.terms) == {"distill", "contrastive"}
        assert {key.split(".")[1] for key in both.state_dict()} == {"distill", "contrastive"}
    seen = teacher(given.target.mean((3, 4)).transpose(1, 2)).mean(1)
    student = both.losses["distill"].head(tokens.mean(1))
    both.losses["distill"].config.kind = "cosine"
    wanted = (1 - F.cosine_similarity(student, seen)).mean()
    torch.testing.assert_close(both.losses["distill"](given), wanted)


def test_a_semantic_loss_says_what_it_lacks():
    config = {"width": 5, "embedding": 6}
    with pytest.raises(ValueError, match="needs a teacher"):
        losses.build({"distill": config})
    contrast = losses.build({"contrastive": config})
    with pytest.raises(ValueError, match="caption"):
        contrast(inputs(features=torch.zeros(2, 7, 5)))
    with pytest.raises(ValueError, match=r"\[B, N, 5\]"):
        contrast(inputs(text=torch.zeros(2, 6)))


# sets


def test_a_set_sums_weighted_terms_and_reports_each_unweighted():
    given = inputs()
    config = {"l1": {"weight": 4.0}, "l2": losses.CONFIGS["l2"](weight=0.5), "huber": 2}
    result = losses.build(config)(given)
    pair = given.recon, given.target
    terms = {
        "l1": F.l1_loss(*pair),
        "l2": F.mse_loss(*pair),
        "huber": F.smooth_l1_loss(*pair, beta=0.1),
    }
    assert not any(term.requires_grad for term in result.terms.values())
    torch.testing.assert_close(result.terms, {k: term.detach() for k, term in terms.items()})
    wanted = 4 * terms["l1"] + 0.5 * terms["l2"] + 2 * terms["huber"]
    torch.testing.assert_close(result.total, wanted)


def test_losses_that_look_at_one_frame_look_at_the_same_one():
    torch.manual_seed(0)
    given = inputs(shape=(3, 3, 9, 4, 4))
    recon, target = given.pictures(2)
    assert recon.shape == (6, 3, 4, 4)
    assert given.pictures(2)[0] is recon
    wanted = given.target.transpose(1, 2).flatten(0, 1)
    found = [int((wanted == frame).flatten(1).all(1).nonzero()) for frame in target]
    assert [place // 9 for place in found] == [0, 0, 1, 1, 2, 2]
    assert len(set(found)) == 6
    assert torch.equal(recon, given.recon.transpose(1, 2).flatten(0, 1)[found])
    assert given.pictures(None, side=8)[0].shape == (27, 3, 8, 8)
    detached = replace(given, recon=given.recon.detach())
    assert not detached.pictures(2)[0].requires_grad


def test_losses_make_nothing_on_another_device_and_never_wait_for_a_value(tmp_path, monkeypatch):
    # tensors without values: mixing devices, or asking for a value, raises
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    network = {"network": str(save_network(tmp_path, "lpips-alex"))}
    shape = {"width": 5, "embedding": 6}
    pixels = dict.fromkeys(("l1", "l2", "rmse", "huber", "charbonnier"), 1.0)
    config = {
        **pixels,
        "lpips": network,
        "gram": {**network, "fast": True, "side": 96},
        "gan2d": {"adaptive": True, "lecam": 0.1, "width": 4, "skip_below": 0.1},
        "gan3d": {"width": 4},
        "kl": {},
        "distill": {**shape, "kind": "captions"},
        "contrastive": shape,
    }
    every = losses.build(config, teacher=lambda x: x.mean((2, 3)).repeat(1, 2)).to("meta")
    layer = torch.nn.Linear(3, 3, device="meta")
    target = torch.zeros(2, 3, 5, 64, 64, device="meta")
    given = LossInputs(
        recon=layer(target.transpose(1, -1)).transpose(1, -1),
        target=target,
        quantized=Quantized(torch.zeros(2, 4, 8, device="meta"), None, {"kl": target.mean()}, None),
        features=torch.zeros(2, 7, 5, device="meta"),
        text=torch.zeros(2, 6, device="meta"),
        last_layer=[layer.weight],
    )
    for result in (every(given), every.discriminate(given)):
        result.total.backward()
        assert {term.device.type for term in result.terms.values()} == {"meta"}


def test_processes_share_captions_and_averages():
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        text = torch.randn(3, 4)
        texts, first = all_texts(text)
        assert torch.equal(texts, text)
        assert first == 0
        game = Adversarial(AdversarialConfig(lecam=1.0, lecam_decay=0.0, width=4), axes=2)
        game.discriminate(inputs(shape=(2, 3, 1, 16, 16)))
        assert game.means.abs().min() > 0
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"charbonier": {}}, "no loss 'charbonier'; did you mean 'charbonnier'"),
        ({"l1": {"wieght": 1}}, "'l1' has no setting 'wieght'; did you mean 'weight'"),
        ({"lpips": {}}, "'lpips' cannot be built from .*network"),
        ({"l1": {"weight": math.nan}}, "'l1': weight is nan; expected float"),
        ({"l1": {"weight": "much"}}, "'l1': weight is 'much'; expected float"),
        ({"gan2d": {"width": 1.5}}, "'gan2d': width is 1.5; expected int"),
        ({"huber": {"delta": 0.0}}, "delta=0.0 must be above 0"),
        ({"gan2d": {"kind": "wgan"}}, "kind='wgan' is unknown"),
        ({"kl": {"reduction": "max"}}, "reduction='max' is unknown"),
        ({"l1": losses.CONFIGS["kl"]()}, "'l1' got a KLConfig; it takes a PixelConfig"),
        ({"lpips": {"network": "absent.safetensors"}}, "absent.safetensors does not exist"),
    ],
)
def test_what_a_config_gets_wrong_is_said_in_a_sentence(config, why):
    with pytest.raises(ValueError, match=why):
        losses.build(config)
