"""Changes of colour for training clips."""

from __future__ import annotations

import kornia.enhance as enhance
import numpy as np
import torch

from video.data.crops import Pixels, Rng


def jitter(rng: Rng, clip_THWC: Pixels, most: float) -> Pixels:
    """Change brightness, contrast and saturation of a whole clip by factors in 1 +- most."""
    brightness, contrast, saturation = (float(1 + most * rng.uniform(-1, 1)) for _ in range(3))
    x = torch.from_numpy(np.ascontiguousarray(clip_THWC)).permute(0, 3, 1, 2).float() / 255
    x = enhance.adjust_brightness_accumulative(x, brightness)
    x = enhance.adjust_contrast(x, contrast)
    x = enhance.adjust_saturation(x, saturation)
    return x.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()
