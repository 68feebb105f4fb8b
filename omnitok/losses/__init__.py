"""Training losses, one idea a file."""

from omnitok.losses.base import LossConfig, LossInputs
from omnitok.losses.build import CONFIGS, LossResult, LossSet, build, config_of

__all__ = ["CONFIGS", "LossConfig", "LossInputs", "LossResult", "LossSet", "build", "config_of"]
