"""Efficient video sampling (EVS): what changed stays.

Source: NVIDIA 2025, arXiv:2510.14624.
"""

from torch import Tensor

from video.compress.plan import Plan
from video.compress.score import change
from video.compress.select import top


def evs(x_BTND: Tensor, keep: int | None = None, *, q: float = 0.75) -> Plan:
    """Keep what differs most from the same place one frame before, over the whole video.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; the first frame comes first.
        q: Without `keep`: share of the tokens that goes; the first frame always stays.
    """
    _, T, N, _ = x_BTND.shape
    keep = max(N, int(T * N * (1 - q))) if keep is None else keep
    return Plan.keep(top(change(x_BTND).flatten(1), keep), T * N)
