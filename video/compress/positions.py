"""Where tokens are."""

import torch
from torch import Tensor


def grid_positions(
    grid: tuple[int, int, int],
    pts: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Places of the tokens of a grid, row by row, frame by frame.

    Args:
        grid: (t, h, w) in tokens.
        pts: [t] times in seconds, which then take the place of frame numbers.
        device: Where the result is.

    Returns:
        [t * h * w, 3] float64: time or frame, row, column.

    Raises:
        ValueError: There is not one time for each frame.
    """
    t, h, w = grid

    def numbers(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.float64, device=device)

    times = numbers(t) if pts is None else pts.to(device, torch.float64)
    if times.shape != (t,):
        raise ValueError(f"pts are {list(times.shape)}; the grid {grid} needs one time a frame")
    return torch.cartesian_prod(times, numbers(h), numbers(w)).view(t * h * w, 3)


def frame_grid(num_tokens: int, grid: tuple[int, ...] | None = None) -> tuple[int, int]:
    """Rows and columns of a frame of tokens.

    Args:
        num_tokens: Tokens of a frame.
        grid: (h, w), or (t, h, w) of the whole; taken as a square where not given.

    Raises:
        ValueError: The grid does not hold that many tokens, or they make no square.
    """
    side = round(num_tokens**0.5)
    h, w = (side, side) if grid is None else grid[-2:]
    if h * w != num_tokens:
        raise ValueError(
            f"a frame has {num_tokens} tokens, the grid is {grid}; pass grid=(h, w) with "
            f"h * w = {num_tokens}"
        )
    return h, w
