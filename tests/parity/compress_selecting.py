"""How recorded cases of methods that select or pool are compared."""

from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from compress_cases import SUMS, Tensors, close, same
from torch import Tensor

from video.compress import Plan, pool
from video.compress.recipes.ats import ats_keep, ats_score, inverse_sample
from video.compress.recipes.chat_univi import cluster
from video.compress.recipes.dart import least_similar, pivots
from video.compress.recipes.evit import evit_step
from video.compress.recipes.evs import evs
from video.compress.recipes.globalcom2 import both_scores, crop_ratios, thumbnail_score
from video.compress.recipes.hired import hired
from video.compress.recipes.in_layers import rated, text_raters
from video.compress.recipes.llama_vid import context, context_weights
from video.compress.recipes.pooled import dynamic_vlm, m3
from video.compress.recipes.ppllava import guided_pooling, pooling_windows
from video.compress.recipes.prumerge import prumerge
from video.compress.recipes.quota import frame_counts, shrink
from video.compress.recipes.ts_llava import thumbnail, thumbnail_grid, ts_llava
from video.compress.recipes.visionzip import visionzip_step
from video.compress.score import class_attention
from video.compress.select import mask, top


def check_visionzip(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    score = i["cls_attention"].sum(1).index_fill(1, torch.tensor(0), torch.inf)  # stays
    dominant = p["dominant_excl_cls"] + 1
    plan = visionzip_step(score, i["metric"], dominant, p["contextual"])
    same(plan.rep[:, :dominant], o["dominant_idx_with_cls"].sort(1).values)
    close(plan.apply(i["hidden"]), o["tokens"])


def check_prumerge(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    x = i["hidden"][:, 1:]
    plan = prumerge(
        x[:, None],
        attention=class_attention(i["q"], i["k"])[:, None],
        metric=i["k"][:, None, 1:],
        ratio=None if p["if_adaptive"] else p["reduction_ratio"],
        plus=name.startswith("plus"),
        neighbours=p["neighbors"],
        upstream_batch=True,
    )
    close(plan.apply(x), o["tokens"], SUMS)


def check_dart(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    start, num = p["vision_token_start_index"], p["vision_token_length"]
    keys, x = i["keys"].transpose(1, 2).flatten(2), i["hidden_normed"]
    visual = pivots(keys[:, start : start + num], p["pivot_image_token"])
    text = pivots(keys[:, start + num :], p["pivot_text_token"]) + start + num
    same(visual[0] + start, o["image_pivots_desc"])
    same(text[0], o["text_pivots_desc"])
    visit = o["pivot_visit_order"]
    assert set(visit.tolist()) == {*(visual[0] + start).tolist(), *text[0].tolist()}
    each = int(num * (1 - p["reduction_ratio"]) / len(visit))
    seen = x[:, start : start + num]
    taken = least_similar(seen, x[:, visit], mask(visual, num), [each] * len(visit))
    same(taken[0].nonzero()[:, 0] + start, o["kept_sorted"])


def check_evit(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    w = {key.removeprefix("w."): value for key, value in i.items() if key.startswith("w.")}
    keep = ceil(p["keep_rate"] * i["cls_attn"].shape[1])
    fuses = o["y"].shape[1] == keep + 2
    plan = evit_step(i["cls_attn"], keep, fuse=fuses)
    same(plan.rep[:, :keep], o["idx"])
    x = i["x_after_attn"]
    y = torch.cat([x[:, :1], plan.apply(x[:, 1:])], dim=1)
    hidden = F.layer_norm(y, y.shape[2:], w["norm2.weight"], w["norm2.bias"])
    hidden = F.gelu(F.linear(hidden, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    close(y + F.linear(hidden, w["mlp.fc2.weight"], w["mlp.fc2.bias"]), o["y"])


def check_ats(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    values = i["v"].transpose(1, 2).flatten(2)[:, 1:]
    score = ats_score(i["attn"][:, :, 0, 1:].sum(1), values)
    close(score.sort(dim=1).values, o["sorted_scores"])
    same(score.argsort(dim=1), o["sorted_indices"])
    N = i["raw_x"].shape[1]
    chosen = inverse_sample(score, p["n_ref_tokens"] - 1, max(0, N - p["n_ref_tokens"]))
    plan = ats_keep(score, chosen)
    x = i["raw_x"]
    y = torch.cat([x[:, :1], plan.apply(x[:, 1:])], dim=1)
    exists = F.pad(plan.rep >= 0, (1, 0), value=True).float()[..., None]
    room = p["n_tokens"] - y.shape[1]
    close(F.pad(y, (0, 0, 0, room)), o["selected_x"])
    same(F.pad(exists, (0, 0, 0, room)), o["policy"])


def check_m3(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    close(m3(i["x"][:, None], scale=p["scale"]).apply(i["x"]), o["y"])


def check_dynamic_vlm(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    plan = dynamic_vlm(i["x"][None], most=p["out_token_num"], total=p["max_video_tokens"])
    close(plan.apply(i["x"])[0].reshape(o["y"].shape), o["y"])


def check_ppllava(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    grid = tuple(i["x"].shape[2:])
    x = i["x"].flatten(2).transpose(1, 2)
    given = "w" in i and "weights" not in p
    weight = i["w"].flatten(1) if given else torch.zeros(x.shape[:2])
    kernel, stride = p.get("kernel"), p.get("stride")
    if "output_size" in p:
        kernel, stride = pooling_windows(grid, p["output_size"])
    plan = guided_pooling(weight, grid, kernel, stride, p["temperature"])
    close(plan.apply(x).transpose(1, 2).reshape(o["y"].shape), o["y"])


def check_quota(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    how = {"v1": "bilinear", "v2": "adaptive", "v3": "sample", "v4": "merge"}[p["version"]]
    N, total = i["x"].shape[1], p["total"] * p["max_token"]
    counts = frame_counts(p["weights"], total, None if p["version"] == "v1" else N)
    side = round(N**0.5)
    frames = [
        shrink(x, count, how, side, side).apply(x)[0]
        for x, count in zip(i["x"], counts, strict=True)
        if count
    ]
    assert len(frames) == len(o)
    for frame, y in enumerate(frames):
        theirs = o[f"frame{frame}"]
        close(y.reshape(theirs.shape), theirs)


def check_ts_llava(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    if "num_samples" in p:
        plan = ts_llava(i["x"][None, None], num_samples=p["num_samples"])
        same(plan.apply(i["x"])[0], o["y"])
        return
    close(thumbnail(i["frames"], p["final"]), o["grid"])
    for rows, columns in o["rows_cols"].tolist():
        assert thumbnail_grid(rows * columns) == (rows, columns)


def check_sparsevlm(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    if "cluster_num" in p:
        plan = cluster(i["x"], p["cluster_num"], p["cluster_num"], upstream_ties=True)
        close(plan.apply(i["x"]), o["y"])
    elif "keep" in p:
        rows = i["attn_text_rows"]
        score = rated(rows, torch.ones(rows.shape[:2], dtype=torch.bool))
        close(score, o["score"])
        same(mask(top(score, p["keep"]), score.shape[1]), o["mask"])
    else:
        score, rates = text_raters(i["text"], i["visual"])
        close(score, o["score"])
        same(rates[0].nonzero()[:, 0], o["raters"])


def check_globalcom2(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    base = i["base_scores"]
    side = round(len(base) ** 0.5)

    def ratios(scores: Tensor, rows: int, columns: int) -> Tensor:
        parts = scores.view(rows, side // rows, columns, side // columns)
        return crop_ratios(parts.sum((1, 3)).flatten(), p["base"], p["temperature"])

    scales = ratios(base, p["num_h"], p["num_w"])
    close(scales, o["scales"])
    close(ratios(100 * base, 2, 2), o["scales_2x2_times100"])
    whole = thumbnail_score(base[None], (side, side), (p["size"][1], p["size"][0]))[0]
    heights = [h for _, h in p["crop_wh"][:: p["num_w"]]]
    widths = [w for w, _ in p["crop_wh"][: p["num_w"]]]
    crops = [crop for row in whole.split(heights) for crop in row.split(widths, dim=1)]
    for number, (crop, scale) in enumerate(zip(crops, scales, strict=True)):
        close(crop.flatten(), o[f"global{number}"])
        score = both_scores(i[f"local{number}"], crop.flatten())
        count = int(len(score) * float(scale))
        same(top(score[None], count, order="score")[0], o[f"idx{number}"])


def check_hired(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    late, first = i["bottom_cls"].sum(1), i["top_cls"].sum(1)
    plan = hired(
        late[None, ..., None],
        attention=late[None],
        first_layer=first[None],
        crops=tuple(p["grid"]),
        rate=p["token_budget_rate"],
        alpha=p["alpha"],
        upstream_cells=True,
    )
    same(mask(plan.rep, late.numel()).view(late.shape), o["mask"])


def check_llama_vid(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    x, kind = i["vis"], p["compress_type"]
    side = round(x.shape[1] ** 0.5)
    if kind is None:
        content = Plan.identity(len(x), x.shape[1])
    else:
        size = 1 if kind == "mean" else int(kind.removeprefix("grid:"))
        shrunk = lambda e: F.adaptive_avg_pool2d(e, size)  # noqa: E731
        content = pool.linear(shrunk, side, side, len(x), x)
    weight = context_weights(i["text_q"], F.linear(x, i["kw"], i["kb"]))
    y = context(weight, content).apply(x)
    ours = [F.linear(y[:, :1], i["vw"], i["vb"]), F.linear(y[:, 1:], i["mw"], i["mb"])]
    close(torch.cat(ours, dim=1), o["y"])


def check_evs(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    T, h, w = p["thw"]
    plan = evs(i["x"].view(1, T, h * w // p["spatial_merge_size"] ** 2, -1), q=p["q"])
    same(mask(plan.rep, len(i["x"]))[0], o["mask"])
