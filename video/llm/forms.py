"""How each class of `transformers` takes visual tokens, and where its decoder layers are."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from torch import nn

PIXELS = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """Facts about a class of model.

    Attributes:
        doors: Modality -> form of its encoded tokens: "block" [items, K, D] or "list" of [K, D].
        mrope: Positions have three axes (time, row, column), worked out by `get_rope_index`.
        newline: Rows equal to the model's `image_newline` separate lines or clips; they stay.
        frames_are_images: A video is a row of images of equal size in the prompt.
    """

    doors: dict[str, str] = field(default_factory=dict)
    mrope: bool = False
    newline: bool = False
    frames_are_images: bool = False


_LISTS = {"image": "list", "video": "list"}
FORMS = {
    "llava_onevision": Form(doors={"image": "list", "video": "block"}, newline=True),
    "llava_next_video": Form(doors=_LISTS, newline=True),
    "qwen2_vl": Form(doors=_LISTS, mrope=True),
    "qwen2_5_vl": Form(doors=_LISTS, mrope=True),
    "qwen3_vl": Form(doors=_LISTS, mrope=True),
    "qwen3_vl_moe": Form(doors=_LISTS, mrope=True),
    "internvl": Form(doors={"image": "block"}, frames_are_images=True),
    "smolvlm": Form(doors={"image": "list"}, frames_are_images=True),
}


def form_of(model: nn.Module) -> Form:
    """How this model takes visual tokens.

    Raises:
        ModuleNotFoundError: `transformers` is not installed.
        ValueError: Its class is not one of those known.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError(
            "video.llm needs transformers, which is not installed; pip install 'omnitok[llm]'"
        )
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FORMS:
        raise ValueError(
            f"no form is known for models of type {kind!r}; known are {sorted(FORMS)}; give a "
            "`Form` of your own as form="
        )
    return FORMS[kind]


def base_of(model: Any) -> Any:
    """The model without its language head: the one that encodes images and videos."""
    return model.base_model


def text_of(model: Any) -> Any:
    """The language model inside."""
    base = base_of(model)
    return base.language_model if hasattr(base, "language_model") else base.text_model


def layers_of(model: Any) -> list[Any]:
    """Its decoder layers, first to last."""
    return list(text_of(model).layers)
