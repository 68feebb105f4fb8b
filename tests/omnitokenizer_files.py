"""Small files in the layout of the published weights of OmniTokenizer, with random numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnitok.interop.omnitokenizer import published_name
from omnitok.interop.omnitokenizer_config import config_of
from omnitok.interop.omnitokenizer_net import OmniTokenizerNet
from omnitok.interop.omnitokenizer_parts import displacements

SETTINGS: dict[str, Any] = {
    "embedding_dim": 24,
    "heads": 2,
    "dim_head": 8,
    "patch_embed": "linear",
    "patch_size": 4,
    "temporal_patch_size": 4,
    "enc_block": "tw",
    "dec_block": "tt",
    "temporal_depth": 2,
    "spatial_depth": 2,
    "twod_window_size": 4,
    "spatial_pos": "rope",
    "casual_in_temporal_transformer": True,
    "casual_in_peg": True,
    "ff_mult": 4.0,
    "attn_dropout": 0.0,
    "ff_dropout": 0.0,
    "defer_temporal_pool": False,
    "defer_spatial_pool": False,
    "gen_upscale": None,
    "n_codes": 32,
    "codebook_dim": 8,
    "l2_code": True,
    "no_random_restart": True,
    "restart_thres": 1.0,
    "use_external_codebook": False,
    "use_vae": False,
    "kl_weight": 0.0,
    "sequence_length": 9,
    "resolution": 64,
    "image_channels": 3,
    "q_strides": "1111",
    "use_checkpoint": False,
    "gpus": 8,
}


def omnitokenizer_state(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Tensors of a small model by their published names, with those that it never uses."""
    config = config_of("small", SETTINGS | changes, {})
    torch.manual_seed(seed)
    model = OmniTokenizerNet(config)
    with torch.no_grad():
        for parameter in (*model.parameters(), *model.buffers()):
            if parameter.ndim == 1:
                parameter.normal_(mean=1.0, std=0.3)
            elif parameter.is_floating_point() and parameter.ndim:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    state = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    state.pop("quantizer.initialised", None)
    for name in ("embeddings", "z_avg", "N"):  # theirs have no axis for several codebooks
        if f"codebook.{name}" in state:
            state[f"codebook.{name}"] = state[f"codebook.{name}"][0].clone()
    state.setdefault("codebook.embeddings", torch.zeros(16, config.quantizer.dim))
    for name in list(state):
        stem = name.removesuffix("to_q.weight")
        if stem != name:
            state |= {
                f"{stem}context_norm.{part}": torch.ones(config.width) for part in ("gamma", "beta")
            }
            if "temporal" in stem:
                state[f"{stem}spatial_rel_pos_bias.net.2.bias"] = torch.ones(config.heads)
        if name.endswith("relative_position_bias_table"):
            index = displacements(config.window, config.window, torch.device("cpu"))[1]
            state[name.replace("bias_table", "index")] = index.clone()
    extras = ("image_discriminator.a", "perceptual_model.lin0", "video_perceptual_model.b")
    return state | {name: torch.ones(2) for name in extras}


def save_omnitokenizer(path: Path, state: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a file as published: settings in a namespace; None for a setting leaves it out."""
    settings = {name: value for name, value in (SETTINGS | changes).items() if value != "absent"}
    contents = {
        "epoch": 3,
        "pytorch-lightning_version": "1.5.4",
        "state_dict": omnitokenizer_state(**changes) if state is None else state,
        "hyper_parameters": {"args": argparse.Namespace(**settings)},
        "optimizer_states": [],
    }
    torch.save(contents, path)
    return path
