"""TS-LLaVA: a thumbnail, and samples.

Source: Qu et al. 2024, arXiv:2411.11066.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video.compress.plan import Plan
from video.compress.select import every


def ts_llava(x_BTND: Tensor, keep: int | None = None, *, num_samples: int = 2880) -> Plan:
    """Keep tokens at even distances over the whole video.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly.
        num_samples: Without `keep`: how many.
    """
    B, T, N, _ = x_BTND.shape
    index = every(T * N, num_samples if keep is None else keep, x_BTND.device)
    return Plan.keep(index.expand(B, -1), T * N)


def ts_llava_walk(
    frames: int, tokens: int, keep: int | None = None, *, num_samples: int = 2880
) -> Callable[[Tensor], Tensor]:
    """`ts_llava` for frames that come one after another: [B, count] places of the next one."""
    index = every(frames * tokens, num_samples if keep is None else keep)
    counts = torch.bincount(index // tokens, minlength=frames).tolist()
    parts = iter(torch.split(index % tokens, counts))
    return lambda x_BND: next(parts).to(x_BND.device).expand(len(x_BND), -1)


def thumbnail_grid(num_frames: int) -> tuple[int, int]:
    """Rows and columns of a thumbnail: as square as its frames allow, rows the more."""
    columns = max(
        c for c in range(1, num_frames + 1) if num_frames % c == 0 and c * c <= num_frames
    )
    return num_frames // columns, columns


def thumbnail(frames_TCHW: Tensor, size: int) -> Tensor:
    """Frames side by side in one square picture: [C, size, size] float."""
    rows, columns = thumbnail_grid(len(frames_TCHW))
    whole = rearrange(frames_TCHW.float(), "(r k) c h w -> c (r h) (k w)", r=rows, k=columns)
    return F.adaptive_avg_pool2d(whole, size)
