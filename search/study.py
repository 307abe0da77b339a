"""Does the search pay? Its frontier against a family scaled by hand, at equal cost of training.

Four arms, all from the same space, data, augmentation and latencies:

  family    n, s, m and l: every gene at the same share of its choices (a quarter, a half, three quarters,
            all), each trained alone for the same time
  search    a supernet trained for what the family costs in all; the first part the supernet as a whole, then
            the explored frontier's models at their own resolutions ("polish")
  unpolished  the same frontier after the first part: it has cost that much less
  random    as many subnets drawn at random from the supernet after the first part, a hundred such sets

Time is counted in steps: what a step takes is measured before the first training begins, the least of two
rounds over all of them, so that a machine that is busy later does not take training away from the arm that is
at work then, and every training repeats to the bit. Exploring comes on top and is told apart.

The family's members and some random subnets trained alone also say how well the supernet's estimates rank:
Kendall's tau.

Every training is a run's folder of its own, every answer a file: a study that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import numpy as np
from pydantic import PositiveFloat, TypeAdapter

from model_repo.frontier import DatasetInfo
from model_repo.runtime.select import environment
from model_repo.scoring import MatchTable, match
from search.candidates import Candidate, kept
from search.measure import load_predictions, save_predictions
from search.pipeline import Context, open_run, run_steps
from search.run_folder import Progress, RunError, Silent, write_text
from search.space import Architecture, Space
from search.steps import measured_p50_ms, read_candidates, space_of, weights_of
from search.strategies import graded
from search.study_figures import ArmModels, Judged, compared, ranking
from search.study_values import SIZES, Plan, Study, Training

if TYPE_CHECKING:
    from search.evaluate import SubnetEvaluator

_TIMED_STEPS, _TIMED_SUPERNET_STEPS = 24, 96
_SKIPPED_SHARE = 0.2
_ROUNDS = 2
_SETS = 100
_POOL = 3
"""Random subnets that are judged for each one of a set."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a study is asked for. others: random subnets trained alone beside the family. frontier: models of
    the search's frontier. settings: of every training, as a run has them; `space` and `data` among them."""

    minutes_each: float
    others: int
    frontier: int
    candidates: int
    polish_share: float
    seed: int
    settings: Mapping[str, object]


