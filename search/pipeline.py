"""One run from data set to published repository: the order of its steps, and how it goes on after a stop.

A step that has finished has a record; it is not repeated. A step that was stopped goes on from what it wrote:
training from its checkpoint, exploration from its journal, measuring from the answers on the disk.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from model_repo.publish import file_digest
from search.run_folder import (
    Progress,
    RunError,
    RunFolder,
    StepRecord,
    check_settings,
    write_bytes,
)
from search.settings import STEPS, Settings, merged_settings, read_settings, write_settings

if TYPE_CHECKING:
    from search.data.coco import Dataset

_MEASURING = frozenset(("explore", "export", "measure", "publish"))


@dataclass(slots=True)
class Context:
    """What every step gets: the run's folder and settings, where to publish, where to report progress."""

    folder: RunFolder
    settings: Settings
    repository: Path | None
    progress: Progress
    say: Callable[[str], None]
    _dataset: Dataset | None = None

    def dataset(self) -> Dataset:
        """Return the data set, read once; raises RunError when it has changed since step `data`."""
        if self._dataset is None:
            from search.steps import read_checked

            self._dataset = read_checked(self)
        return self._dataset


def open_run(
    root: Path, given: Mapping[str, object], *, again: str | None = None
) -> tuple[RunFolder, Settings]:
    """Return a run's folder and its settings: what it has, with those given over it.

    again: the step to do once more, with all that follow it. Raises RunError when a step was begun with other
    settings, naming the fields; settings of steps that are still to come may change.
    """
    folder = RunFolder(root)
    before = read_settings(folder)
    if before is None and "data" not in given:
        raise RunError(f"{root} is no run yet: begin it with --data DIR")
    settings = _with_table(folder, merged_settings(before, given))
    if again is not None:
        if again not in STEPS:
            raise RunError(f"no step is called {again!r}; the steps are {', '.join(STEPS)}")
        for step in STEPS[STEPS.index(again) :]:
            folder.forget(step)
            rmtree(root / step, ignore_errors=True)
    for step in STEPS:
        record = folder.record(step) or folder.claim(step)
        if record is not None:
            check_settings(record, settings.of_step(step), settings.defaults_of_step(step), root)
    write_settings(folder, settings)
    return folder, settings


def _with_table(folder: RunFolder, settings: Settings) -> Settings:
    """Copy a latency table that is given as a path into the run; the setting is its digest from then on."""
    table = settings.latency_table
    if table is None or not table.startswith("/"):
        return settings
    try:
        content = Path(table).read_bytes()
    except OSError as error:
        raise RunError(f"latency_table: {table}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(folder.path("tables", f"{digest}.json"), content)
    return settings.model_copy(update={"latency_table": digest})


def run_steps(context: Context, names: Sequence[str], *, record: bool = True) -> None:
    """Do the named steps, in order, that are not finished; each needs every step before it to be finished.

    record: write down what begins and ends; of processes that train together, only the first does.

    Raises RunError when a step before is missing or a target is, or whatever the step itself raises.
    """
    checked = False
    for position, name in enumerate(names):
        inputs: dict[str, str] = {}
        for before in STEPS[: STEPS.index(name)]:
            past = context.folder.record(before)
            if past is None:
                raise RunError(f"{context.folder.root}: step {name!r} needs step {before!r} to be done first")
            inputs[before] = past.digest
        past = context.folder.record(name)
        if past is not None and _stands(past, inputs, context.folder):
            context.say(f"{name}: finished before ({past.seconds:.0f} s)")
            continue
        if not checked:
            _check_targets(context, names[position:])
            checked = True
        start_s = time.monotonic()
        begun = StepRecord(
            step=name, settings=context.settings.of_step(name), inputs=inputs, outputs={}, seconds=0.0
        )
        if record:
            _claim(context.folder, begun)
        written = _step(name)(context)
        if not record:
            continue
        finished = begun.model_copy(
            update={
                "outputs": {_relative(path, context.folder): file_digest(path) for path in written},
                "seconds": time.monotonic() - start_s,
            }
        )
        context.folder.finish(finished)
        context.say(f"{name}: done in {finished.seconds:.0f} s")


def _check_targets(context: Context, names: Sequence[str]) -> None:
    """Find out now, and not after hours of training, whether steps that are to come can measure."""
    if _MEASURING.intersection(names):
        from search.targets import check_targets

        check_targets(context, names)


def _claim(folder: RunFolder, begun: StepRecord) -> None:
    """Say what a step's own folder is being filled from; what it holds of other inputs is thrown away."""
    before = folder.claim(begun.step)
    if before is not None:
        check_settings(before, begun.settings, Settings.defaults_of_step(begun.step), folder.root)
        if before.inputs != begun.inputs:
            rmtree(folder.root / begun.step, ignore_errors=True)
    folder.begin(begun)


def _stands(record: StepRecord, inputs: dict[str, str], folder: RunFolder) -> bool:
    """Return whether a finished step still follows from the ones before it, and its files are there."""
    return record.inputs == inputs and all((folder.root / path).exists() for path in record.outputs)


def _relative(path: Path, folder: RunFolder) -> str:
    inside = path.is_relative_to(folder.root)
    return str(path.relative_to(folder.root)) if inside else str(path.resolve())


def _step(name: str) -> Callable[[Context], list[Path]]:
    # Imported one by one: a step brings in only what it needs (torch for some, a runtime for others).
    if name in ("data", "train", "explore"):
        from search import steps

        return {"data": steps.data, "train": steps.train, "explore": steps.explore}[name]
    if name == "finish":
        from search import finishing

        return finishing.finish
    if name == "export":
        from search import exporting

        return exporting.export
    from search import publishing

    return {
        "measure": publishing.measure,
        "route": publishing.route,
        "publish": publishing.publish,
        "report": publishing.report,
    }[name]
