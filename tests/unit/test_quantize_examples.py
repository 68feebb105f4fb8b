"""Numbers worked out by hand from the published formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from omnitok.quantize import VQ, Quantized, QuantizerConfig, build_quantizer
from omnitok.quantize.bits import bits_to_codes, codes_to_bits, reverse_bits
from omnitok.quantize.kl import KL, kl_divergence

ROWS = tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
POINTS = tensor([[0.6, 0.9], [-0.2, -0.4]])


def quantize(z: Any, **options: Any) -> Quantized:
    out = build_quantizer(QuantizerConfig(**options))(torch.as_tensor(z))
    assert isinstance(out, Quantized)
    return out


def near(actual: Tensor, expected: Any, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(actual, tensor(expected), atol=tolerance, rtol=0)


def test_fsq_counts_the_first_channel_fastest() -> None:
    out = quantize([0.3, -1.2, 2.0], dim=3, levels=(8, 5, 5))
    near(out.z_q, [0.25, -1.0, 1.0])
    assert out.codes == 165
    quantizer = build_quantizer(QuantizerConfig(dim=3, levels=(8, 5, 5)))
    near(quantizer.codes_to_latents(tensor(97)), [-0.75, 0.0, 0.0])


@pytest.mark.parametrize(
    ("level", "thresholds"),
    [
        (3, [-0.5486, 0.5486]),
        (4, [-1.1497, -0.3462, 0.4573]),
        (5, [-0.9712, -0.2551, 0.2551, 0.9712]),
        (7, [-1.1962, -0.5486, -0.1681, 0.1681, 0.5486, 1.1962]),
        (8, [-1.4230, -0.7925, -0.4373, -0.1437, 0.1499, 0.5051, 1.1356]),
    ],
)
def test_fsq_changes_its_mind_at_the_published_thresholds(
    level: int, thresholds: list[float]
) -> None:
    for i, threshold in enumerate(thresholds):
        out = quantize([[threshold - 1e-4], [threshold + 1e-4]], dim=1, levels=(level,))
        assert out.codes.tolist() == [i, i + 1]


def test_symmetric_fsq_reaches_from_minus_one_to_one() -> None:
    out = quantize([0.3, 0.3], dim=2, levels=(4, 5), bound="symmetric")
    near(out.z_q, [1 / 3, 0.5])
    assert out.codes == 2 + 4 * 3
    out = quantize([[-9.0], [9.0]], dim=1, levels=(2,), bound="symmetric")
    near(out.z_q, [[-1.0], [1.0]])


def test_lfq_knows_both_bit_orders() -> None:
    z = [0.2, -0.7, 1.1, 0.4, -0.05]
    assert quantize(z, kind="lfq", dim=5).codes == 22
    assert quantize(z, kind="lfq", dim=5, index_order="lsb").codes == 13
    assert reverse_bits(tensor(22), 5) == 13
    near(quantize(z, kind="lfq", dim=5).z_q, [1.0, -1.0, 1.0, 1.0, -1.0])


def test_bits_are_exact_up_to_62() -> None:
    codes = tensor([2**62 - 1, 2**61 + 1, 0])
    for order in ("msb", "lsb"):
        assert torch.equal(bits_to_codes(codes_to_bits(codes, 62, order), order), codes)
    assert reverse_bits(codes, 62).tolist() == [2**62 - 1, 2**61 + 1, 0]
    with pytest.raises(ValueError, match="choose 'msb' or 'lsb'"):
        codes_to_bits(codes, 62, "big")


@pytest.mark.parametrize(("group", "codes"), [(1, 10), (2, [2, 2])])
def test_bsq_example(group: int, codes: Any) -> None:
    out = quantize(
        [3.0, -1.0, 2.0, -2.0],
        kind="bsq",
        dim=4,
        num_codebooks=group,
        entropy_temperature=1.0,
        entropy_group=2,
    )
    near(out.z_q, [0.5, -0.5, 0.5, -0.5])
    assert out.codes.tolist() == codes
    near(out.losses["per_sample_entropy"], 2.346858)
    near(0.25 * out.losses["commitment"], 0.028595)


def test_the_entropy_of_a_token_does_not_depend_on_the_grouping_of_its_bits() -> None:
    z = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    for kind, temperature in (("lfq", 1.0), ("bsq", 0.1)):
        options = {"kind": kind, "dim": 12, "entropy_temperature": temperature}
        losses = [quantize(z, entropy_group=group, **options).losses for group in (1, 3, 12)]
        for loss in losses[1:]:
            same = loss["per_sample_entropy"], losses[0]["per_sample_entropy"]
            torch.testing.assert_close(*same, rtol=1e-4, atol=0)
        batch = [float(loss["codebook_entropy"]) for loss in losses]
        assert batch[0] > batch[1] > batch[2]  # the fewer joint bits, the looser the bound
    bits = torch.sigmoid(4 * z.double())
    binary = -(bits * bits.log() + (1 - bits) * (1 - bits).log()).sum(-1).mean().float()
    out = quantize(z, kind="lfq", dim=12, entropy_temperature=1.0)
    torch.testing.assert_close(out.losses["per_sample_entropy"], binary, rtol=1e-4, atol=0)


def vq(**options: Any) -> VQ:
    quantizer = build_quantizer(QuantizerConfig(kind="vq", dim=2, codebook_size=3, **options))
    assert isinstance(quantizer, VQ)
    quantizer.codebook.data.copy_(ROWS[None])
    return quantizer


def test_vq_example() -> None:
    out = vq()(POINTS)
    assert out.codes.tolist() == [1, 2]
    near(out.losses["commitment"], 0.3425)
    near(out.losses["codebook"], 0.3425)
    near(out.losses["codebook"] + 0.25 * out.losses["commitment"], 0.428125)


def test_vq_of_unit_norm_example() -> None:
    out = vq(l2=True)(POINTS)
    assert out.codes.tolist() == [1, 2]
    near(out.z_q[1], [-math.sqrt(0.5), -math.sqrt(0.5)])
    near(1.25 * out.losses["codebook"], 0.137042)


def test_vq_moving_average_example() -> None:
    quantizer = vq(ema=True, ema_decay=0.9, ema_restart=False)
    quantizer.embed_sum.copy_(ROWS[None])
    quantizer.initialised.fill_(True)
    out = quantizer.train()(POINTS)
    near(out.z_q, [[0.0, 1.0], [-1.0, -1.0]])
    near(quantizer.cluster_size, [[0.9, 1.0, 1.0]])
    near(quantizer.embed_sum, [[[0.9, 0.0], [0.06, 0.99], [-0.92, -0.94]]])
    near(quantizer.codebook[0, 1], [0.06, 0.99], 1e-5)


def test_kl_example() -> None:
    near(kl_divergence(tensor(0.5), tensor(-1.0)), 0.308940)


def test_kl_gives_the_mean_in_eval_and_samples_in_training() -> None:
    kl = build_quantizer(QuantizerConfig(kind="kl", dim=2))
    assert isinstance(kl, KL)
    z = tensor([1.0, -2.0, 0.0, 2 * math.log(0.5)]).expand(20000, 4)
    assert torch.equal(kl.eval()(z).z_q, z[:, :2])
    torch.manual_seed(0)
    sample = kl.train()(z).z_q
    near(sample.mean(0), [1.0, -2.0], 0.03)
    near(sample.std(0), [1.0, 0.5], 0.03)
    draws = [kl.sample(z, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    _, logvar = kl.posterior(tensor([0.0, 0.0, -50.0, 40.0]))
    assert logvar.tolist() == [-30.0, 20.0]


def test_fsq_levels_are_used_unevenly_by_normal_latents() -> None:
    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    codes = quantize(z, dim=1, levels=(8,)).codes
    share = codes.bincount(minlength=8) / len(codes)
    near(share, [0.077, 0.137, 0.117, 0.112, 0.117, 0.133, 0.178, 0.128], 0.003)
