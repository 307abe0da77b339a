"""Does the search pay? Its frontier against a family scaled by hand, at equal cost of training.

Four arms, all from the same space, data, augmentation and latencies:

  family      n, s, m and l: every gene at the same share of its choices (a quarter, a half, three quarters,
              all), each trained alone for the same time
  search      a supernet trained for what the family costs in all; the first part the supernet as a whole,
              then the explored frontier's models each alone, from the shared weights (step `finish`)
  unfinished  the same frontier after the first part: it has cost that much less
  random      as many subnets drawn at random from the supernet after the first part, a hundred such sets

Exploring comes on top and is told apart. The family's members and some random subnets trained alone also say
how well the supernet's estimates rank: Kendall's tau. Every answer is a file: a study that was stopped goes
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import PositiveFloat, TypeAdapter

from model_repo.runtime.select import environment
from model_repo.scoring import MatchTable, match
from search.candidates import kept
from search.measure import load_predictions, save_predictions, truths_of
from search.pipeline import Context, run_steps
from search.predict import LatencyModel, LatencyTable
from search.run_folder import Progress, write_text
from search.space import Architecture, Space
from search.steps import measured_table, read_candidates, space_of, weights_of
from search.strategies import graded
from search.study_figures import ArmModels, Judged, compared, ranking
from search.study_plan import Wishes, architecture_of, context_of, finished, opened, planned, trained
from search.study_values import SIZES, Study

if TYPE_CHECKING:
    from search.evaluate import SubnetEvaluator

_SETS = 100
_BELOW = 0.8
_POOL = 3
"""Random subnets that are judged for each one of a set."""


def study(out: Path, wishes: Wishes, progress: Progress) -> Study:
    """Do or continue the study in the folder `out`.

    Raises RunError when the folder holds another study, and what the steps of a run raise.
    """
    frame = opened(out / "data", wishes, {"steps": 1}, progress, "data")
    space = space_of(frame)
    plan = planned(out, wishes, space, frame, progress)
    for training in plan.alone:
        trained(out, wishes, training, progress)
    supernet = trained(out, wishes, plan.supernet, progress)
    alone = [architecture_of(training) for training in plan.alone]
    frontier, seconds = _frontier(supernet, space, alone[: len(SIZES)], wishes)
    again = finished(out, wishes, plan, space, frontier, progress)
    drawn = _random(
        space, wishes, exclude=[*frontier, *(architecture_of(training) for training in plan.alone)]
    )
    alone = [architecture_of(training) for training in plan.alone]
    p50_ms = _latencies(out, supernet, space, [*alone, *frontier, *drawn])
    answers = _Answers(out / "answers", supernet, progress)
    for training in plan.alone:
        answers.add(training.name, context_of(out, training.name, progress), [architecture_of(training)])
    for training in again:
        answers.add("search", context_of(out, training.name, progress), [architecture_of(training)])
    answers.add("supernet", supernet, [*frontier, *drawn, *alone])

    def judged(arm: str, architectures: Sequence[Architecture]) -> tuple[Judged, ...]:
        return tuple(
            Judged(
                one.name, p50_ms[one.name], answers.table(arm, one, "valid"), answers.table(arm, one, "test")
            )
            for one in architectures
        )

    family = plan.alone[: len(SIZES)]
    members = tuple(judged(training.name, [architecture_of(training)])[0] for training in family)
    rng = np.random.default_rng([wishes.seed, 0x5E7])
    sets = tuple(
        tuple(sorted(rng.choice(len(drawn), min(wishes.frontier, len(drawn)), replace=False).tolist()))
        for _ in range(_SETS)
    )
    every = tuple(range(len(frontier)))
    first_minutes, finish_minutes = plan.supernet.minutes, sum(training.minutes for training in again)
    budgets_ms = [member.p50_ms for member in members[1:]]
    progress.start("compare the arms", None)
    arms = compared(
        (
            ArmModels("family", sum(t.minutes for t in family), members, (tuple(range(len(members))),)),
            ArmModels(
                "search",
                first_minutes + finish_minutes,
                judged("search", frontier),
                (every,),
            ),
            ArmModels("unfinished", first_minutes, judged("supernet", frontier), (every,)),
            ArmModels("random", first_minutes, judged("supernet", drawn), sets),
        ),
        budgets_ms,
        seed=wishes.seed,
    )
    result = Study(
        plan=plan,
        environment=environment(),
        budgets_ms=tuple(budgets_ms),
        explore_seconds=seconds,
        finished=again,
        arms=arms,
        ranking=ranking(
            [one.name for one in alone],
            [answers.table("supernet", one, "valid") for one in alone],
            [answers.table(t.name, architecture_of(t), "valid") for t in plan.alone],
            seed=wishes.seed,
        ),
    )
    write_text(out / "study.json", result.model_dump_json(indent=1) + "\n")
    return result


def _random(space: Space, wishes: Wishes, exclude: Sequence[Architecture]) -> list[Architecture]:
    rng = np.random.default_rng([wishes.seed, 0xAD])
    wanted = _POOL * wishes.frontier
    drawn = dict.fromkeys(graded(space, rng) for _ in range(20 * wanted))
    return [one for one in drawn if one not in exclude][:wanted]


def _frontier(
    supernet: Context, space: Space, members: Sequence[Architecture], wishes: Wishes
) -> tuple[list[Architecture], float]:
    """Explore the supernet; return its frontier within the family's latencies, cheapest first, and the
    seconds that exploring took.

    By estimated latency, and somewhat below the family's fastest: a model there counts from then on.
    """
    run_steps(supernet, ("explore",))
    record = supernet.folder.record("explore")
    assert record is not None  # just done
    path = supernet.folder.root / "explore" / "latency_table.json"
    latency_ms = LatencyModel(space, LatencyTable.parse(path.read_text(), str(path)))
    low, high = _BELOW * latency_ms(members[0]), latency_ms(members[-1])
    within = [one for one in read_candidates(supernet) if low <= one.latency_ms <= high]
    best = kept(within, wishes.frontier)
    return [Architecture.parse(candidate.architecture) for candidate in best], record.seconds


def _latencies(
    out: Path, supernet: Context, space: Space, architectures: Sequence[Architecture]
) -> dict[str, float]:
    """Return median latencies by architecture, all measured in the same rounds on the run's first target."""
    path = out / "latency.json"
    kind = TypeAdapter(dict[str, PositiveFloat])
    wanted = list(dict.fromkeys(architectures))
    if path.exists():
        found = kind.validate_json(path.read_bytes())
        if set(found) == {one.name for one in wanted}:
            return found
    found = {row.architecture: row.p50_ms for row in measured_table(supernet, space, wanted).measured}
    write_text(path, kind.dump_json(found, indent=1).decode() + "\n")
    return found


