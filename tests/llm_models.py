"""Tiny vision-language models of real `transformers` classes, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

IMAGE, VIDEO, START, END, PAD = 199, 198, 197, 196, 0
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}
QWEN2 = {"model_type": "qwen2", **TEXT}
LLAMA = {"model_type": "llama", **TEXT}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
CLIP = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32}
del CLIP["vision_use_head"]


@dataclass
class Tiny:
    """A model and how its prompts are written; a frame takes 4 tokens in all of them.

    Attributes:
        name: Its class, in short.
        model: In eval mode, with seeded weights.
        pair: Frames that share their tokens.
    """

    name: str
    model: Any
    pair: int = 1

    @property
    def mrope(self) -> bool:
        return self.name.startswith("qwen")

    @property
    def frames_are_images(self) -> bool:
        return self.name in ("internvl", "smolvlm")

    def video(self, frames: int, seed: int = 1, repeat: int = 1) -> Tensor:
        """[frames * repeat * pair, 3, side, side]; each frame `repeat` times in a row."""
        side = 64 if self.name == "smolvlm" else 56
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(frames, 3, side, side, generator=generator)
        return x.repeat_interleave(repeat * self.pair, 0)

    def image(self, seed: int = 1) -> Tensor:
        """[3, side, side]."""
        return self.video(1, seed)[0]

    def prompts(self, *samples: Sequence[Any]) -> dict[str, Any]:
        """Inputs of `forward` for a batch.

        Args:
            *samples: Each a sequence of ids of words, videos (4 axes) and images (3 axes).
        """
        rows = [[i for part in sample for i in self._ids(part)] for sample in samples]
        length = max(map(len, rows))
        ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask}
        pixels = [[p for p in sample if isinstance(p, Tensor)] for sample in samples]
        every = [p for sample in pixels for p in sample]
        videos, images = [p for p in every if p.ndim == 4], [p for p in every if p.ndim == 3]
        if self.mrope:
            inputs["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
            for name, items in (("videos", videos), ("", images)):
                if items:
                    inputs |= _patches(
                        name, [p if p.ndim == 4 else p.expand(2, *p.shape) for p in items]
                    )
            if self.name == "qwen2_5_vl" and videos:
                inputs["second_per_grid_ts"] = torch.ones(len(videos))
        elif self.frames_are_images:
            frames = [
                torch.cat([p.reshape(-1, *p.shape[-3:]) for p in sample]) for sample in pixels
            ]
            if self.name == "internvl":
                inputs["pixel_values"] = torch.cat(frames)
            else:
                most = max(map(len, frames))
                inputs["pixel_values"] = torch.stack(
                    [torch.cat([f, f.new_zeros(most - len(f), *f.shape[1:])]) for f in frames]
                )
        else:
            if videos:
                inputs["pixel_values_videos"] = torch.stack(videos)
            if images:
                inputs["pixel_values"] = torch.stack([p.expand(2, *p.shape) for p in images])
                inputs["image_sizes"] = torch.tensor([[56, 56]] * len(images))
        return inputs

    def _ids(self, part: Any) -> list[int]:
        if not isinstance(part, Tensor):
            return list(part)
        still = part.ndim == 3
        if self.frames_are_images:
            return [i for t in range(1 if still else len(part)) for i in (20 + t, *[IMAGE] * 4)]
        if still:
            return [IMAGE] * 4 if self.mrope else [IMAGE] * 36
        frames = len(part) // self.pair
        if self.name == "qwen3_vl":
            return [i for t in range(frames) for i in (20 + t, START, *[VIDEO] * 4, END)]
        return [VIDEO] * (4 * frames + (self.name == "llava_onevision"))


def _patches(name: str, clips: list[Tensor]) -> dict[str, Tensor]:
    flat = [
        rearrange(
            clip,
            "(t p) c (h a i) (w b j) -> (t h w a b) (c p i j)",
            p=2,
            h=2,
            a=2,
            i=14,
            b=2,
            j=14,
        )
        for clip in clips
    ]
    grid = torch.tensor([[len(clip) // 2, 4, 4] for clip in clips])
    if name == "videos":
        return {"pixel_values_videos": torch.cat(flat), "video_grid_thw": grid}
    return {"pixel_values": torch.cat(flat), "image_grid_thw": grid}


def llava_onevision() -> Tiny:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=QWEN2,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[56, 56]],
    )
    return Tiny("llava_onevision", _made(LlavaOnevisionForConditionalGeneration, config))


def llava_next_video() -> Tiny:
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    config = LlavaNextVideoConfig(
        vision_config=CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_grid_pinpoints=[[56, 56]],
        spatial_pool_stride=2,
    )
    return Tiny("llava_next_video", _made(LlavaNextVideoForConditionalGeneration, config))


def qwen2_5_vl() -> Tiny:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
            "tokens_per_second": 2,
        },
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return Tiny("qwen2_5_vl", _made(Qwen2_5_VLForConditionalGeneration, config), pair=2)


def qwen3_vl() -> Tiny:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    model = _made(Qwen3VLForConditionalGeneration, Qwen3VLConfig(**_qwen3()))
    return Tiny("qwen3_vl", model, pair=2)


def _qwen3() -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}
    return {
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 14,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        "text_config": {**TEXT, "head_dim": 16, "rope_parameters": rope},
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def qwen2_vl() -> Tiny:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "mlp_ratio": 2,
        },
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return Tiny("qwen2_vl", _made(Qwen2VLForConditionalGeneration, config), pair=2)


def qwen3_vl_moe() -> Tiny:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = Qwen3VLMoeConfig(**{**_qwen3(), "text_config": {**_qwen3()["text_config"], **experts}})
    return Tiny("qwen3_vl", _made(Qwen3VLMoeForConditionalGeneration, config), pair=2)


def internvl() -> Tiny:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        text_config=QWEN2,
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return Tiny("internvl", _made(InternVLForConditionalGeneration, config))


def smolvlm() -> Tiny:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        text_config=LLAMA,
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return Tiny("smolvlm", _made(SmolVLMForConditionalGeneration, config))


def _made(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the usual 0.02 leaves all logits alike
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


MAKERS = {
    f.__name__: f
    for f in (llava_onevision, llava_next_video, qwen2_5_vl, qwen3_vl, internvl, smolvlm)
}
SISTERS = {f.__name__: f for f in (qwen2_vl, qwen3_vl_moe)}  # of those above
