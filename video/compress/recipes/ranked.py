"""Methods that keep the tokens of highest attention, and only differ in where they look.

Source: VTC-CLS: Wang et al. 2024, arXiv:2412.05819. FoPru: Jiang et al. 2024, arXiv:2411.14164,
known from the paper only. VFlowOpt: Yang et al. 2025, arXiv:2508.05211, its importance alone.
"""

from torch import Tensor

from video.compress.budget import Pick, per_frame
from video.compress.plan import Plan
from video.compress.positions import frame_grid
from video.compress.score import deciding, global_attention, per_token
from video.compress.select import top


def vtc_cls(x_BTND: Tensor, keep: int | None = None, *, attention: Tensor) -> Plan:
    """Keep the tokens of each frame that class tokens attend to.

    Read in the code, no recorded data.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; a quarter by default.
        attention: [B, T, N] of class tokens, summed over layers; or what each token receives.
    """
    B, T, N, _ = x_BTND.shape
    score = per_token(attention, x_BTND)

    def decide(pick: Pick, count: int) -> Plan:
        return Plan.keep(top(pick(score), count), N)

    return per_frame(B, T, N, T * -(-N // 4) if keep is None else keep, decide)


def fopru(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    grid: tuple[int, ...] | None = None,
    by: str = "token",
) -> Plan:
    """Keep the tokens, or the rows, of each frame that are attended to most.

    Known from the paper only.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; a quarter by default.
        attention: [B, T, N], or matrices.
        grid: (h, w) of a frame, for rows.
        by: "token"; or "row" for rows by their mean, the last of them as far as the budget goes.
    """
    if by not in ("token", "row"):
        raise ValueError(f"by={by!r}; choose of 'token', 'row'")
    if by == "token":
        return vtc_cls(x_BTND, keep, attention=attention)
    B, T, N, _ = x_BTND.shape
    h, w = frame_grid(N, grid)
    score = per_token(attention, x_BTND)

    def decide(pick: Pick, count: int) -> Plan:
        inside = pick(score).view(-1, h, w)
        rows = top(inside.mean(2), h, order="score")[..., None].expand(-1, -1, w)
        token = inside.gather(1, rows).argsort(dim=2, descending=True, stable=True)
        return Plan.keep((rows * w + token).flatten(1)[:, :count].sort(dim=1).values, N)

    return per_frame(B, T, N, T * -(-N // 4) if keep is None else keep, decide)


def vflowopt(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor,
    entropy: Tensor | None = None,
    threshold: float = 2.0,
    alpha: float = 0.5,
) -> Plan:
    """Keep what the most attended tokens of a frame attend to, and where the picture is busy.

    The importance of the published method; its schedule over layers of a language model is not
    here. Read in the code, no recorded data.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly; a quarter by default.
        attention: [B, T, N, N], queries before keys.
        entropy: [B, T, N] of the pixels of each patch, as `score.patch_entropy` gives it.
        threshold: Tokens that receive this many times the mean are the ones that are asked.
        alpha: Weight of the entropy, after a softmax.
    """
    B, T, N, _ = x_BTND.shape
    if attention.shape != (B, T, N, N):
        raise ValueError(
            f"vflowopt needs attention of every query, [{B}, {T}, {N}, {N}]; it is "
            f"{list(attention.shape)}"
        )
    score = global_attention(attention, threshold)
    if entropy is not None:
        score = score + alpha * deciding(entropy).softmax(-1)
    return vtc_cls(x_BTND, keep, attention=score)
