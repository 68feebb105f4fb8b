"""Linear tokenizers: what a learned one has to beat."""

import numpy as np
import torch
from small_models import noise
from waves import waves

from omnitok.metrics.baselines import LinearTokenizer
from omnitok.nn.patch import patchify
from omnitok.pixels import to_float, to_uint8

PATCH = (4, 8, 8)


def clips() -> list[torch.Tensor]:
    arrays = [waves(9, 64, 64, seed) for seed in range(4)]
    frames = torch.from_numpy(np.stack(arrays)).permute(0, 4, 1, 2, 3)
    return [to_float(frames, torch.float32)]


def test_a_linear_tokenizer_of_full_rank_returns_what_it_gets():
    linear = LinearTokenizer.fit(clips(), PATCH, rank=768)
    assert linear.num_patches == (4 * 64, 4 * 2 * 64)
    frames = noise(6, 21, 30)  # neither whole groups nor whole patches
    recon = linear.reconstruct(to_float(frames.transpose(0, 1)[None], torch.float32))
    assert torch.equal(to_uint8(recon[0]).transpose(0, 1), frames)


def test_the_error_of_a_linear_tokenizer_is_the_variance_that_it_leaves_out():
    linear = LinearTokenizer.fit(clips(), PATCH, rank=3)
    (x,) = clips()
    rest = x - linear.reconstruct(x)
    for pca, part, patch in (
        (linear.still, rest[:, :, :1], (1, 8, 8)),
        (linear.moving, rest[:, :, 1:], PATCH),
    ):
        left_out = pca.std[3:].square().sum()
        error = patchify(part, patch).square().sum(-1).mean()
        torch.testing.assert_close(error, left_out, rtol=1e-3, atol=1e-5)


def test_quantizing_costs_quality_and_more_bits_cost_less():
    (x,) = clips()
    scores = [
        float((LinearTokenizer.fit(clips(), PATCH, 16, bits).reconstruct(x) - x).square().mean())
        for bits in (4, 16, None)
    ]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
