"""Tokenizers for commands: by name, or by what a token file asks for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tools.commands.errors import InputError, UsageError

if TYPE_CHECKING:
    from omnitok import Tokenizer
    from omnitok.interop.atoken_gaussians import GaussianDecoder


def pick_device(name: str) -> str:
    """The device to compute on; "auto" is a GPU if there is one.

    Raises:
        UsageError: There is no such device.
    """
    import torch

    gpus = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{n}" for n in range(gpus))]
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name not in known:
        raise UsageError(f"there is no device {name!r} here; choose one of {['auto', *known]}")
    return name


def load(name: str, args: argparse.Namespace) -> Tokenizer:
    """Load the tokenizer that --model, --device and --dtype name.

    Raises:
        UsageError: There is no such device, or there are no such weights.
    """
    return _tokenizer(name, _load("--model", name, args))


def _load(option: str, name: str, args: argparse.Namespace) -> object:
    """Whatever the weights are of that an option names."""
    import torch

    import omnitok
    from omnitok.checkpoint import CheckpointError
    from omnitok.interop.download import Meter
    from omnitok.native.build import library

    progress = (lambda *_: None) if getattr(args, "quiet", False) else Meter()
    device = pick_device(args.device)
    if device == "cpu":
        library()  # made now, if it has to be, and not while a clip is timed
    try:
        return omnitok.load(name, device, getattr(torch, args.dtype), progress)
    except CheckpointError as error:
        raise UsageError(f"{option} {name}: {error}") from error


def _tokenizer(name: str, loaded: object) -> Tokenizer:
    """Refuse networks that are no tokenizers."""
    from omnitok import Tokenizer

    if not isinstance(loaded, Tokenizer):
        raise UsageError(
            f"--model {name}: its {type(loaded).__name__} takes voxels, not frames; give a "
            "tokenizer from `omnitok models`"
        )
    return loaded


def outline(name: str) -> Tokenizer:
    """The tokenizer that --model names without its weights, for what it makes of clips.

    Raises:
        UsageError: There are no such weights here; nothing is downloaded.
    """
    from omnitok.checkpoint import CheckpointError
    from omnitok.hub import open_named
    from omnitok.interop.registry import PUBLISHED

    if name in PUBLISHED and not PUBLISHED[name].path.exists():
        raise UsageError(
            f"--model {name}: the weights are not here yet, and this would only say what it does; "
            f"leave --dry-run out to download {PUBLISHED[name].address}"
        )
    try:
        outlined = open_named(name).outline()
    except CheckpointError as error:
        raise UsageError(f"--model {name}: {error}") from error
    return _tokenizer(name, outlined)


class ByTokens:
    """The tokenizers that token files ask for, each loaded once.

    Args:
        args: With `model` (None to go by the hash in the file), `device` and `dtype`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._loaded: dict[str, Tokenizer] = {}
        self._gaussians: GaussianDecoder | None = None

    def get(self, path: str) -> Tokenizer:
        """The tokenizer for a token file; one given by --model is taken as it is.

        Raises:
            TokensError: The file is damaged.
            InputError: Its weights do not ship with omnitok.
            UsageError: The weights or the device that the options name are not there.
        """
        return self._load(self.name_for(path))

    def name_for(self, path: str) -> str:
        """The name of the tokenizer for a token file; nothing is downloaded.

        Raises:
            TokensError: The file is damaged.
            InputError: Its weights do not ship with omnitok.
        """
        from omnitok.hub import shipped
        from omnitok.interop.registry import name_of_hash
        from omnitok.token_layout import TokenFile

        if self._args.model is not None:
            return self._args.model  # type: ignore[no-any-return]
        with TokenFile(path) as file:
            info = file.layout.info
        if (published := name_of_hash(info.weights_sha256)) is not None:
            return published
        names = sorted(shipped(), key=lambda name: name != info.name)
        for name in names:
            if self._load(name).weights_sha256 == info.weights_sha256:
                return name
        raise InputError(
            f"{path} was made by {info.name!r} with weights {info.weights_sha256[:12]}, which do "
            f"not ship with omnitok ({names}); give them with --model"
        )

    def gaussians(self, name: str) -> GaussianDecoder:
        """The decoder from AToken's voxels to Gaussians that --gaussians names.

        Raises:
            UsageError: It is not there, or is something else.
        """
        from omnitok.interop.atoken_gaussians import GaussianDecoder

        if self._gaussians is None:
            loaded = _load("--gaussians", name, self._args)
            if not isinstance(loaded, GaussianDecoder):
                raise UsageError(
                    f"--gaussians {name}: these are weights of a {type(loaded).__name__}, not of a "
                    "decoder of Gaussians such as atoken-gaussians"
                )
            self._gaussians = loaded
        return self._gaussians

    def _load(self, name: str) -> Tokenizer:
        if name not in self._loaded:
            self._loaded[name] = load(name, self._args)
        return self._loaded[name]


def shipped_hashes() -> dict[str, str]:
    """Name of the shipped weights -> hash of their tensors.

    Raises:
        CheckpointError: They are damaged.
    """
    import omnitok
    from omnitok.hub import shipped

    return {name: omnitok.load(path).weights_sha256 for name, path in shipped().items()}
