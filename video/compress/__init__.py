"""Fewer tokens of a video: what to keep, what to merge, and where it was."""

from video.compress.plan import Plan
from video.compress.registry import METHODS, Method, plan

__all__ = ["METHODS", "Method", "Plan", "plan"]
