"""Frames through H.264 at a given number of bytes: what a common video codec makes of them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WORST = 51  # largest rate factor of x264 at 8 bits


def encode(frames: Tensor, crf: int) -> bytes:
    """uint8 [T, 3, H, W] frames as a bare H.264 stream of constant rate factor."""
    import av

    stream_bytes = io.BytesIO()
    with av.open(stream_bytes, "w", format="h264") as container:
        options = {"crf": str(crf), "preset": "medium", "threads": "1"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = "yuv444p" if stream.height % 2 or stream.width % 2 else "yuv420p"
        for pixels in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        return stream_bytes.getvalue()


def decode(data: bytes) -> Tensor:
    """The frames of such a stream."""
    import av
    import numpy as np
    import torch

    with av.open(io.BytesIO(data), "r", format="h264") as container:
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def within(frames: Tensor, num_bytes: float) -> bytes:
    """The stream of the best quality that takes no more than `num_bytes`, or else the smallest."""
    best, low, high = encode(frames, WORST), 0, WORST
    while low < high:  # sizes fall with the factor
        middle = (low + high) // 2
        data = encode(frames, middle)
        if len(data) <= num_bytes:
            best, high = data, middle
        else:
            low = middle + 1
    return best
