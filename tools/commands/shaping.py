"""3D assets in the commands: files that hold shapes go through here."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from tools.commands.batch import Outcome, planned
from tools.commands.errors import DONE, InputError
from tools.commands.planning import Job, is_shape
from tools.commands.reporting import Report, columns, size_of

if TYPE_CHECKING:
    from omnitok import Tokenizer
    from shapes import Mesh
    from shapes.compare import ShapeComparison
    from tools.commands.loading import ByTokens

SHAPE = "shape"  # the kind of a source, in token files
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
    return planned(job, overwrite, describe(*facts.values()), facts)


def tokenize_job(tok: Tokenizer, job: Job, overwrite: bool) -> Outcome:
    """Tokenize one 3D file."""
    from shapes import tokenize_file

    done = tokenize_file(tok, job.src, job.dst, overwrite=overwrite)
    line = (
        f"{job.src} -> {job.dst}: {describe(done.num_vertices, done.num_faces)}, "
        f"{done.num_tokens:,} tokens, {size_of(done.num_bytes)}, {done.seconds:.1f} s"
    )
    return Outcome(
        status="skipped" if done.kept else "done",
        line=f"{job.src}: kept {job.dst}, which exists" if done.kept else line,
        facts={
            "num_vertices": done.num_vertices,
            "num_faces": done.num_faces,
            "num_tokens": done.num_tokens,
            "bits_per_token": done.bits_per_token,
            "file_bytes": done.num_bytes,
            "seconds": done.seconds,
        },
        warnings=done.warnings,
    )


def decode_job(tok: Tokenizer, job: Job, args: argparse.Namespace) -> Outcome:
    """Decode the tokens of one 3D asset."""
    from shapes import detokenize_file

    done = detokenize_file(
        tok, job.src, job.dst, resolution=args.resolution, overwrite=args.overwrite
    )
    line = (
        f"{job.src} -> {job.dst}: {describe(done.num_vertices, done.num_faces)}, "
        f"{size_of(done.num_bytes)}, {done.seconds:.1f} s"
    )
    return Outcome(
        status="skipped" if done.kept else "done",
        line=f"{job.src}: kept {job.dst}, which exists" if done.kept else line,
        facts={
            "num_vertices": done.num_vertices,
            "num_faces": done.num_faces,
            "file_bytes": done.num_bytes,
            "seconds": done.seconds,
        },
    )


def describe(vertices: int, faces: int) -> str:
    """The size of a mesh or cloud in words."""
    return f"{faces:,} faces" if faces else f"{vertices:,} points"


def inspect_lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """What `omnitok inspect` says of a 3D asset instead of frames and rates."""
    place = data["placement"]
    middle = ", ".join(f"{x:.6g}" for x in place["offset"])
    _, rows, columns_ = data["grid"]
    lines = [
        (
            "shape",
            f"longest side {place['scale'] * 1.9:.6g}, middle at ({middle}), "
            + ("with colours" if place["colors"] else "without colours"),
        ),
        (
            "tokens",
            f"3 planes x {rows // 3} x {columns_} = {data['num_tokens']:,} {data['kind']}",
        ),
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
