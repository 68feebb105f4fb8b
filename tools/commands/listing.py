"""`omnitok models`: the presets, and which of them ship with weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.commands.errors import DONE
from tools.commands.options import add_json
from tools.commands.reporting import Report


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "models",
        help="list the tokenizers",
        description="Weights that others published are downloaded when first used and kept in "
        "$OMNITOK_CACHE (else ~/.cache/omnitok); $OMNITOK_MIRROR is an address to get them from "
        "instead of their makers'.",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    models = [gather(name) for name in names()]
    others = gather_published()
    data = {"command": "models", "models": models, "published": others}
    Report(json=args.json).result(data, [*describe(models), "", *describe_published(others)])
    return DONE


def names() -> list[str]:
    """Shipped weights and presets."""
    from omnitok.hub import shipped
    from omnitok.presets import PRESETS

    return [*PRESETS, *(name for name in shipped() if name not in PRESETS)]


def gather(name: str) -> dict[str, Any]:
    """One tokenizer for a program; its network is shaped, but takes no memory."""
    import torch

    from omnitok.hub import shipped
    from omnitok.model import Autoencoder
    from omnitok.presets import PRESETS, preset
    from omnitok.token_facts import token_bits
    from tools.commands.loading import outline

    if name in PRESETS:
        with torch.device("meta"):
            model = Autoencoder(preset(name))
    else:
        model = outline(name).model
    config = model.config
    size, books = model.quantizer.codebook_size, model.quantizer.num_codebooks
    weights = shipped().get(name)
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "patch": list(config.patch),
        "kind": "latents" if size is None else "codes",
        "codebook_size": size,
        "num_codebooks": None if size is None else books,
        "latent_dim": model.quantizer.dim,
        "bits_per_token": token_bits(size, model.quantizer.dim if size is None else books),
        "weights": None if weights is None else str(weights),
        "card": None if weights is None else read_model_card(weights),
    }


def gather_published() -> list[dict[str, Any]]:
    """The weights that others published, for a program."""
    from omnitok.interop.registry import PUBLISHED

    return [
        {
            "name": name,
            "parameters": entry.parameters,
            "patch": entry.patch and list(entry.patch),
            "codebook_size": entry.codebook_size,
            "num_codebooks": entry.num_codebooks if entry.codebook_size else None,
            "latent_dim": entry.latent_dim,
            "address": entry.address,
            "weights": str(entry.path) if entry.path.exists() else None,
        }
        for name, entry in PUBLISHED.items()
    ]


def read_model_card(weights: Path) -> dict[str, Any] | None:
    """The JSON object beside shipped weights, if there is one."""
    path = weights.with_suffix(".json")
    if not path.exists():
        return None
    card: dict[str, Any] = json.loads(path.read_text())
    return card


def describe(models: list[dict[str, Any]]) -> list[str]:
    """The table for a person."""
    rows = [("name", "parameters", "patch", "tokens", "bits/token", "weights")]
    notes = []
    for model in models:
        rows.append(
            (
                model["name"],
                f"{model['parameters'] / 1e6:.1f} M",
                "x".join(str(n) for n in model["patch"]),
                _tokens(model),
                f"{model['bits_per_token']:.2f}",
                "shipped" if model["weights"] else "none: a shape to train",
            )
        )
        card = model["card"] or {}
        told = [f"{key} {card[key]}" for key in ("licence", "license", "score") if card.get(key)]
        if told:
            notes.append(f"{model['name']}: {', '.join(told)}")
    return _aligned(rows) + ([""] if notes else []) + notes


def describe_published(models: list[dict[str, Any]]) -> list[str]:
    """The table of weights that others published, for a person."""
    rows = [("published by others", "parameters", "patch", "tokens", "weights")]
    for model in models:
        pixels = model["patch"] is not None
        rows.append(
            (
                model["name"],
                f"{model['parameters'] / 1e6:.1f} M",
                "x".join(str(n) for n in model["patch"]) if pixels else "-",
                _tokens(model) if pixels else "voxels to 3D Gaussians",
                model["weights"] or "downloaded when first used",
            )
        )
    return _aligned(rows)


def _tokens(model: dict[str, Any]) -> str:
    if model["codebook_size"] is None:
        return f"{model['latent_dim']} latents"
    books = f" x {model['num_codebooks']}" if model["num_codebooks"] > 1 else ""
    return f"codes of {model['codebook_size']:,}{books}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]
