"""One load from its description to its verdict: connect, ask what is served, warm up, send, judge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.early_stopping import Decision
from loadtest.frames import Frame
from loadtest.runner import Limits, Request, run_open_loop, warm_up
from loadtest.sample import Sample
from loadtest.senders import send_together, shares
from loadtest.target import Description, Target, TargetError
from loadtest.timetable import Timetable
from loadtest.verdict import Conditions, Verdict, judge
from model_repo.scoring import Truth

_WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Run:
    """A judged run with its samples."""

    verdict: Verdict
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A load: where to, what, when, judged by what.

    senders: processes that share the schedule; one sends from this process. early_stop: end as soon as it is
    decided whether the quantile keeps its budget.
    """

    connect: Callable[[], Target]
    frames: tuple[Frame, ...]
    timetable: Timetable
    request: Request
    limits: Limits
    conditions: Conditions
    senders: int = 1
    early_stop: bool = False


async def carry_out(job: Job, label: str) -> Run:
    """Put a target under load and judge it, with a progress bar on the standard error.

    Raises TargetError when it does not serve or has not the operating point asked for, FramesError when
    the frames carry classes that it does not know, ValueError without an arrival.
    """
    total = len(job.timetable)
    if not total:
        raise ValueError("the schedule has no arrival; raise the rate or the duration")
    target = job.connect()
    try:
        description = await target.describe()
        truths = truths_for(job.frames, description, job.request.operating_point)
        conditions, decision = job.conditions, None
        if job.early_stop:
            decision = Decision(total, conditions.tested, conditions.confidence)
            # Several looks share the risk of an error, so each is stricter, the last one too.
            conditions = replace(conditions, confidence=decision.confidence)
        with _progress(label, total) as advance:

            def on_done(position: int, sample: Sample) -> None:
                advance(sample)
                if decision is not None:
                    decision.done(position, sample.met(conditions.budget_ms))

            samples = await _send(job, target, on_done, lambda: decision is not None and decision.decided)
    finally:
        await target.close()
    return Run(judge(samples, conditions, truths, description.classes, planned=total), samples)


async def _send(
    job: Job, target: Target, on_done: Callable[[int, Sample], None], stopped: Callable[[], bool]
) -> tuple[Sample, ...]:
    contents = tuple(frame.content for frame in job.frames)
    if job.senders == 1:
        await warm_up(target, contents, job.request, _WARM_UP)
        return await run_open_loop(
            target,
            contents,
            job.timetable.due_ns,
            job.timetable.carried(job.request),
            job.limits,
            on_done,
            frame_of=lambda position: int(job.timetable.frame[position]),
            stopped=stopped,
        )
    parts = shares(
        job.connect,
        contents,
        job.timetable,
        job.request,
        job.limits,
        senders=job.senders,
        warm_up=_WARM_UP,
    )
    return await send_together(parts, on_done, stopped)


def truths_for(
    frames: Sequence[Frame], description: Description, operating_point: str | None
) -> tuple[Truth, ...]:
    """Return the frames' labels in the gateway's numbering.

    Raises TargetError for an operating point that it does not have, FramesError for an unknown class.
    """
    if operating_point is not None and operating_point not in description.operating_points:
        raise TargetError(
            f"no operating point {operating_point!r}; there are {', '.join(description.operating_points)}"
        )
    return tuple(frame.truth(description.classes) for frame in frames)


def _progress(label: str, total: int) -> AbstractContextManager[Callable[[Sample], None]]:
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return nullcontext(lambda _: None)
    return _Bar(console, label, total)


class _Bar(AbstractContextManager[Callable[[Sample], None]]):
    """A progress bar that also counts what was not answered."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[lost]}"),
            TimeRemainingColumn(),
            console=console,
            # Drawing competes with the generator for the interpreter; four times a second is enough to see.
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, lost="")
        self._lost = 0

    def __enter__(self) -> Callable[[Sample], None]:
        self._progress.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _advance(self, sample: Sample) -> None:
        if not sample.answered:
            self._lost += 1
        lost = f"{self._lost} without answer" if self._lost else ""
        self._progress.update(self._task, advance=1, lost=lost)
