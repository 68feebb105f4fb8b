import math

import pytest
import torch

from omnitok.metrics import codebook
from omnitok.metrics.codebook import CodebookStats
from omnitok.metrics.pixel import MAX_PSNR, flicker, psnr, ssim


def two_frames():
    y, x = torch.meshgrid(torch.arange(24), torch.arange(31), indexing="ij")
    a = torch.stack([x * 7 + y * 3, x * y, x * x + 2 * y]) % 256
    b = torch.stack([x * 7 + y * 3 + x % 5 * 4, x * y + 9, torch.full_like(x, 77)]) % 256
    return a.to(torch.uint8)[None], b.to(torch.uint8)[None]


def test_psnr_and_ssim_equal_those_of_scikit_image():
    # skimage 0.26: peak_signal_noise_ratio, and structural_similarity(gaussian_weights=True,
    # sigma=1.5, use_sample_covariance=False, data_range=255), mean over channels
    a, b = two_frames()
    assert psnr(a, b).item() == pytest.approx(13.654228335466499, abs=1e-12)
    assert ssim(a, b).item() == pytest.approx(0.586000417964961, abs=1e-12)


def test_floats_in_minus_one_to_one_score_as_the_same_bytes():
    a, b = two_frames()
    x, y = (clip.double() / 127.5 - 1 for clip in (a, b))
    torch.testing.assert_close(psnr(x, y), psnr(a, b), atol=1e-10, rtol=0)
    torch.testing.assert_close(ssim(x, y), ssim(a, b), atol=1e-10, rtol=0)


def test_each_frame_has_its_own_score_and_equal_frames_have_the_best():
    a, b = two_frames()
    clip, other = torch.cat([a, a, b]), torch.cat([b, a, b])
    assert psnr(clip, other)[1:].tolist() == [MAX_PSNR, MAX_PSNR]
    torch.testing.assert_close(ssim(clip, other)[1:], torch.ones(2).double())
    assert psnr(clip, other)[0] == psnr(a, b)[0]
    assert math.isfinite(psnr(clip, other).mean())


def test_psnr_of_one_wrong_value_is_counted_by_hand():
    a = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    b = a.clone()
    b[0, 0, 0, 0] = 6
    assert psnr(a, b).item() == pytest.approx(10 * math.log10(255**2 / (36 / 12)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 2), (10, 11), (11, 10), (12, 5)])
def test_ssim_of_small_frames_stays_in_range_and_is_one_for_equal_ones(shape):
    random = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, 2, 3, *shape), generator=random).to(torch.uint8)
    assert (ssim(a, b) < 0.99).all()
    assert (ssim(a, b) >= -1).all()
    torch.testing.assert_close(ssim(a, a), torch.ones(2).double())


def test_ssim_of_one_pixel_compares_luminance_only():
    a, b = (torch.full((1, 1, 1, 1), value, dtype=torch.uint8) for value in (100, 50))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b).item() == pytest.approx((2 * 5000 + c1) / (100**2 + 50**2 + c1))


def test_flicker_sees_changes_in_time_and_not_a_steady_difference():
    a = torch.zeros(4, 3, 5, 5, dtype=torch.uint8)
    steady = a + 20
    blinking = a.clone()
    blinking[1] = 30  # 0 30 0 0: two of three steps differ by 30
    assert flicker(a, steady) == 0
    assert flicker(a, blinking) == pytest.approx(20)
    assert flicker(a[:1], steady[:1]) == 0


@pytest.mark.parametrize("metric", [psnr, ssim, flicker])
def test_clips_of_unlike_shape_or_type_are_refused(metric):
    clip = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    others = clip[:1], clip.float(), clip[:, :, :11], clip[:0]
    for other in others:
        with pytest.raises(ValueError, match="expected two"):
            metric(clip, other)
    with pytest.raises(ValueError, match="expected two"):
        metric(clip[:0], clip[:0])
    with pytest.raises(ValueError, match="uint8 or float"):
        metric(clip.long(), clip.long())


def test_figures_of_a_known_histogram():
    counts = torch.tensor([[4, 4, 0, 0], [8, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
    assert codebook.share_used(counts).tolist() == [0.5, 0.25, 1, 0]
    assert codebook.entropy(counts).tolist() == pytest.approx([1, 0, 2, 0])
    assert codebook.perplexity(counts).tolist() == pytest.approx([2, 1, 4, 1])


@pytest.mark.parametrize("size", [16, 2**40])
def test_codes_are_counted_alike_in_small_and_in_huge_codebooks(size):
    stats = CodebookStats(size, num_codebooks=2)
    codes = torch.tensor([[0, 15], [3, 15], [0, 15], [3, 14]]).reshape(2, 1, 2, 2)
    for part in codes:  # in two parts
        stats.add(part)
    usage = stats.usage()
    assert usage.num_tokens == 4
    assert usage.used == (2, 2)
    assert usage.share == (2 / size, 2 / size)
    assert usage.entropy == pytest.approx((1, 0.8112781244591328))
    assert usage.perplexity == pytest.approx((2, 2**0.8112781244591328))


def test_counting_too_many_different_codes_is_refused_and_not_swallowed(monkeypatch):
    monkeypatch.setattr(codebook, "MAX_COUNTED", 10)
    stats = CodebookStats(2**40)
    stats.add(torch.arange(10))
    with pytest.raises(ValueError, match="more than 10 of"):
        stats.add(torch.tensor([99]))
