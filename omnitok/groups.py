"""Time groups: which frames of a clip become which tokens.

With a causal tokenizer frame 0 is a group of its own, so that an image is the first step of a
video, and every further group spans `patch_t` frames; otherwise every group spans `patch_t`
frames. The last group may be short.
"""


def num_groups(num_frames: int, patch_t: int, causal: bool = True) -> int:
    """Return how many groups a clip of `num_frames` frames has."""
    if num_frames == 0:
        return 0
    return 1 - (1 - num_frames) // patch_t if causal else -(-num_frames // patch_t)


def frames_of_groups(
    start: int, stop: int, num_frames: int, patch_t: int, causal: bool = True
) -> tuple[int, int]:
    """Return the frames (first, past the last) of the groups `start` .. `stop` of a clip."""

    def first_frame(group: int) -> int:
        frame = max(0, 1 + (group - 1) * patch_t) if causal else group * patch_t
        return min(frame, num_frames)

    return first_frame(start), first_frame(stop)


def group_frames(num_frames: int, patch_t: int, causal: bool = True) -> list[int]:
    """Return where every group starts, and `num_frames`: group g is frames [g] .. [g + 1]."""
    groups = range(num_groups(num_frames, patch_t, causal) + 1)
    return [frames_of_groups(g, g, num_frames, patch_t, causal)[0] for g in groups]
