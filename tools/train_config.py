"""From the command line to a run: configs composed by hydra, checked by our dataclasses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from omnitok.train.config import ConfigError, TrainConfig, from_dict
from tools.feature_nets import folder as features

OmegaConf.register_new_resolver("features", lambda name: str(features() / f"{name}.safetensors"))
CONFIGS = Path(__file__).parents[1] / "configs"
FOLDER = "data=folder"  # the config of files of one's own


def read_config(overrides: Sequence[str], folder: str | Path | None = None) -> TrainConfig:
    """Compose a run from config groups and single values.

    Args:
        overrides: As on the command line: "curriculum=tiny-kl", "optim.lr=1e-4", "data=PATH".
        folder: A folder of further configs, searched first.

    Raises:
        ConfigError: A choice, a key or a value is wrong; the message names it.
    """
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"--configs {folder} is no folder")
    given = [_form(override, folder) for override in overrides]
    if folder is not None:
        given.append(f"hydra.searchpath=[file://{Path(folder).resolve()}]")
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", given)
        for override, form in zip(overrides, given, strict=False):
            if form == FOLDER != override:
                config.folder = override.partition("=")[2].replace("${", "\\${")
        values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reasons = [error, *([error.__cause__] if error.__cause__ is not None else [])]
        raise ConfigError(": ".join(" ".join(str(reason).split()) for reason in reasons)) from None
    assert isinstance(values, dict)
    values.pop("folder", None)
    return from_dict(TrainConfig, values)


def _form(override: str, folder: str | Path | None) -> str:
    """An override as hydra takes it: a choice of a group, or a value, whether it is there or not.

    `data=PATH` chooses the config "folder", unless there is a config of that name.
    """
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[\w./-]+", key):
        raise ConfigError(f"{override!r} is no setting; expected key=value")
    places = [CONFIGS, *([Path(folder)] if folder is not None else [])]
    choices = sorted(path.stem for place in places for path in (place / key).glob("*.yaml"))
    groups = [path.name for place in places for path in place.iterdir() if path.is_dir()]
    known = [*(entry.name for entry in fields(TrainConfig)), *groups]
    if key.split(".")[0] not in known and (near := difflib.get_close_matches(key, groups, 1)):
        raise ConfigError(f"unknown key {key!r}; did you mean {near[0]!r}?")
    if not choices or value.startswith("{"):
        return f"++{key}={value}"
    if value in choices:
        return override
    if key == "data" and Path(value).exists():
        return FOLDER  # the path would need quotes
    if key == "data":
        choices.append("the path of a folder, a .tar or a list that exists")
    near = difflib.get_close_matches(value, choices, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {choices}"
    raise ConfigError(f"there is no {key} {value!r}; {hint}")
