"""Fewer visual tokens for video language models."""

from video.llm.adapter import Adapter
from video.llm.check import check, keep_every
from video.llm.compact import Report, compact, compact_call
from video.llm.forms import FORMS, Form
from video.llm.ranking import INSIDE

__all__ = [
    "FORMS",
    "INSIDE",
    "Adapter",
    "Form",
    "Report",
    "check",
    "compact",
    "compact_call",
    "keep_every",
]
