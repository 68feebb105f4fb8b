"""FrameFusion: merge what stands still, then prune.

Source: Fu et al. 2024, arXiv:2501.01986.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from video.compress.assign import chains, rows_of, runs
from video.compress.merge import partition, representatives
from video.compress.plan import Plan
from video.compress.score import change, cosine, per_token
from video.compress.select import ranks, top


def chain_similarity(x_BND: Tensor, order_BN: Tensor, follows_BN: Tensor) -> Tensor:
    """Cosine of each token to the one before it in its chain, in the order of the chains.

    Returns:
        [B, N]; -2 for the first of a chain.
    """
    x = rows_of(x_BND, order_BN)
    similarity = torch.full_like(cosine(x[:, :1], x[:, :1]), -2).repeat(1, x.shape[1])
    similarity[:, 1:] = cosine(x[:, 1:], x[:, :-1])
    return similarity.where(follows_BN, -2)


def framefusion_merge(
    similarity_BN: Tensor, order_BN: Tensor, follows_BN: Tensor, count: int
) -> Plan:
    """Average every run of tokens that are among the `count` most like their predecessors.

    Args:
        similarity_BN: As `chain_similarity` gives it.
        order_BN: Order of the chains, as `chains` gives it.
        follows_BN: Likewise, which tokens have a predecessor; at least `count`.
        count: Tokens that go.
    """
    joins = (ranks(similarity_BN) < count) & follows_BN
    out, is_head = runs(order_BN, joins)
    return partition(out, representatives(out, is_head, out.shape[1] - count))


def missing_ratio(sparsities: list[float], cost: float, num_layers: int = 28) -> float:
    """Share of tokens that must still go for all layers together to cost `cost` of the whole.

    Args:
        sparsities: Share of the tokens there were that went, at each layer so far.
        cost: Share of the operations of all layers without reduction.
        num_layers: Layers.
    """
    left, spent = 1.0, 0.0
    for sparsity in sparsities:
        left *= 1 - sparsity
        spent += left
    ahead = (num_layers - len(sparsities)) * left
    return 1 - min(1.0, (num_layers * cost - spent) / ahead)


@dataclass
class FrameFusion:
    """What FrameFusion does from layer to layer of a language model.

    Attributes:
        cost: Share of the operations that may be left.
        threshold: The least cosine to merge.
        least: Merging goes on at the next layer while at least this share merged.
        num_layers: Layers.
        sparsities: Share of the visual tokens that went, at each layer so far.
        stage: "merge", "prune" or "done".
    """

    cost: float = 0.3
    threshold: float = 0.6
    least: float = 0.1
    num_layers: int = 28
    sparsities: list[float] = field(default_factory=list)
    stage: str = "merge"

    def __call__(self, x_BND: Tensor, patch_BN: Tensor, attention_BN: Tensor) -> Plan:
        """Decide before a layer runs.

        Args:
            x_BND: Hidden states, of text as well.
            patch_BN: Place of each visual token in its frame, -1 for text, which stays.
            attention_BN: What each token received in the layer before.
        """
        B, N, _ = x_BND.shape
        num_visual = int((patch_BN >= 0).sum(1).min())
        if num_visual == 0:
            return Plan.identity(B, N, x_BND.device)
        missing = missing_ratio(self.sparsities, self.cost, self.num_layers)
        if self.stage == "merge":
            order, follows = chains(patch_BN)
            similarity = chain_similarity(x_BND, order, follows)
            count = int((similarity >= self.threshold).sum(1).min())
            if count / num_visual < missing:
                self.sparsities.append(count / num_visual)
                self.stage = "prune" if self.sparsities[-1] < self.least else "merge"
            else:
                count = int(missing * num_visual)
                self.stage = "done"
            return framefusion_merge(similarity, order, follows, count)
        if self.stage == "done":
            return Plan.identity(B, N, x_BND.device)
        self.stage = "done"
        gone = num_visual - round(num_visual * (1 - missing))
        score = attention_BN.masked_fill(patch_BN < 0, torch.inf)
        return Plan.keep(top(score, N - gone), N)


def framefusion(
    x_BTND: Tensor,
    keep: int | None = None,
    *,
    attention: Tensor | None = None,
    threshold: float = 0.6,
) -> Plan:
    """Average each token with those of its place in the frames before, while they are alike.

    Args:
        x_BTND: Tokens.
        keep: Outputs of each sample, exactly: the most similar merge until that is reached. With
            attention, only those above the threshold do, and then what is attended to least goes.
            Without, runs of most frames stay where the budget is below one frame.
        attention: [B, T, N] (or matrices), in the language model or the encoder.
        threshold: Least cosine to merge without `keep`.
    """
    B, T, N, _ = x_BTND.shape
    similarity = 1 - change(x_BTND).flatten(1)
    patch = torch.arange(N, device=x_BTND.device).repeat(B, T)
    order, follows = chains(patch)
    similarity = similarity.gather(1, order).where(follows, -2)
    alike = similarity >= threshold
    if keep is not None:
        wanted = ranks(similarity) < min(T * N - keep, (T - 1) * N)
        alike = wanted & alike if attention is not None else wanted
    out, is_head = runs(order, alike & follows)
    plan = partition(out, representatives(out, is_head, T * N)).dense()
    if keep is None or (attention is None and keep >= N):
        return plan
    score = plan.size if attention is None else plan.apply(per_token(attention, x_BTND).flatten(1))
    return plan.then(
        Plan.keep(top(score.masked_fill(plan.rep < 0, -torch.inf), keep), plan.num_out)
    )
