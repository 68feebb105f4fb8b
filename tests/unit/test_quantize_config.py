import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from omnitok.quantize import QuantizerConfig, build_quantizer

VALID: list[dict[str, Any]] = [
    {"kind": "kl", "dim": 16},
    {"kind": "fsq", "dim": 6, "levels": (8, 8, 8, 5, 5, 5)},
    {"kind": "fsq", "dim": 48, "levels": (4,) * 6, "num_codebooks": 8},
    {"kind": "fsq", "dim": 3, "levels": (2, 2, 3), "bound": "symmetric"},
    {"kind": "vq", "dim": 8, "codebook_size": 32, "num_codebooks": 2, "l2": True, "ema": True},
    {"kind": "lfq", "dim": 62, "index_order": "lsb"},
    {"kind": "bsq", "dim": 36, "entropy_temperature": 1.0, "entropy_group": 9},
]


@pytest.mark.parametrize("values", VALID)
def test_a_config_survives_json(values: dict[str, Any]) -> None:
    config = QuantizerConfig(**values)
    assert QuantizerConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "gumbel", "dim": 4}, "kind='gumbel' is unknown"),
        ({"kind": "kl", "dim": 0}, "dim=0 must be an integer of at least 1"),
        ({"kind": "kl", "dim": 4.0}, "dim=4.0"),
        ({"kind": "kl", "dim": 4, "levels": (4,)}, "levels=.* means nothing to kind 'kl'"),
        ({"kind": "fsq", "dim": 4, "levels": (4, 4)}, "gives 4; make them equal"),
        ({"kind": "fsq", "dim": 2, "levels": (4, 1)}, "level=1"),
        ({"kind": "fsq", "dim": 2, "levels": (2, 2)}, "use bound='symmetric'"),
        ({"kind": "fsq", "dim": 2, "levels": (4, 4), "codebook_size": 15}, "give 16; leave it out"),
        ({"kind": "fsq", "dim": 2, "levels": (4, 4), "index_order": "msb"}, "index_order='msb'"),
        ({"kind": "fsq", "dim": 32, "levels": (4,) * 32}, "raise num_codebooks"),
        ({"kind": "lfq", "dim": 63}, "raise num_codebooks"),
        ({"kind": "lfq", "dim": 2**60}, "raise num_codebooks"),
        ({"kind": "lfq", "dim": 9, "num_codebooks": 2}, "must be a multiple"),
        ({"kind": "bsq", "dim": 9, "entropy_group": 2}, "must be a multiple"),
        ({"kind": "bsq", "dim": 30, "entropy_group": 30}, "20 is the most"),
        ({"kind": "bsq", "dim": 9, "entropy_temperature": 0.0}, "must be above 0"),
        ({"kind": "lfq", "dim": 9, "l2": True}, "l2=True means nothing to kind 'lfq'"),
        ({"kind": "vq", "dim": 4}, "codebook_size=None"),
        ({"kind": "vq", "dim": 4, "codebook_size": 8, "ema_decay": 1.0}, "ema_decay=1.0"),
    ],
)
def test_a_wrong_config_says_what_to_change(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**values)


@pytest.mark.parametrize("values", [{"dim": 4, "leveIs": [4]}, {"kind": "kl"}])
def test_an_unknown_or_missing_key_is_an_error(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it needs 'dim' and knows"):
        QuantizerConfig.from_dict(values)


def test_a_quantizer_says_what_a_token_file_needs() -> None:
    fsq, kl, lfq = (build_quantizer(QuantizerConfig(**VALID[i])) for i in (2, 0, 5))
    assert (fsq.codebook_size, fsq.num_codebooks, fsq.dim, fsq.input_dim) == (4096, 8, 48, 48)
    assert (fsq.levels, fsq.index_order) == ((4,) * 6, "first_fastest")
    assert (kl.codebook_size, kl.dim, kl.input_dim, kl.levels) == (None, 16, 32, None)
    assert (lfq.codebook_size, lfq.index_order) == (2**62, "lsb")


def test_only_a_learned_codebook_is_in_the_state_dict() -> None:
    keys = [set(build_quantizer(QuantizerConfig(**values)).state_dict()) for values in VALID]
    assert keys[4] == {"codebook", "cluster_size", "embed_sum", "initialised"}
    assert not any(keys[:4] + keys[5:])


def test_wrong_latents_or_codes_are_refused() -> None:
    quantizer = build_quantizer(QuantizerConfig(**VALID[2]))
    with pytest.raises(ValueError, match=r"shape \(2, 6\).*takes \[\.\.\., 48\]"):
        quantizer(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"takes int64 \[\.\.\., 8\]"):
        quantizer.codes_to_latents(torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="takes int64"):
        quantizer.codes_to_latents(torch.zeros(2, 8, dtype=torch.int32))
    for wrong in (-1, 4096):
        with pytest.raises(ValueError, match="the codebook has 0 to 4095"):
            quantizer.codes_to_latents(torch.full((2, 8), wrong))
    with pytest.raises(ValueError, match="continuous"):
        build_quantizer(QuantizerConfig(kind="kl", dim=1)).codes_to_latents(torch.zeros(1).long())


@pytest.mark.parametrize("values", VALID)
def test_a_quantizer_built_without_storage_works_once_its_state_is_assigned(
    values: dict[str, Any],
) -> None:
    real = build_quantizer(QuantizerConfig(**values)).eval()
    with torch.device("meta"):
        shell = build_quantizer(QuantizerConfig(**values)).eval()
    shell.load_state_dict(real.state_dict(), assign=True)
    z = torch.randn(5, real.input_dim)
    assert torch.equal(shell(z).z_q, real(z).z_q)
