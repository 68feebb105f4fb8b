"""How recorded cases of methods that merge are compared."""

import re
from ast import literal_eval
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compress_cases import Tensors, close, same

from video.compress import Plan
from video.compress.assign import chains
from video.compress.recipes.aim import aim
from video.compress.recipes.bvllm import merge_alike
from video.compress.recipes.chat_univi import chat_univi, cluster, levels
from video.compress.recipes.dycoke import dycoke
from video.compress.recipes.framefusion import (
    FrameFusion,
    chain_similarity,
    framefusion_merge,
    missing_ratio,
)
from video.compress.recipes.in_layers import pagerank
from video.compress.recipes.mctf import mctf_round
from video.compress.recipes.sta import sta_stage
from video.compress.recipes.testa import testa, testa_frames
from video.compress.recipes.tome import (
    merge_schedule,
    proportional_attention,
    tome_kth,
    tome_round,
    tome_to,
)
from video.compress.recipes.vid_tldr import foreground, saliency, vid_tldr_round
from video.compress.recipes.visual_bpe import VisualBPE
from video.compress.select import mask


def check_tome(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    if "num_layers" in p:
        for setting, theirs in zip(p["r"], o.values(), strict=True):
            r = literal_eval(setting)
            r, inflect = r if isinstance(r, tuple) else (r, 0)
            ours = merge_schedule(r, p["num_layers"], inflect)
            same(torch.tensor(ours), theirs)
    elif "num_heads" in p:
        qkv = F.linear(i["x"], i["qkv_w"], i["qkv_b"])
        q, k, v = qkv.unflatten(2, (3, p["num_heads"], -1)).permute(2, 0, 3, 1, 4)
        close(k.mean(1), o["metric_k_mean"])
        for size, out in ((i["size"][..., 0], "out"), (None, "out_no_size")):
            y = proportional_attention(q, k, v, size).transpose(1, 2).flatten(2)
            close(F.linear(y, i["proj_w"], i["proj_b"]), o[out])
    elif "k" in p:
        for norm, out in (("size", "wavg"), ("mean", "mean")):
            plan = tome_kth(i["metric"], p["k"], norm=norm)
            close(plan.apply(i["x"]), o[out])
        close(plan.size[..., None], o["size"])
        close(plan.spread(plan.apply(i["x"])), o["unmerged"])
    else:
        protect = int(p["class_token"]) + int(p.get("distill_token", False))
        plan = tome_round(i.get("metric", i["x"]), p["r"], protect=protect)
        y = plan.apply(i["x"])
        close(y, o["x1"])
        close(plan.size[..., None], o["size1"])
        if "unmerged1" in o:
            close(plan.spread(y), o["unmerged1"])
        if "second_r" in p:
            same(plan.source(), o["source1"])
            both = plan.then(tome_round(y, p["second_r"], plan.size, protect=protect))
            close(both.apply(i["x"]), o["x2"])
            close(both.size[..., None], o["size2"])
            same(both.source(), o["source2"])


def check_testa(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    x = i["x"]
    if p.get("merging_type") == "patch":
        plan = tome_round(x.flatten(0, 1), p["r"]).fold(x.shape[1])
    elif p.get("merging_type") == "frame":  # [B, N, T, D]
        x = x.transpose(1, 2)
        plan = testa_frames(x, p["r"])
    else:
        plan = testa(x, r_frame=p["r_frame"], r_patch=p["r_patch"])
    y, size = plan.apply(x), plan.size[..., None]
    if p.get("merging_type") == "frame":
        y, size = (e.unflatten(1, (-1, x.shape[2])).transpose(1, 2) for e in (y, size))
    close(y.reshape(o["x1"].shape), o["x1"])
    close(size.reshape(o["size1"].shape), o["size1"])


def check_vid_tldr(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    score = saliency(i["attn"].mean(1))
    close(foreground(score)[..., None], o["score"])
    first, second = (
        int(r if r >= 1 else r * N)
        for r, N in zip(p["r"], (score.shape[1], o["x1"].shape[1]), strict=True)
    )
    plan = vid_tldr_round(i["x"], score, first)
    y = plan.apply(i["x"])
    close(y, o["x1"])
    close(plan.size[..., None], o["size1"])
    both = plan.then(vid_tldr_round(y, saliency(i["attn2"].mean(1)), second, plan.size))
    close(both.apply(i["x"]), o["x2"])
    close(both.size[..., None], o["size2"])
    counted = torch.zeros_like(both.source(), dtype=torch.bool)
    counted[both.batch, both.src] = both.weight > 0
    same(both.source().where(counted, 0), o["source2"])  # theirs knows no source of weight 0


def check_sta(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    stage = p["index"] * 3 // p["depth"]
    T = (8, 4, 2)[stage]
    x, metric = (i[key].unflatten(1, (T, -1)) for key in ("x", "metric"))
    plan = sta_stage(x, metric, [x.shape[2] - p["r"]] * T, reverse=stage == 1)
    same(plan.apply(x), o["y"])


def check_mctf(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    plan = mctf_round(
        i["x"],
        i["attn"].mean((1, 2)),
        p["r"],
        i["size"][..., 0],
        protect=p["num_protected"],
        temperatures=(p["tau_sim"], p["tau_info"], p["tau_size"]),
        both_ways=bool(p["bidirection"]),
        norm={0: "size", 1: "attention", 3: "mean"}[p["pooling_type"]],
    )
    close(plan.apply(i["x"]), o["y"])
    close(plan.size[..., None], o["size"])
    rows = plan.apply(i["attn"].transpose(1, 2))  # queries are averaged, keys are summed
    columns = plan.apply(rows.permute(0, 3, 1, 2), "sum")
    close(columns.permute(0, 3, 2, 1), o["attn_next"])


def check_framefusion(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    if name == "pruning_ratio":
        close(torch.tensor([missing_ratio(*call) for call in p["calls"]]), o["r"])
        return
    x, patch = i["hidden"], i["patch_type"]
    if "rule" in p:
        order, follows = chains(patch)
        similarity = chain_similarity(x, order, follows)
        text = int((patch < 0).sum())
        close(similarity[:, text:], o["similarity_by_patch"])
        same(order[:, text:], o["token_index_by_patch"])
        if top_share := re.match(r"top (\d+)%", p["rule"]):
            count = int(int(top_share[1]) / 100 * (patch >= 0).sum())
        else:
            count = int((similarity >= float(p["rule"].split(">=")[1])).sum())
        plan = framefusion_merge(similarity, order, follows, count)
        close(plan.apply(x)[0], o["hidden_merged"])
        same(mask(plan.rep, x.shape[1]), o["keep_mask"])
        gone = ~mask(plan.rep, x.shape[1]).gather(1, order[:, text:])
        same(gone[0].nonzero()[:, 0], o["merge_index"])
        return
    driver = FrameFusion(
        cost=p["cost"],
        threshold=p["similarity_lower_bound"],
        least=p["ratio_lower_bound"],
        num_layers=p["num_layers"],
    )
    position, lengths = torch.arange(x.shape[1])[None], []
    for call in range(p["calls"]):
        plan = driver(x, patch, i[f"attn_last_row_mean_{call}"])
        x, patch, position = plan.apply(x), plan.apply(patch, "rep"), plan.apply(position, "rep")
        lengths.append(x.shape[1])
    assert (lengths, driver.sparsities) == (p["lens"], pytest.approx(p["sparsity"]))
    close(x, o["hidden_final"])
    same(position, o["positions"])


def check_dycoke(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    plan = dycoke(i["x"][None], k=p["merging_ratio"], upstream_ends=True)
    same(plan.apply(i["x"])[0], o["tokens"])


def check_chat_univi(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    x = i["x"]
    if "spatial" in p:
        few = x[: len(o["image_tokens"])]
        plan = Plan.concat(levels(few, p["spatial"], p["k"][:-1], upstream_ties=True))
        close(plan.apply(few), o["image_tokens"])
        settings = {"spatial": p["spatial"], "temporal": p["temporal"], "k": p["k"]}
        close(chat_univi(x[None], **settings, upstream_ties=True).apply(x), o["tokens"])
        return
    weight = i["weight"][..., 0] if "weight" in i else None
    chosen = i["mask"] > 0 if "mask" in i else None
    plan = cluster(x, p["cluster_num"], p["k"], weight, chosen, upstream_ties=True)
    same(plan.source(), o["idx_cluster"])
    if "x_merged" in o:
        close(plan.apply(x), o["x_merged"])


def check_aim(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    if "logits" in i:
        close(pagerank(i["logits"], p["tau"], p["iters"]), o["importance"])
        return
    x = i["x"]
    close(tome_round(x, p["r"][0], norm="mean").apply(x), o["y1"])
    close(tome_to(x, o["y2"].shape[1], norm="mean").apply(x), o["y2"])
    close(aim(x[None]).apply(x)[0].reshape(o["y2"].shape), o["y2"])


def check_bvllm(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    if "threshold" in p:
        plan = merge_alike(i["metric"][None], p["threshold"], direct=True)
        close(plan.apply(i["x"])[0], o["y"])
    else:
        close(tome_to(i["x"], p["target"], norm="mean").apply(i["x"]), o["y"])


def check_vbpe(p: dict[str, Any], i: Tensors, o: Tensors, name: str) -> None:
    bpe = VisualBPE.train(list(i["imgs"]), p["init_size"], p["num_merges"])
    same(torch.tensor(bpe.merges), o["vocab"])
    same(bpe.encode(i["test"]), o["encoded"])
