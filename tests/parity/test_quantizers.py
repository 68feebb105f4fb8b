"""Every quantizer against recorded outputs, losses and gradients of published implementations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from omnitok.quantize import VQ, Quantized, Quantizer, QuantizerConfig, build_quantizer
from omnitok.quantize.bits import bits_to_codes, codes_to_bits, reverse_bits
from omnitok.quantize.kl import KL, kl_divergence, kl_per_sample, reparameterise

GOLDEN = "quantizers"
CODES, LOSS, GRADIENT = 1e-5, 1e-5, 1e-4  # relative
ENTROPY, SHARP_ENTROPY = 1e-4, 1e-3  # sharp: distances in a softmax at a temperature of 0.01

# Families that are not built yet, by what only their cases have.
FUTURE: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], bool]] = {
    "residual": lambda meta, tensors: "num_quantizers" in meta,
    "IBQ": lambda meta, tensors: "IBQ" in meta.get("src", ""),
    "TokenBridge": lambda meta, tensors: "std_range" in meta,
    "rotation trick": lambda meta, tensors: "rotation_trick=True" in meta.get("src", ""),
    "SimVQ": lambda meta, tensors: "frozen_codebook" in tensors,
    "GSQ": lambda meta, tensors: "num_group" in meta,
    "UniTok multi-codebook": lambda meta, tensors: "K_each" in meta,
    "FQGAN dual codebook": lambda meta, tensors: "codebook_vis" in tensors,
}
# The families that are, in the order in which they are tried.
BUILT: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], bool]] = {
    "kl": lambda meta, tensors: "logvar_clamp" in meta,
    "fsq_aux": lambda meta, tensors: "annealing_steps" in meta,
    "fsq": lambda meta, tensors: "levels" in meta,
    "bsq": lambda meta, tensors: "group_size" in meta,
    "spherical_lfq": lambda meta, tensors: "spherical=True" in meta.get("src", ""),
    "lfq": lambda meta, tensors: "index_order_magvit2" in meta,
    "vq_ema": lambda meta, tensors: "decay" in meta,
    "vq_l2": lambda meta, tensors: "entropy_ratio" in meta,
    "vq": lambda meta, tensors: "legacy" in meta,
}


def test_matches_the_recorded_case(golden_case: Any) -> None:
    meta, tensors = golden_case.meta, golden_case.tensors
    for family, belongs in FUTURE.items():
        if belongs(meta, tensors):
            pytest.skip(f"{family} quantizers are not built yet")
    known = [family for family, belongs in BUILT.items() if belongs(meta, tensors)]
    assert known, f"no family is known for {golden_case} with {sorted(meta)}"
    globals()[f"check_{known[0]}"](meta, tensors)


def check_fsq(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    symmetric = meta.get("variant") == "preserve_symmetry"
    bound = {"bound": "symmetric"} if symmetric else {"bound_eps": meta.get("eps", 1e-3)}
    quantizer = build(kind="fsq", dim=len(meta["levels"]), levels=meta["levels"], **bound)
    z, out = run(quantizer, meta, t)
    levels = torch.tensor(meta["levels"])
    digits = (out.z_q + 1) * (levels - 1) / 2 if symmetric else (out.z_q + 1) * (levels // 2)
    close("digits", digits, t["digits"].float(), CODES)
    close("grad_input", gradient(out.z_q, z, meta, t), channels_last(meta, t, "grad_input"))


def check_fsq_aux(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    quantizer = build(
        kind="fsq",
        dim=len(meta["levels"]),
        levels=meta["levels"],
        entropy_temperature=1 / meta["inv_temperature"],
    )
    z = channels_last(meta, t, "input").requires_grad_()
    losses = quantizer(z).losses
    for name in ("per_sample_entropy", "codebook_entropy", "commitment"):
        close(name, losses[name], t[name], ENTROPY)
    entropy = losses["per_sample_entropy"] - meta["diversity_gamma"] * losses["codebook_entropy"]
    for name in t:
        if "step" not in name:
            continue
        step = int(name.rpartition("step")[2])
        weight, factor = meta["entropy_loss_weight"], meta["annealing_factor"]
        fraction = min(1.0, step / meta["annealing_steps"])
        weight = factor * weight - fraction * (factor - 1) * weight
        loss = weight * entropy + meta["commitment_loss_weight"] * losses["commitment"]
        if name.startswith("grad_input"):
            (actual,) = torch.autograd.grad(loss, z, retain_graph=True)
            close(name, actual, channels_last(meta, t, name))
        else:
            close(name, loss, t[name], ENTROPY, weight * losses["codebook_entropy"])


def check_lfq(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    dim = meta["dim"]
    options = {"dim": dim, "entropy_temperature": meta["temperature"], "entropy_group": dim}
    lsb = build(kind="lfq", index_order="lsb", **options)
    z, out = run(lsb, meta, t, "indices_lsb_first")
    loss = out.losses["per_sample_entropy"] - out.losses["codebook_entropy"]
    close("commitment", out.losses["commitment"], t["commitment"], LOSS)
    for name in ("per_sample_entropy", "codebook_entropy"):
        close(name, out.losses[name], t[name], ENTROPY)
    close("entropy_loss", loss, t["entropy_loss"], ENTROPY)
    (actual,) = torch.autograd.grad(loss, z, retain_graph=True)
    expected = channels_last(meta, t, "grad_input_entropy_loss")
    close("grad_input_entropy_loss", actual, expected)
    expected = channels_last(meta, t, "grad_input_ste")
    close("grad_input_ste", gradient(out.z_q, z, meta, t), expected)
    first = meta["factorized_bits"][0]
    bits = codes_to_bits(out.codes, dim, "lsb").flatten(end_dim=-2)
    assert torch.equal(bits_to_codes(bits[:, :first], "lsb"), t["indices_factor_pre"])
    assert torch.equal(bits_to_codes(bits[:, first:], "lsb"), t["indices_factor_post"])
    assert torch.equal(reverse_bits(out.codes, dim), t["indices_msb_first"])

    msb = build(kind="lfq", entropy_form="clamped", **options)
    _, out = run(msb, meta, t, "indices_msb_first")
    for name in ("per_sample_entropy", "codebook_entropy"):
        close(f"vqp_{name}", out.losses[name], t[f"vqp_{name}"], ENTROPY)
    aux, size = vqp_aux(meta, out.losses["commitment"], out)
    close("vqp_aux_loss", aux, t["vqp_aux_loss"], ENTROPY, size)


def check_spherical_lfq(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    dim = meta["dim"]
    quantizer = build(
        kind="bsq",
        dim=dim,
        entropy_temperature=1 / meta.get("inv_temperature", 100),
        entropy_group=dim,
        entropy_form="clamped",
    )
    _, out = run(quantizer, meta, t)
    commitment = out.losses["commitment"] / dim  # the source takes the mean over channels
    close("commitment", commitment, t["commitment"], LOSS)
    for name in ("per_sample_entropy", "codebook_entropy"):
        close(name, out.losses[name], t[name], ENTROPY)
    aux, size = vqp_aux(meta, commitment, out)
    close("aux_loss", aux, t["aux_loss"], ENTROPY, size)


def check_bsq(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    dim, group = meta["dim"], meta["group_size"]
    options = {
        "dim": dim,
        "entropy_temperature": 1 / meta["inv_temperature"],
        "entropy_group": 1 if meta["persample"] == "analytical" else group,
    }
    z, out = run(build(kind="bsq", **options), meta, t)
    assert torch.equal(codes_to_bits(out.codes, dim, "msb"), t["bits"])
    grouped = build(kind="bsq", num_codebooks=dim // group, **options)
    assert torch.equal(grouped(z).codes.reshape(t["group_indices"].shape), t["group_indices"])
    for name in ("per_sample_entropy", "codebook_entropy"):
        close(name, out.losses[name], t[name], ENTROPY)
    commitment = meta["beta"] * out.losses["commitment"]
    close("commit_loss", commitment, t["commit_loss"], LOSS)
    entropy = meta["gamma0"] * out.losses["per_sample_entropy"]
    entropy = entropy - meta["gamma"] * out.losses["codebook_entropy"]
    loss = commitment + meta["zeta"] * entropy / meta["inv_temperature"]
    close("loss", loss, t["loss"], ENTROPY, meta["zeta"] * out.losses["codebook_entropy"])
    # The source is differentiated at the unit vector, ours through the normalisation as well.
    (actual,) = torch.autograd.grad(loss, z, retain_graph=True)
    close("grad_input_loss", actual, tangent(z, channels_last(meta, t, "grad_input_loss")))
    expected = tangent(z, channels_last(meta, t, "grad_input_ste"))
    close("grad_input_ste", gradient(out.z_q, z, meta, t), expected)


def check_vq(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    quantizer = vq(meta, t)
    z, out = run(quantizer, meta, t)
    expected = channels_last(meta, t, "grad_input_ste")
    close("grad_input_ste", gradient(out.z_q, z, meta, t), expected)
    per_sample = torch.stack([vq_loss(quantizer(sample[None]), meta) for sample in z])
    close("loss", vq_loss(out, meta), t["loss"], LOSS)
    close("loss_per_sample", per_sample, t["loss_per_sample"].flatten(), LOSS)
    actual_z, actual_codebook = torch.autograd.grad(per_sample.sum(), [z, quantizer.codebook])
    expected = channels_last(meta, t, "grad_input_loss_sum")
    close("grad_input_loss_sum", actual_z, expected)
    close("grad_codebook_loss_sum", actual_codebook[0], t["grad_codebook_loss_sum"])


def check_vq_l2(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    quantizer = vq(meta, t, l2=True, entropy_temperature=meta["temperature"])
    z, out = run(quantizer, meta, t)
    losses = out.losses
    expected = channels_last(meta, t, "grad_input_ste")
    close("grad_input_ste", gradient(out.z_q, z, meta, t), expected)
    commitment = meta["beta"] * losses["commitment"]
    entropy = losses["per_sample_entropy"] - losses["codebook_entropy"]
    close("codebook_loss", losses["codebook"], t["codebook_loss"], LOSS)
    close("commit_loss", commitment, t["commit_loss"], LOSS)
    for name in ("per_sample_entropy", "codebook_entropy"):
        close(name, losses[name], t[name], SHARP_ENTROPY)
    close("entropy_loss", meta["entropy_ratio"] * entropy, t["entropy_loss"], SHARP_ENTROPY)
    total = losses["codebook"] + commitment + meta["entropy_ratio"] * entropy
    actual_z, actual_codebook = torch.autograd.grad(total, [z, quantizer.codebook])
    close("grad_input_total", actual_z, channels_last(meta, t, "grad_input_total"))
    close("grad_codebook_total", actual_codebook[0], t["grad_codebook_total"])


def check_vq_ema(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    options = {"ema": True, "ema_decay": meta["decay"], "ema_eps": meta["eps"]}
    quantizer = vq(meta, t, ema_restart=meta.get("restart", False), **options)
    quantizer.cluster_size.copy_(t["cluster_size"].reshape(1, -1))
    quantizer.embed_sum.copy_(t["embed_sum"][None])
    quantizer.initialised.fill_(True)
    run(quantizer, meta, t)
    quantizer.train()
    out = quantizer(channels_last(meta, t, "input"))
    close("codes", out.z_q, channels_last(meta, t, "codes"), CODES)
    weight = meta.get("beta", meta.get("commitment_weight"))
    expected = t["commit_loss"] if "commit_loss" in t else t["loss"]
    close("commit_loss", weight * out.losses["commitment"], expected, LOSS)
    close("new_cluster_size", quantizer.cluster_size[0], t["new_cluster_size"].flatten(), CODES)
    close("new_embed_sum", quantizer.embed_sum[0], t["new_embed_sum"], CODES)
    close("new_codebook", quantizer.codebook[0], t["new_codebook"], CODES)


def check_kl(meta: dict[str, Any], t: dict[str, Tensor]) -> None:
    parameters = t["parameters"].movedim(1, -1)
    quantizer = build(kind="kl", dim=t["mean"].shape[1])
    assert isinstance(quantizer, KL)
    assert torch.equal(quantizer(parameters).z_q, t["mode"].movedim(1, -1))
    mean, logvar = quantizer.posterior(parameters)
    assert torch.equal(mean, t["mean"].movedim(1, -1))
    assert torch.equal(logvar, t["logvar"].movedim(1, -1))
    sample = reparameterise(mean, logvar, t["noise"].movedim(1, -1))
    torch.testing.assert_close(sample, t["sample"].movedim(1, -1), rtol=CODES, atol=1e-6)
    per_sample = kl_per_sample(mean, logvar)
    close("kl_per_sample", per_sample, t["kl_per_sample"], LOSS)
    close("kl_vidtok_loss", per_sample.mean(), t["kl_vidtok_loss"], LOSS)
    elements = kl_divergence(mean, logvar).movedim(-1, 1)
    close("kl_diffusers", elements.sum((1, 2, 3)), t["kl_diffusers"], LOSS)
    close("mean", quantizer(parameters).losses["kl"], t["kl_per_sample"].sum() / mean.numel(), LOSS)


def build(**options: Any) -> Quantizer:
    return build_quantizer(QuantizerConfig(**options)).eval()


def vq(meta: dict[str, Any], t: dict[str, Tensor], **options: Any) -> VQ:
    quantizer = build(kind="vq", dim=meta["dim"], codebook_size=meta["K"], **options)
    assert isinstance(quantizer, VQ)
    quantizer.codebook.data.copy_(t["codebook"][None])
    return quantizer


def vq_loss(out: Quantized, meta: dict[str, Any]) -> Tensor:
    codebook, commitment = out.losses["codebook"], out.losses["commitment"]
    if meta["legacy"]:
        return commitment + meta["beta"] * codebook
    return codebook + meta["beta"] * commitment


def vqp_aux(meta: dict[str, Any], commitment: Tensor, out: Quantized) -> tuple[Tensor, Tensor]:
    """The loss of vector-quantize-pytorch, and its largest term."""
    weight = meta.get("entropy_loss_weight", 0.1)
    diversity = meta.get("diversity_gamma", 1.0) * out.losses["codebook_entropy"]
    entropy = weight * (out.losses["per_sample_entropy"] - diversity)
    return entropy + meta.get("commitment_loss_weight", 0.25) * commitment, weight * diversity


def run(
    quantizer: Quantizer, meta: dict[str, Any], t: dict[str, Tensor], indices: str = "indices"
) -> tuple[Tensor, Quantized]:
    """Quantize the recorded input, check codes both ways, return the input and the result."""
    z = channels_last(meta, t, "input").requires_grad_()
    out = quantizer(z)
    assert out.codes is not None
    assert torch.equal(out.codes, t[indices])
    close("codes", out.z_q, channels_last(meta, t, "codes"), CODES)
    assert torch.equal(quantizer.codes_to_latents(t[indices]), out.z_q)
    return z, out


def gradient(z_q: Tensor, z: Tensor, meta: dict[str, Any], t: dict[str, Tensor]) -> Tensor:
    """The gradient of the latents against the recorded cotangent."""
    loss = (z_q * channels_last(meta, t, "cot")).sum()
    return torch.autograd.grad(loss, z, retain_graph=True)[0]


def tangent(unit: Tensor, gradient: Tensor) -> Tensor:
    """What normalising a unit vector leaves of a gradient: its part along the sphere."""
    unit = unit.detach()
    return gradient - unit * (unit * gradient).sum(-1, keepdim=True)


def channels_last(meta: dict[str, Any], t: dict[str, Tensor], name: str) -> Tensor:
    """A recorded tensor with its channels at the end; by its layout, or images channel first."""
    axes = meta.get("layout", "").partition(",")[0].split()
    axis = next((i for i, axis in enumerate(axes) if axis in ("d", "c")), None)
    if axis is None:
        axis = 1 if t[name].ndim >= 4 else t[name].ndim - 1
    return t[name].movedim(axis, -1).contiguous()


def close(
    name: str,
    actual: Tensor,
    expected: Tensor,
    tolerance: float = GRADIENT,
    term: Tensor | float = 1e-12,
) -> None:
    """Equal within `tolerance` of the largest recorded value; prints how close.

    Of a sum whose terms may cancel, `term` is the size of one: it is no more exact than that.
    """
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    scale = max(expected.abs().max().item(), torch.as_tensor(term).item())
    error = (actual - expected).abs().max().item() / scale
    print(f"{name}: {error:.1e} of {scale:.3g}")
    assert math.isfinite(error), name
    assert error <= tolerance, f"{name} is off by {error:.1e}, more than {tolerance:.0e}"
