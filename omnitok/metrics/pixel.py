"""Distance between two clips, frame by frame: PSNR, SSIM and flicker.

Clips are [T, C, H, W] of equal shape, uint8 in 0..255 or float in [-1, 1]. Every figure is
computed in float64, one frame at a time, on the device of the clips.
"""

import math

import torch
from torch import Tensor

MAX_PSNR = 100.0  # dB


def psnr(a: Tensor, b: Tensor, peak: float | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame, over all its channels and pixels.

    Args:
        a: [T, C, H, W].
        b: [T, C, H, W] of the same type.
        peak: Distance of black to white; by default 255 for uint8 and 2 for float.

    Returns:
        [T] float64 decibels, at most `MAX_PSNR`: equal frames would be infinite, and one of them
        would make any mean over frames infinite too.

    Raises:
        ValueError: The clips differ in shape or type.
    """
    peak = _check(a, b, peak)
    errors = [(x.double() - y.double()).square().mean() for x, y in zip(a, b, strict=True)]
    decibels = 10 * torch.log10(peak**2 / torch.stack(errors))
    return decibels.clamp(max=MAX_PSNR)


def ssim(a: Tensor, b: Tensor, peak: float | None = None) -> Tensor:
    """Return the structural similarity of each frame: the mean over pixels and channels.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error
    visibility to structural similarity", eq. 13: an 11 x 11 Gaussian window of sigma 1.5, at every
    place where it lies inside the frame, K1 = 0.01, K2 = 0.03. Each channel counts the same. On a
    side shorter than 11 pixels the window shrinks to the largest odd length that fits.

    Args:
        a: [T, C, H, W].
        b: [T, C, H, W] of the same type.
        peak: Distance of black to white; by default 255 for uint8 and 2 for float.

    Returns:
        [T] float64 in [-1, 1]; 1 for equal frames.

    Raises:
        ValueError: The clips differ in shape or type.
    """
    peak = _check(a, b, peak)
    # Luminance is measured from black, which is 0 for uint8 and -peak / 2 for float.
    black = -peak / 2 if a.is_floating_point() else 0.0
    planes = [
        _ssim_plane(x.double() - black, y.double() - black, peak)
        for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)
    ]
    return torch.stack(planes).reshape(a.shape[:2]).mean(1)


def flicker(a: Tensor, b: Tensor) -> float:
    """Return how differently two clips change: mean |(a[t+1] - a[t]) - (b[t+1] - b[t])|.

    Args:
        a: [T, C, H, W].
        b: [T, C, H, W] of the same type.

    Returns:
        The mean over pixels, in the unit of the clips; 0 for a single frame.

    Raises:
        ValueError: The clips differ in shape or type.
    """
    _check(a, b, None)
    if len(a) == 1:
        return 0.0
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    before = a[0].double() - b[0].double()
    for x, y in zip(a[1:], b[1:], strict=True):
        after = x.double() - y.double()
        total += (after - before).abs().mean()
        before = after
    return float(total / (len(a) - 1))


def _check(a: Tensor, b: Tensor, peak: float | None) -> float:
    """Refuse clips that cannot be compared; return the peak."""
    same = a.shape == b.shape and a.dtype == b.dtype and a.ndim == 4 and a.numel() > 0
    if not same or not (a.dtype == torch.uint8 or a.is_floating_point()):
        raise ValueError(
            f"clips are {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}; expected two "
            "[T, C, H, W] of one shape, uint8 or float"
        )
    return peak if peak is not None else 255.0 if a.dtype == torch.uint8 else 2.0


def _gaussian(side: int) -> list[float]:
    """Return the window along one axis, at most 11 long and no longer than `side`."""
    radius = min(11, side - 1 + side % 2) // 2
    weights = [math.exp(-(x**2) / (2 * 1.5**2)) for x in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def _blur(planes: Tensor, window: list[float], axis: int) -> Tensor:
    """Return the weighted means of [..., H, W] along one axis, at places with a whole window."""
    places = planes.shape[axis] - len(window) + 1
    means = torch.zeros_like(planes.narrow(axis, 0, places))
    for start, weight in enumerate(window):  # much faster than a convolution on a CPU
        means.add_(planes.narrow(axis, start, places), alpha=weight)
    return means


def _ssim_plane(x_HW: Tensor, y_HW: Tensor, peak: float) -> Tensor:
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    planes = torch.stack([x_HW, y_HW, x_HW**2 + y_HW**2, x_HW * y_HW])
    for axis in (1, 2):
        planes = _blur(planes, _gaussian(planes.shape[axis]), axis)
    mx, my, squares, product = planes
    mean_squares, mean_product = mx**2 + my**2, mx * my
    luminance = (2 * mean_product + c1) / (mean_squares + c1)
    structure = (2 * (product - mean_product) + c2) / (squares - mean_squares + c2)
    return torch.mean(luminance * structure)
