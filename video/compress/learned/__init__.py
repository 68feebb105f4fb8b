"""Resamplers with weights: modules that turn many tokens into a few learned ones."""

import torch
from torch import Tensor

from video.compress.learned.blip3_video import (
    AttentionPool,
    GroupedTuringMachine,
    VideoTuringMachine,
)
from video.compress.learned.llava_mini import MiniCompressor
from video.compress.learned.lookup_vit import LookupViT
from video.compress.learned.pvc import ProgressiveCompressor
from video.compress.learned.registers import Registers
from video.compress.learned.token_flex import TokenFlex
from video.compress.learned.token_learner import (
    TokenFuser,
    TokenLearner,
    TokenLearnerAttention,
    TokenLearnerConv,
)
from video.compress.learned.token_packer import TokenPacker
from video.compress.learned.turing import AddEraseWrite, TokenTuringMachine
from video.compress.learned.vistog import VisualGrouping
from video.compress.plan import Plan

__all__ = [
    "AddEraseWrite",
    "AttentionPool",
    "GroupedTuringMachine",
    "LookupViT",
    "MiniCompressor",
    "ProgressiveCompressor",
    "Registers",
    "TokenFlex",
    "TokenFuser",
    "TokenLearner",
    "TokenLearnerAttention",
    "TokenLearnerConv",
    "TokenPacker",
    "TokenTuringMachine",
    "VideoTuringMachine",
    "VisualGrouping",
    "weights_plan",
]


def weights_plan(weights_BSN: Tensor) -> Plan:
    """What a resampler looked at, as a plan to draw or inspect.

    Args:
        weights_BSN: [B, S, N] weight of each token in each output, or attention.

    Returns:
        A plan whose outputs are represented by the tokens of largest weight.
    """
    weights = weights_BSN.detach().float()
    batch, out, src = torch.ones_like(weights).nonzero(as_tuple=True)
    return Plan.build(batch, out, src, weights.flatten(), weights.argmax(-1), weights.shape[2])
