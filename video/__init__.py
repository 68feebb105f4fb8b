"""Real video files in and out: probe, read, sample and write."""

from video.clip import Clip, VideoInfo
from video.errors import VideoError
from video.files import detokenize_file, tokenize_file
from video.probe import probe
from video.read import VideoReader, open_video, read, read_at
from video.sample import sample_times
from video.write import VideoWriter, write

__all__ = [
    "Clip",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "detokenize_file",
    "open_video",
    "probe",
    "read",
    "read_at",
    "sample_times",
    "tokenize_file",
    "write",
]
