"""3D assets in the commands: files that hold shapes go through here."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from tools.commands.batch import Outcome, finished, planned
from tools.commands.errors import DONE, InputError
from tools.commands.planning import Job, is_shape
from tools.commands.reporting import Report, columns, size_of

if TYPE_CHECKING:
    from omnitok import Tokenizer
    from shapes import Mesh
    from shapes.compare import ShapeComparison
    from shapes.files import ShapeResult
    from tools.commands.loading import ByTokens

VOXELS = "voxels"
SHAPES = ("shape", VOXELS)  # kinds of sources, in token files
THRESHOLDS = (0.01, 0.02)


def default_model(path: str) -> str:
    """The tokenizer for a file, where --model names none."""
    from omnitok.hub import shipped

    return "tiny-3d" if is_shape(path) and "tiny-3d" in shipped() else "tiny"


def planned_job(job: Job, overwrite: bool) -> Outcome:
    """What a dry run says about a 3D file."""
    from shapes import read

    mesh = read(job.src)
    facts = {"num_vertices": len(mesh.vertices), "num_faces": len(mesh.faces)}
    return planned(job, overwrite, describe(facts), facts)


def tokenize_job(tok: Tokenizer, job: Job, overwrite: bool) -> Outcome:
    """Tokenize one 3D file."""
    from shapes import tokenize_file

    done = tokenize_file(tok, job.src, job.dst, overwrite=overwrite)
    facts = {"num_tokens": done.num_tokens, "bits_per_token": done.bits_per_token}
    about = f"{describe(counts(done))}, {done.num_tokens:,} tokens"
    return finished(job, done, about, {**counts(done), **facts})


def decode_job(models: ByTokens, job: Job, args: argparse.Namespace, kind: str) -> Outcome:
    """Decode the tokens of one 3D asset: planes to a mesh, voxels to splats."""
    from shapes import detokenize_file, splats

    if kind == VOXELS:
        splats.check_name(job.dst)  # before any weights are fetched
    done = detokenize_file(
        models.get(job.src),
        job.src,
        job.dst,
        resolution=args.resolution,
        gaussians=models.gaussians(args.gaussians) if kind == VOXELS else None,
        overwrite=args.overwrite,
    )
    return finished(job, done, describe(counts(done)), counts(done))


def counts(done: ShapeResult) -> dict[str, int]:
    """What a mesh, a cloud or splats are made of."""
    if done.num_gaussians:
        return {"num_gaussians": done.num_gaussians}
    return {"num_vertices": done.num_vertices, "num_faces": done.num_faces}


def describe(counts: dict[str, int]) -> str:
    """The same in words."""
    if "num_gaussians" in counts:
        return f"{counts['num_gaussians']:,} Gaussians"
    faces = counts["num_faces"]
    return f"{faces:,} faces" if faces else f"{counts['num_vertices']:,} points"


def inspect_lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """What `omnitok inspect` says of a 3D asset instead of frames and rates."""
    place = data["placement"]
    middle = ", ".join(f"{x:.6g}" for x in place["offset"])
    side, rows, columns_ = data["grid"]
    if (data["source"] or {}).get("kind") == VOXELS:
        length = place["scale"]
        tokens = f"{data['num_tokens']:,} {data['kind']}, one for each voxel of the surface"
        tokens += f" ({side} x {rows} x {columns_} in all); they decode to Gaussian splats"
    else:
        length = 1.9 * place["scale"]
        tokens = f"3 planes x {rows // 3} x {columns_} = {data['num_tokens']:,} {data['kind']}"
    lines = [
        (
            "shape",
            f"longest side {length:.6g}, middle at ({middle}), "
            + ("with colours" if place["colors"] else "without colours"),
        ),
        ("tokens", tokens),
        ("bits", f"{data['bits_per_token']:.2f} per token"),
    ]
    if data["compression_of_source"]:
        against = f"against the source of {size_of(data['source_bytes'])}"
        lines.append(("compression", f"{data['compression_of_source']:.2f}x {against}"))
    return lines


def holds_shape(path: str) -> bool:
    """Whether a file is a 3D asset, or tokens of one."""
    if is_shape(path):
        return True
    if not path.endswith(".safetensors"):
        return False
    from omnitok.token_layout import TokenFile

    with TokenFile(path) as file:
        return file.layout.placement is not None


def compare(args: argparse.Namespace, report: Report, models: ByTokens) -> int:
    """Carry out `omnitok compare` on two 3D assets."""
    from shapes.compare import compare_meshes
    from tools.commands.drawing import turntable_sheet

    for path in (args.a, args.b):
        if not holds_shape(path):
            raise InputError(f"{path} is no 3D asset; a shape can only be compared with a shape")
    if args.output:
        raise InputError("-o writes videos; for a turntable picture of 3D assets give --png")
    a, b = (_mesh(path, models) for path in (args.a, args.b))
    result = compare_meshes(a, b)
    sheet = args.png
    if sheet and os.path.lexists(sheet) and not args.overwrite:
        report.note(f"kept {sheet}, which exists; --overwrite replaces it")
        sheet = None
    if sheet:
        names = (os.path.basename(args.a), os.path.basename(args.b))
        turntable_sheet(sheet, names, a, b)
    data = {"command": "compare", "a": args.a, "b": args.b, **facts(result), "sheet": sheet}
    lines = [("A", args.a), ("B", args.b), *comparison_lines(result)]
    lines += [("sheet", sheet)] if sheet else []
    report.result(data, columns(lines))
    return DONE


def _mesh(path: str, models: ByTokens) -> Mesh:
    from omnitok import Tokens
    from shapes import detokenize, read

    if is_shape(path):
        return read(path)
    tok = models.get(path)
    return detokenize(tok, Tokens.load(path, tokenizer=tok))


def facts(result: ShapeComparison) -> dict[str, Any]:
    """A comparison for a program."""
    distances = result.distances
    return {
        "scale": result.scale,
        "chamfer_l1": distances.chamfer_l1,
        "chamfer_l2": distances.chamfer_l2,
        **{f"f_score_{t}": distances.f_score(t) for t in THRESHOLDS},
        "normal_consistency": distances.normal_consistency,
        "iou": result.iou,
        "points": len(distances.accuracy),
        "seed": result.seed,
    }


def comparison_lines(result: ShapeComparison) -> list[tuple[str, str]]:
    """A comparison for a person."""
    distances = result.distances
    scores = ", ".join(f"{distances.f_score(t):.4f} at {t}" for t in THRESHOLDS)
    iou = "not defined: A is a cloud or not closed" if result.iou is None else f"{result.iou:.4f}"
    return [
        ("unit", f"A's longest side is 1.9 (a length of 1 is {result.scale:.6g} in the file)"),
        ("Chamfer", f"{distances.chamfer_l1:.5f} (half the sum of both mean distances)"),
        ("F-score", scores),
        ("IoU", iou),
        ("normals", f"{distances.normal_consistency:.4f} (mean absolute cosine)"),
    ]