def study(out: Path, wishes: Wishes, progress: Progress) -> Study:
    """Do or continue the study in the folder `out`.

    Raises RunError when the folder holds another study, and what the steps of a run raise.
    """
    frame = _opened(out / "supernet", wishes, {"steps": 1, "candidates": wishes.candidates}, progress, "data")
    space = space_of(frame)
    plan = _planned(out, wishes, space, frame, progress)
    for training in plan.alone:
        _trained(out, wishes, training, progress)
    supernet = _trained(out, wishes, plan.supernet, progress)
    frontier, seconds = _frontier(supernet, wishes, progress)
    polish = _polished(out, wishes, plan, frontier, progress)
    drawn = _random(space, wishes, exclude=[*frontier, *(_of(training) for training in plan.alone)])
    alone = [_of(training) for training in plan.alone]
    p50_ms = _latencies(out, supernet, space, [*alone, *frontier, *drawn])
    answers = _Answers(out / "answers", supernet, progress)
    for training in plan.alone:
        answers.add(training.name, _context(out, training.name, progress), [_of(training)])
    answers.add("search", polish, frontier)
    answers.add("supernet", supernet, [*frontier, *drawn, *alone])

    def judged(arm: str, architectures: Sequence[Architecture]) -> tuple[Judged, ...]:
        return tuple(
            Judged(
                one.name, p50_ms[one.name], answers.table(arm, one, "valid"), answers.table(arm, one, "test")
            )
            for one in architectures
        )

    family = plan.alone[: len(SIZES)]
    members = tuple(judged(training.name, [_of(training)])[0] for training in family)
    rng = np.random.default_rng([wishes.seed, 0x5E7])
    sets = tuple(
        tuple(sorted(rng.choice(len(drawn), min(wishes.frontier, len(drawn)), replace=False).tolist()))
        for _ in range(_SETS)
    )
    every = tuple(range(len(frontier)))
    first_minutes = plan.supernet.minutes
    budgets_ms = [member.p50_ms for member in members[1:]]
    progress.start("compare the arms", None)
    arms = compared(
        (
            ArmModels("family", sum(t.minutes for t in family), members, (tuple(range(len(members))),)),
            ArmModels("search", first_minutes + plan.polish.minutes, judged("search", frontier), (every,)),
            ArmModels("unpolished", first_minutes, judged("supernet", frontier), (every,)),
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
        arms=arms,
        ranking=ranking(
            [one.name for one in alone],
            [answers.table("supernet", one, "valid") for one in alone],
            [answers.table(t.name, _of(t), "valid") for t in plan.alone],
            seed=wishes.seed,
        ),
    )
    write_text(out / "study.json", result.model_dump_json(indent=1) + "\n")
    return result


def family(space: Space) -> tuple[Architecture, ...]:
    """Return n, s, m and l: every gene at a quarter, a half, three quarters and the end of its choices."""
    last = np.asarray(space.gene_sizes) - 1
    shares = np.arange(1, len(SIZES) + 1) / len(SIZES)
    return tuple(space.from_genes(np.floor(share * last + 0.5).astype(np.int64)) for share in shares)


def others(space: Space, count: int, seed: int) -> tuple[Architecture, ...]:
    """Return random subnets, their multiply-accumulates spread evenly in log from the family's n to its l."""
    members = family(space)
    rng = np.random.default_rng([seed, 0x07])
    pool = [one for one in dict.fromkeys(graded(space, rng) for _ in range(60 * count)) if one not in members]
    log_macs = np.log([space.cost(one).macs for one in pool])
    ends = np.log([space.cost(members[0]).macs, space.cost(members[-1]).macs])
    chosen: list[int] = []
    for place in np.linspace(*ends, count + 2)[1:-1]:
        free = [i for i in range(len(pool)) if i not in chosen]
        if not free:
            raise RunError(f"the space has no {count} subnets beside the family")
        chosen.append(min(free, key=lambda i: (abs(log_macs[i] - place), i)))
    return tuple(pool[i] for i in chosen)


def _random(space: Space, wishes: Wishes, exclude: Sequence[Architecture]) -> list[Architecture]:
    rng = np.random.default_rng([wishes.seed, 0xAD])
    wanted = _POOL * wishes.frontier
    drawn = dict.fromkeys(graded(space, rng) for _ in range(20 * wanted))
    return [one for one in drawn if one not in exclude][:wanted]


def _of(training: Training) -> Architecture:
    assert training.architecture is not None  # asked only of those trained alone
    return Architecture.parse(training.architecture)


# --- trainings -------------------------------------------------------------------------------------------


def _planned(out: Path, wishes: Wishes, space: Space, frame: Context, progress: Progress) -> Plan:
    """Return the study's plan: the one that its folder has, else one with step times measured now."""
    path = out / "plan.json"
    dataset = DatasetInfo.model_validate_json((frame.folder.root / "data" / "dataset.json").read_text())
    members = [*family(space), *others(space, wishes.others, wishes.seed)]
    asked = {
        "dataset": dataset,
        "seed": wishes.seed,
        "minutes_each": wishes.minutes_each,
        "polish_share": wishes.polish_share,
        "candidates": wishes.candidates,
    }
    if path.exists():
        plan = Plan.model_validate_json(path.read_text())
        wrong = [name for name, value in asked.items() if getattr(plan, name) != value]
        if [training.architecture for training in plan.alone] != [one.name for one in members]:
            wrong.append("the subnets trained alone")
        if wrong:
            raise RunError(f"{path}: another study: {', '.join(wrong)} differ; use another --out")
        return plan
    names = [*SIZES, *(f"random-{k}" for k in range(1, wishes.others + 1))]
    taken = _step_seconds(out, wishes, members, progress)
    whole_s = 60.0 * wishes.minutes_each

    def training(name: str, one: Architecture | None, seconds: float, step_s: float) -> Training:
        return Training(
            name=name,
            architecture=None if one is None else one.name,
            steps=max(round(seconds / step_s), 1),
            step_s=step_s,
        )

    alone = tuple(
        training(name, one, whole_s, taken[one.name]) for name, one in zip(names, members, strict=True)
    )
    in_all_s = len(SIZES) * whole_s
    plan = Plan(
        **asked,
        alone=alone,
        supernet=training("supernet", None, in_all_s * (1 - wishes.polish_share), taken["supernet"]),
        polish=training("polish", None, in_all_s * wishes.polish_share, taken["polish"]),
    )
    write_text(path, plan.model_dump_json(indent=1) + "\n")
    return plan


def _step_seconds(
    out: Path, wishes: Wishes, members: Sequence[Architecture], progress: Progress
) -> dict[str, float]:
    """Return what a step of each training takes: the least of the rounds' means, the first steps left out."""
    polished = out / "timing" / "polished.jsonl"
    write_text(polished, _journal(members))
    kinds: dict[str, dict[str, object]] = {
        one.name: {"space": _only(one, wishes), "steps": _TIMED_STEPS} for one in members
    }
    kinds["supernet"] = {"steps": _TIMED_SUPERNET_STEPS}
    kinds["polish"] = {**_polish_settings(polished), "steps": _TIMED_SUPERNET_STEPS // 2}
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    progress.start("time the steps of every training", _ROUNDS * len(kinds))
    for _ in range(_ROUNDS):
        for name, given in kinds.items():
            folder = out / "timing" / name
            rmtree(folder, ignore_errors=True)
            context = _opened(folder, wishes, given, Silent(), "train")
            rows = (context.folder.root / "train" / "history.jsonl").read_text().splitlines()
            seconds = [json.loads(row)["seconds"] for row in rows]
            taken[name].append(float(np.mean(seconds[int(_SKIPPED_SHARE * len(seconds)) :])))
            progress.advance(1, f"{name}: {taken[name][-1]:.3f} s")
    rmtree(out / "timing")
    return {name: min(rounds) for name, rounds in taken.items()}


def _trained(out: Path, wishes: Wishes, training: Training, progress: Progress) -> Context:
    given: dict[str, object] = {"steps": training.steps}
    if training.architecture is not None:
        given["space"] = _only(_of(training), wishes)
    else:
        given["candidates"] = wishes.candidates
    return _opened(out / training.name, wishes, given, progress, "train")


def _frontier(supernet: Context, wishes: Wishes, progress: Progress) -> tuple[list[Architecture], float]:
    """Explore the supernet; return the frontier, cheapest first, and the seconds that exploring took."""
    run_steps(supernet, ("explore",))
    record = supernet.folder.record("explore")
    assert record is not None  # just done
    best = kept(read_candidates(supernet), wishes.frontier)
    return [Architecture.parse(candidate.architecture) for candidate in best], record.seconds


def _polished(
    out: Path, wishes: Wishes, plan: Plan, frontier: Sequence[Architecture], progress: Progress
) -> Context:
    journal = out / "frontier.jsonl"
    write_text(journal, _journal(frontier))
    given = _polish_settings(journal)
    given |= {"init": out / "supernet" / "train" / "weights.pt", "steps": plan.polish.steps}
    return _opened(out / plan.polish.name, wishes, given, progress, "train")


def _polish_settings(journal: Path) -> dict[str, object]:
    """Return the settings of a last part of training that is for some subnets only, as the README has it."""
    return {
        "favour": journal, "polish": True, "solo_share": 0.0, "calm_share": 1.0, "random_subnets": 2,
        "learning_rate": 1e-3,
    }  # fmt: skip


def _journal(architectures: Sequence[Architecture]) -> str:
    """Return a journal of candidates that names these subnets as equally good; latencies keep them apart."""
    rows = [
        Candidate(
            architecture=one.name, generation=0, slices=(0.1 + 0.001 * k,), images=16, finished=True,
            latency_ms=1.0 + k, seconds=0.0,
        )
        for k, one in enumerate(architectures)
    ]  # fmt: skip
    return "".join(row.model_dump_json() + "\n" for row in rows)


def _only(one: Architecture, wishes: Wishes) -> str:
    """Return the space that holds one subnet and nothing else, as a run is given it."""
    asked = json.loads(str(wishes.settings.get("space", "{}")))
    choices = {
        "resolutions": [one.resolution],
        "depths": [[depth] for depth in one.depths],
        "widths": [[width] for width in one.widths],
        "neck_widths": [one.neck_width],
        "head_depths": [one.head_depth],
    }
    return json.dumps({**asked, **choices})


def _opened(
    folder: Path, wishes: Wishes, given: Mapping[str, object], progress: Progress, until: str
) -> Context:
    """Open a training's folder and do its steps up to one of `data` and `train`."""
    run, settings = open_run(folder, {**wishes.settings, "seed": wishes.seed, **given})
    context = Context(run, settings, None, progress, lambda _: None)
    run_steps(context, ("data", "train")[: 1 if until == "data" else 2])
    return context


def _context(out: Path, name: str, progress: Progress) -> Context:
    run, settings = open_run(out / name, {})
    return Context(run, settings, None, progress, lambda _: None)


# --- answers and latencies -------------------------------------------------------------------------------


def _latencies(
    out: Path, supernet: Context, space: Space, architectures: Sequence[Architecture]
) -> dict[str, float]:
    """Return median latencies by architecture, all measured in the same rounds on the run's first runtime."""
    path = out / "latency.json"
    kind = TypeAdapter(dict[str, PositiveFloat])
    wanted = list(dict.fromkeys(architectures))
    if path.exists():
        found = kind.validate_json(path.read_bytes())
        if set(found) == {one.name for one in wanted}:
            return found
    measured = measured_p50_ms(supernet, space, wanted)
    found = {one.name: ms for one, ms in zip(wanted, measured, strict=True)}
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
        from search.measure import truths_of

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
