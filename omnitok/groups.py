"""Time groups: which frames of a clip become which tokens.

With a causal tokenizer frame 0 is a group of its own, so that an image is the first step of a
video, and every further group spans `patch_t` frames; otherwise every group spans `patch_t`
frames. The last group may be short. Where a clip is cut into windows of `window` frames, every
window is grouped as if it were a clip.
"""

Window = int | None


def num_groups(
    num_frames: int, patch_t: int, causal: bool = True, window: Window = None, start: int = 0
) -> int:
    """Return how many groups `num_frames` frames fill after `start` whole groups of their clip."""
    frames = first_frame(start, patch_t, causal, window) + num_frames
    windows, rest = divmod(frames, window) if window else (0, frames)
    groups = windows * _groups(window or 0, patch_t, causal) + _groups(rest, patch_t, causal)
    return groups - start


def _groups(frames: int, patch_t: int, causal: bool) -> int:
    if frames == 0:
        return 0
    return 1 - (1 - frames) // patch_t if causal else -(-frames // patch_t)


def first_frame(group: int, patch_t: int, causal: bool = True, window: Window = None) -> int:
    """Return where a group starts in a clip that is long enough."""
    windows = 0
    if window:
        windows, group = divmod(group, _groups(window, patch_t, causal))
    frame = max(0, 1 + (group - 1) * patch_t) if causal else group * patch_t
    return windows * (window or 0) + frame


def fits(
    num_frames: int, groups: int, patch_t: int, causal: bool = True, window: Window = None
) -> bool:
    """Whether a part of a clip, from whichever group on, can have these frames and groups."""
    return any(
        num_groups(num_frames, patch_t, causal, window, start) == groups
        for start in range(1 + causal)  # later starts differ from these in nothing
    )


def is_whole(
    num_frames: int, groups: int, patch_t: int, causal: bool = True, window: Window = None
) -> bool:
    """Whether a part that `fits` ends with a whole group, so that another part may follow."""
    return any(
        first_frame(start + groups, patch_t, causal, window)
        - first_frame(start, patch_t, causal, window)
        == num_frames
        for start in range(1 + causal)
    )


def frames_of_groups(
    start: int,
    stop: int,
    num_frames: int,
    patch_t: int,
    causal: bool = True,
    window: Window = None,
) -> tuple[int, int]:
    """Return the frames (first, past the last) of the groups `start` .. `stop` of a clip."""
    edges = (first_frame(group, patch_t, causal, window) for group in (start, stop))
    first, last = (min(frame, num_frames) for frame in edges)
    return first, last


def group_frames(
    num_frames: int, patch_t: int, causal: bool = True, window: Window = None
) -> list[int]:
    """Return where every group starts, and `num_frames`: group g is frames [g] .. [g + 1]."""
    groups = range(num_groups(num_frames, patch_t, causal, window) + 1)
    return [min(first_frame(g, patch_t, causal, window), num_frames) for g in groups]
