"""Many files, one after another: a bad one is reported and the rest are done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tools.commands.errors import BUG, DONE, FAILED, UsageError, bug, sentence
from tools.commands.planning import Job, Plan
from tools.commands.reporting import Progress, Report, size_of
from tools.commands.stopping import Stopped, check

LONG_RUN = 10  # jobs from which the failed ones are listed again at the end
Update = Callable[[int, int | None], None]


@dataclass(kw_only=True)
class Outcome:
    """What became of one file.

    Attributes:
        status: "done", "skipped" (its output exists) or "planned" (a dry run).
        line: What to tell a person.
        facts: What to tell a program.
        warnings: One sentence each.
        has_audio: Whether there is sound that is not kept.
    """

    status: str
    line: str
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    has_audio: bool = False


def planned(
    job: Job, overwrite: bool, about: str, facts: dict[str, Any], warnings: tuple[str, ...] = ()
) -> Outcome:
    """What a dry run says about a job that could be done."""
    from video.files import has_output

    exists = has_output(job.dst)
    keep = exists and not overwrite
    verb = "keep" if keep else "replace" if exists else "write"
    return Outcome(
        status="skipped" if keep else "planned",
        line=f"{job.src}: would {verb} {job.dst}: {about}",
        facts={**facts, "exists": exists},
        warnings=warnings,
    )


class Finished(Protocol):
    """What a function that turns one file into another says of it."""

    @property
    def kept(self) -> bool:
        """Whether the output was there before and was left as it is."""

    @property
    def num_bytes(self) -> int:
        """Size of the output."""

    @property
    def seconds(self) -> float:
        """Time it took."""


def finished(
    job: Job, done: Finished, about: str, facts: dict[str, Any], frames: int | None = None
) -> Outcome:
    """What became of a job that was done, or whose output was kept.

    Args:
        job: The job.
        done: What its function returned.
        about: The output in words.
        facts: The same for a program.
        frames: How many of them there are, to say how fast it was.
    """
    speed = "" if frames is None else f" ({frames / done.seconds:.1f} frames/s)"
    line = (
        f"{job.src} -> {job.dst}: {about}, {size_of(done.num_bytes)}, {done.seconds:.1f} s{speed}"
    )
    return Outcome(
        status="skipped" if done.kept else "done",
        line=f"{job.src}: kept {job.dst}, which exists" if done.kept else line,
        facts={**facts, "file_bytes": done.num_bytes, "seconds": done.seconds},
        warnings=getattr(done, "warnings", ()),
    )


def run_jobs(
    command: str, plan: Plan, work: Callable[[Job, Update], Outcome], report: Report
) -> int:
    """Do every job of a plan and print the result.

    Args:
        command: Its name in the result.
        plan: The jobs.
        work: Does one job; called with a function to report progress to.
        report: Where to print.

    Returns:
        The exit status.
    """
    batch = _Batch(work, report)
    signum = 0
    try:
        with report.progress(len(plan.jobs)) as progress:
            for job in plan.jobs:
                check()
                progress.start(job.src)
                batch.do(job, progress)
                progress.finish()
    except Stopped as stopped:
        signum = stopped.signum
    status = 128 + signum if signum else BUG if batch.bugs else FAILED if batch.failed else DONE
    counts = Counter(entry["status"] for entry in batch.entries)
    names = ("planned",) if counts["planned"] else ("done",)
    data = {
        "command": command,
        **{name: counts[name] for name in (*names, "skipped", "failed")},
        "left": len(plan.jobs) - len(batch.entries),
        "ignored": plan.ignored,
        "stopped": bool(signum),
        "status": status,
        "files": batch.entries,
    }
    if len(plan.jobs) >= LONG_RUN and not report.json:
        for job, why in batch.failed:
            report.error(_failure(job, why))
    about = {
        "skipped": "skipped (the output exists)",
        "left": "left (stopped before the end; run the same command again to go on)",
        "ignored": "ignored in folders",
    }
    words = [
        f"{data[name]} {about.get(name, name)}"
        for name in (*names, "skipped", "failed", "left", "ignored")
        if data[name] or name in names
    ]
    report.result(data, [", ".join(words)])
    return status


def _failure(job: Job, why: str) -> str:
    """A line about a failed job; most sentences name the file themselves."""
    return f"failed: {why}" if job.src in why else f"failed: {job.src}: {why}"


class _Batch:
    """Does jobs and remembers what became of them."""

    def __init__(self, work: Callable[[Job, Update], Outcome], report: Report) -> None:
        self._work, self._report = work, report
        self.entries: list[dict[str, Any]] = []
        self.failed: list[tuple[Job, str]] = []
        self.bugs = 0
        self._told_audio = False

    def do(self, job: Job, progress: Progress) -> None:
        """Do one job, whatever happens."""

        def update(done: int, total: int | None) -> None:
            check()
            progress.update(done, total)

        try:
            outcome = None if job.error else self._work(job, update)
        except UsageError:
            raise  # would be the same for every file
        except Exception as error:
            outcome, known = None, sentence(error)
            self.bugs += known is None
            job.error = known or bug(error)
        entry: dict[str, Any] = {"input": job.src, "output": job.dst or None}
        if outcome is None:
            entry |= {"status": "failed", "error": job.error}
            self.failed.append((job, job.error))
            self._report.error(_failure(job, job.error))
        else:
            entry |= {"status": outcome.status, **outcome.facts}
            entry["warnings"] = list(outcome.warnings)
            self._report.note(outcome.line)
            for warning in outcome.warnings:
                self._report.note(f"warning: {warning}")
            if outcome.has_audio and not self._told_audio:
                self._told_audio = True
                self._report.note(f"warning: sound is not kept ({job.src} has some)")
        self.entries.append(entry)
