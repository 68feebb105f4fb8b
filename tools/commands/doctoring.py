"""`omnitok doctor`: is everything here that omnitok needs, and does it work?"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tools.commands.errors import DONE, FAILED
from tools.commands.options import add_json
from tools.commands.reporting import Report


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="check the installation")
    add_json(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What.
        ok: Whether it is as it should be.
        found: What was found.
        advice: What to do about it, if it is not.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""


def run(args: argparse.Namespace) -> int:
    """Carry out the command."""
    report = Report(json=args.json)
    checks: list[Check] = []
    for look in (_python, _torch, _av, _decord, _device, _kernels, _weights, _self_test):
        checks += _guarded(look)
    problems = [check for check in checks if not check.ok]
    status = FAILED if problems else DONE
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "ok     " if check.ok else "PROBLEM"
        lines.append(f"{mark}  {check.name:<{width}}  {check.found}")
        if not check.ok:
            lines.append(f"{'':{width + 11}}-> {check.advice}")
    verdict = f"{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "all is well"
    data = {"command": "doctor", "status": status, "checks": [asdict(check) for check in checks]}
    report.result(data, [*lines, verdict])
    return status


def _guarded(look: Callable[[], list[Check]]) -> list[Check]:
    """Look, and turn whatever goes wrong into a problem: that is what a doctor is for."""
    try:
        return look()
    except Exception as error:
        name = look.__name__.strip("_").replace("_", "-")
        found = f"{type(error).__name__}: {error}"
        return [Check(name, False, found, "install omnitok again: pip install -U omnitok")]


def _python() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Check(
            "python",
            sys.version_info >= (3, 10),
            f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            "use Python 3.10 or later",
        ),
        Check("cores", True, str(cores)),
    ]


def _torch() -> list[Check]:
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return [
        Check(
            "torch",
            version >= (2, 9),
            f"{torch.__version__}, {torch.get_num_threads()} threads",
            "pip install 'torch>=2.9'",
        )
    ]


def _av() -> list[Check]:
    import av

    return [
        Check(
            "av",
            "libx264" in av.codecs_available,
            f"{av.__version__}, H.264 encoder {'libx264' in av.codecs_available}",
            "pip install -U av (a build with libx264)",
        )
    ]


def _decord() -> list[Check]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return [Check("decord", True, version("decord2"))]
    except PackageNotFoundError:
        return [Check("decord", True, "not installed (optional: pip install 'omnitok[decord]')")]


def _device() -> list[Check]:
    import torch

    if not torch.cuda.is_available():
        return [Check("device", True, "cpu (this torch sees no GPU)"), _bfloat16("cpu")]
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory
    found = f"cuda: {torch.cuda.device_count()} x {name}, {memory / 2**30:.0f} GiB"
    return [Check("device", True, found), _bfloat16("cuda")]


def _bfloat16(device: str) -> Check:
    import torch

    one = torch.ones(8, 8, device=device, dtype=torch.bfloat16)
    works = bool((one @ one == 8).all())
    return Check("bfloat16", works, f"works on {device}", f"use --dtype float32 on {device}")


def _kernels() -> list[Check]:
    from omnitok.native.build import SWITCH, BuildError, compiled, has_tiles, library

    if os.environ.get(SWITCH) == "0":
        return [Check("kernels", True, f"off ({SWITCH}=0); PyTorch computes everything")]
    if not has_tiles():
        return [Check("kernels", True, "PyTorch's (this processor has no matrix tiles)")]
    try:
        found = str(compiled())
    except (BuildError, OSError) as error:
        advice = "install a C++ compiler (apt install g++); without, all works, but slower"
        return [Check("kernels", False, f"cannot be made: {error}", advice)]
    works = library() is not None
    text = f"omnitok's own, {found}" if works else "the system does not allow matrix tiles"
    return [Check("kernels", True, text)]


def _weights() -> list[Check]:
    import omnitok
    from omnitok.hub import shipped
    from tools.commands.listing import read_model_card

    advice = "install omnitok again: pip install --force-reinstall omnitok"
    if not shipped():
        return [Check("weights", False, "none ship with this copy of omnitok", advice)]
    checks = []
    for name, path in shipped().items():
        found = omnitok.load(name).weights_sha256
        wanted = (read_model_card(path) or {}).get("weights_sha256", found)
        same = found == wanted
        text = found[:12] if same else f"{found[:12]}, but its card says {wanted[:12]}"
        checks.append(Check(f"weights {name}", same, text, advice))
    return checks


def _self_test() -> list[Check]:
    import torch

    import omnitok
    from omnitok.hub import shipped

    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8, generator=generator)
    checks = []
    for name in shipped():
        tok = omnitok.load(name)
        tokens = tok.tokenize(frames)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "test.safetensors")
            tokens.save(path)
            read = omnitok.Tokens.load(path, tokenizer=tok)
        same = torch.equal(read.data, tokens.data)
        decoded = tok.detokenize(read)
        works = same and decoded.shape == frames.shape
        found = f"9 frames of 64x64 to {tokens.grid} tokens, to a file and back"
        checks.append(
            Check(f"self-test {name}", works, found, "please report this as a bug in omnitok")
        )
    return checks
