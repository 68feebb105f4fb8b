"""Losses that make tokens mean something: distillation, and contrast with captions.

Both look at the mean over the tokens of a clip, through a linear head that is trained along
(`LossSet.head_parameters`).

Shape suffixes: B clips, N tokens, D width of the tokens, E width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from omnitok.losses.base import Loss, LossConfig, LossInputs

Teacher = Callable[[Tensor], Tensor]
Reader = Callable[[Sequence[str]], Tensor]


@dataclass(kw_only=True, slots=True)
class SemanticConfig(LossConfig):
    """What all semantic losses need.

    Attributes:
        width: Channels of the tokens (D).
        embedding: Channels of what they are compared with (E).
    """

    width: int
    embedding: int

    def __post_init__(self) -> None:
        LossConfig.__post_init__(self)
        self.check_positive("width", "embedding")


@dataclass(kw_only=True, slots=True)
class DistillConfig(SemanticConfig):
    """Distillation from a frozen image encoder.

    Attributes:
        kind: "cosine": 1 - cosine; "l2": mean square; "captions": divergence of the softmax over
            the similarities with the captions of the batch, as in AToken.
        temperature: Of that softmax.
        frames: Frames of each clip that the teacher sees, drawn at random; None for all.
        side: Scale them to this many pixels square; None for their own size.
    """

    kind: str = "cosine"
    temperature: float = 2.0
    frames: int | None = 1
    side: int | None = None

    def __post_init__(self) -> None:
        SemanticConfig.__post_init__(self)
        self.check_choice("kind", ("cosine", "l2", "captions"))
        self.check_positive("temperature", "frames", "side")


@dataclass(kw_only=True, slots=True)
class ContrastiveConfig(SemanticConfig):
    """Sigmoid contrastive loss with captions.

    Attributes:
        scale: Of the cosine at first; learned.
        bias: Of the logit at first; learned.
    """

    scale: float = 10.0
    bias: float = -10.0

    def __post_init__(self) -> None:
        SemanticConfig.__post_init__(self)
        self.check_positive("scale")


def sigmoid_contrast(
    image_BE: Tensor, text_ME: Tensor, scale: Tensor, bias: Tensor, first: int = 0
) -> Tensor:
    """Mean over images of -sum over texts of log sigmoid(+-(scale * cosine + bias)).

    Args:
        image_BE: Embeddings.
        text_ME: Embeddings; the text of image n is number `first + n`, and no other.
        scale: Factor on the cosine.
        bias: Added to it.
        first: Number of the first image's text.

    Source: Zhai et al. 2023, arXiv:2303.15343, algorithm 1.
    """
    cosine_BM = F.normalize(image_BE, dim=-1) @ F.normalize(text_ME, dim=-1).T
    own = torch.arange(len(image_BE), device=image_BE.device) + first
    sign_BM = -torch.ones_like(cosine_BM)
    sign_BM[torch.arange(len(own), device=own.device), own] = 1
    return -F.logsigmoid(sign_BM * (scale * cosine_BM + bias)).sum(1).mean()


def caption_divergence(student_BE: Tensor, teacher_BE: Tensor, text_ME: Tensor, t: float) -> Tensor:
    """Mean KL(softmax(teacher . text / t) || softmax(student . text / t)).

    Source: AToken, arXiv:2509.14476, section 3.3; similarities are cosines.
    """
    text_EM = F.normalize(text_ME, dim=-1).T
    wanted, got = (
        (F.normalize(x, dim=-1) @ text_EM / t).log_softmax(-1) for x in (teacher_BE, student_BE)
    )
    return F.kl_div(got, wanted, reduction="batchmean", log_target=True)


def all_texts(text_BE: Tensor) -> tuple[Tensor, int]:
    """The embeddings of all processes, and the number of our first one; they get no gradient."""
    if not (dist.is_available() and dist.is_initialized()):
        return text_BE.detach(), 0
    parts = [torch.empty_like(text_BE) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, text_BE.detach().contiguous())
    return torch.cat(parts), dist.get_rank() * len(text_BE)


class _Semantic(Loss):
    config: SemanticConfig

    def __init__(self, config: SemanticConfig, reader: Reader | None) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.width, config.embedding)
        self._reader = [reader]  # in a list: no part of this module, nor of a checkpoint

    def embed(self, inputs: LossInputs) -> Tensor:
        """[B, E] of the clips."""
        if inputs.features is None or inputs.features.shape[-1] != self.config.width:
            got = None if inputs.features is None else list(inputs.features.shape)
            raise ValueError(
                f"a semantic loss got features {got}; it needs the tokens of the encoder, "
                f"[B, N, {self.config.width}]"
            )
        return self.head(inputs.features.float().mean(1))  # type: ignore[no-any-return]

    def captions(self, inputs: LossInputs) -> tuple[Tensor, int]:
        """[M, E] of all captions, and the number of our first."""
        text = inputs.text
        if text is None:
            key = ("captions", id(self._reader[0]))
            text = inputs.share(key, lambda: self._read(inputs.captions))
        if text.shape[-1] != self.config.embedding:
            raise ValueError(
                f"captions have embeddings of {text.shape[-1]} numbers, but the loss is set to "
                f"embedding={self.config.embedding}"
            )
        return all_texts(text.float())

    def _read(self, captions: list[str] | None) -> Tensor:
        """[B, E] of the text encoder."""
        if captions is None:
            raise ValueError("this semantic loss needs a caption of each clip, or its embedding")
        if (reader := self._reader[0]) is None:
            raise ValueError(
                "captions are text, and there is no text encoder; give the loss `texts`, a folder "
                "with a SigLIP or CLIP model for transformers, or give embeddings"
            )
        return reader(captions)


class Distill(_Semantic):
    """Distance from what a frozen image encoder makes of the target.

    Args:
        config: Its config.
        teacher: [N, 3, H, W] in [-1, 1] to [N, E].
        reader: Frozen text encoder, for "captions": N captions to [N, E].
    """

    config: DistillConfig

    def __init__(
        self, config: DistillConfig, teacher: Teacher, reader: Reader | None = None
    ) -> None:
        super().__init__(config, reader)
        self._teacher = [teacher]

    def forward(self, inputs: LossInputs) -> Tensor:
        """The mean over clips."""
        _, pictures = inputs.pictures(self.config.frames, self.config.side)
        with torch.autocast(pictures.device.type, enabled=False):
            student = self.embed(inputs)
            with torch.no_grad():
                teacher = self._teacher[0](pictures).float()
            teacher = teacher.reshape(len(student), -1, teacher.shape[-1]).mean(1)
            if self.config.kind == "cosine":
                return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
            if self.config.kind == "l2":
                return F.mse_loss(student, teacher)
            texts, _ = self.captions(inputs)
            return caption_divergence(student, teacher, texts, self.config.temperature)


class Contrastive(_Semantic):
    """Clips beside their captions, apart from all others.

    Args:
        config: Its config.
        reader: Frozen text encoder: N captions to [N, E]; None if there are embeddings.
    """

    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, reader: Reader | None = None) -> None:
        super().__init__(config, reader)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(config.bias))

    def forward(self, inputs: LossInputs) -> Tensor:
        """The mean over clips."""
        with torch.autocast(inputs.recon.device.type, enabled=False):
            texts, first = self.captions(inputs)
            image = self.embed(inputs)
            return sigmoid_contrast(image, texts, self.log_scale.exp(), self.bias, first)
