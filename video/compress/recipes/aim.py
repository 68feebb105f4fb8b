"""AIM: merging before the language model.

Source: Zhong et al. 2024, arXiv:2412.03248.
"""

from torch import Tensor

from video.compress.budget import Keep, Pick, per_frame
from video.compress.plan import Plan
from video.compress.recipes.tome import tome_to


def aim(x_BTND: Tensor, keep: Keep | None = None) -> Plan:
    """Halve the tokens of each frame again and again; every average counts both sides alike.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample (or frame), exactly; two rounds by default, to a quarter.
    """
    B, T, N, _ = x_BTND.shape
    if keep is None:
        half = N - N // 2
        keep = T * (half - N // 4)

    def decide(pick: Pick, count: int) -> Plan:
        return tome_to(pick(x_BTND), count, norm="mean")

    return per_frame(B, T, N, keep, decide)