class _Answers:
    """What every model of every arm answered on valid and test, in float32, each kept as a file."""

    def __init__(self, root: Path, frame: Context, progress: Progress) -> None:
        self._root, self._dataset, self._progress = root, frame.dataset(), progress
        self._settings = frame.settings

    def add(self, arm: str, trained: Context, architectures: Sequence[Architecture]) -> None:
        """Answer both splits with subnets of a trained supernet, those that have not answered yet."""
        for split in ("valid", "test"):
            missing = [one for one in architectures if not self._path(arm, one, split).exists()]
            if not missing:
                continue
            evaluator = self._evaluator(trained, split)
            self._progress.start(f"answers on {split} ({arm})", len(missing))
            for one in missing:
                path = self._path(arm, one, split)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_predictions(path, evaluator.predictions(evaluator.detector(one)))
                self._progress.advance(1, one.name)

    def table(self, arm: str, one: Architecture, split: str) -> MatchTable:
        """Return the matches of a model's answers."""
        truths = truths_of(self._dataset, "valid" if split == "valid" else "test")
        return match(truths, load_predictions(self._path(arm, one, split)), len(self._dataset.classes))

    def _path(self, arm: str, one: Architecture, split: str) -> Path:
        return self._root / arm / f"{one.name}.{split}.npz"

    def _evaluator(self, trained: Context, split: str) -> SubnetEvaluator:
        import torch

        from search.artifacts import cores
        from search.evaluate import SubnetEvaluator
        from search.weights import read_supernet

        torch.set_num_threads(cores())
        return SubnetEvaluator(
            read_supernet(weights_of(trained)).supernet(), self._dataset, split=split,
            seed=self._settings.seed, precision="float32", nms_iou=self._settings.nms_iou,
        )  # fmt: skip
