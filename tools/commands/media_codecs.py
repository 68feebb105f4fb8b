"""Common codecs at a given number of bytes: what they make of the same frames.

H.264 (x264) and AV1 (SVT-AV1) for video, JPEG and WebP for pictures. Only what carries pixels is
counted: streams without a container.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tools.commands.eval_data import Item

Codec = tuple[Callable[["Tensor", int], Any], Callable[[Any], "Tensor"], Callable[[Any], int], int]
FOR = {"video": ("x264", "AV1"), "image": ("JPEG", "WebP")}


def available(name: str) -> bool:
    """Whether this build of the media libraries has an encoder and a decoder."""
    if name == "AV1":
        import av

        return {"libsvtav1", "libdav1d"} <= av.codecs_available
    if name == "WebP":
        from PIL import features

        return bool(features.check("webp"))
    return True


def code(name: str, item: Item, num_bytes: float) -> tuple[Tensor, int]:
    """Frames that come back from at most so many bytes (or the fewest there can be), and how many.

    Args:
        name: "x264", "AV1", "JPEG" or "WebP".
        item: What to compress.
        num_bytes: Budget.
    """
    encode, decode, size, best = _CODECS[name]
    data = within(partial(encode, item.frames), size, best, num_bytes)
    height, width = item.frames.shape[2:]
    return decode(data)[:, :, :height, :width], size(data)


def within(
    encode: Callable[[int], Any], size: Callable[[Any], int], best: int, num_bytes: float
) -> Any:
    """The code of the highest quality, 0 to `best`, that fits, or else that of quality 0."""
    found, low, high = encode(0), 0, best
    while low < high:  # sizes grow with the quality
        middle = (low + high + 1) // 2
        data = encode(middle)
        if size(data) <= num_bytes:
            found, low = data, middle
        else:
            high = middle - 1
    return found


def _even(frames: Tensor) -> Tensor:
    """Edge pixels repeated to even sides, as subsampled colour needs."""
    from torch.nn import functional as F

    height, width = frames.shape[2:]
    if height % 2 or width % 2:
        padded = F.pad(frames.float(), (0, width % 2, 0, height % 2), mode="replicate")
        return padded.to(frames.dtype)
    return frames


def _packets(frames: Tensor, codec: str, options: dict[str, str]) -> list[bytes]:
    import av

    frames = _even(frames)
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width = frames.shape[2:]
    context.pix_fmt, context.framerate, context.time_base = "yuv420p", 30, Fraction(1, 30)
    context.options, context.thread_count = options, 1
    packets = []
    for number, pixels in enumerate(frames.permute(0, 2, 3, 1).contiguous().numpy()):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    return [bytes(packet) for packet in packets]


def _frames(packets: list[bytes], codec: str) -> Tensor:
    import av
    import numpy as np
    import torch

    context: Any = av.CodecContext.create(codec, "r")
    frames = [frame for data in packets for frame in context.decode(av.Packet(data))]
    frames += context.decode(None)
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _x264(frames: Tensor, quality: int) -> list[bytes]:
    return _packets(frames, "libx264", {"crf": str(51 - quality), "preset": "medium"})


def _av1(frames: Tensor, quality: int) -> list[bytes]:
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    options = {"crf": str(63 - quality), "preset": "8", "svtav1-params": "lp=1"}
    return _packets(frames, "libsvtav1", options)


def _picture(frames: Tensor, quality: int, kind: str) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    pixels = frames[0].permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(data, kind, quality=quality, optimize=kind == "JPEG")
    return data.getvalue()


def _pixels(data: bytes) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def _total(packets: list[bytes]) -> int:
    return sum(map(len, packets))


_CODECS: dict[str, Codec] = {
    "x264": (_x264, partial(_frames, codec="h264"), _total, 51),
    "AV1": (_av1, partial(_frames, codec="libdav1d"), _total, 63),
    "JPEG": (partial(_picture, kind="JPEG"), _pixels, len, 95),
    "WebP": (partial(_picture, kind="WEBP"), _pixels, len, 100),
}
