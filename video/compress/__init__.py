"""Fewer tokens of a video: what to keep, what to merge, and where it was."""

from video.compress.frames import merge_frames, pool_time, select_frames
from video.compress.plan import Plan
from video.compress.registry import METHODS, Method, plan

__all__ = ["METHODS", "Method", "Plan", "merge_frames", "plan", "pool_time", "select_frames"]
