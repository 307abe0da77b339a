"""The trainings of a study: which subnets, for how many steps, and each of them as a run's folder.

Time is counted in steps: what a step takes is measured before the first training begins, the least of two
rounds over all of them, so that a machine that is busy later does not take training away from the arm that is
at work then, and every training repeats to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import numpy as np
from scipy.optimize import nnls

from model_repo.frontier import DatasetInfo
from search.finishing import RATE_SHARE
from search.pipeline import Context, open_run, run_steps
from search.run_folder import Progress, RunError, Silent, write_text
from search.settings import Settings
from search.space import Architecture, Space
from search.strategies import graded
from search.study_values import SIZES, Plan, Training

_SUPERNET_TIMES = 4
"""So many times the steps are timed of the supernet, whose steps differ."""
_SKIPPED_SHARE = 0.2
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a study is asked for. others: random subnets trained alone beside the family. frontier: models of
    the search's frontier. settings: of every training, as a run has them; `space` and `data` among them.
    timed_steps: of one training alone, per round, that its budget in steps is taken from."""

    minutes_each: float
    others: int
    frontier: int
    candidates: int
    finish_share: float
    seed: int
    settings: Mapping[str, object]
    timed_steps: int = 24


def family(space: Space) -> tuple[Architecture, ...]:
    """Return n, s, m and l: every gene at a quarter, a half, three quarters and the end of its choices.

    Raises RunError when two of them are the same.
    """
    last = np.asarray(space.gene_sizes) - 1
    shares = np.arange(1, len(SIZES) + 1) / len(SIZES)
    members = tuple(space.from_genes(np.floor(share * last + 0.5).astype(np.int64)) for share in shares)
    if len(set(members)) < len(members):
        raise RunError("the space is too small for a family of four sizes")
    return members


def others(space: Space, count: int, seed: int) -> tuple[Architecture, ...]:
    """Return random subnets, their multiply-accumulates spread evenly in log from the family's n to its l."""
    members = family(space)
    rng = np.random.default_rng([seed, 0x07])
    pool = [one for one in dict.fromkeys(graded(space, rng) for _ in range(60 * count)) if one not in members]
    log_macs = np.log([space.cost(one).macs for one in pool])
    ends = np.log([space.cost(members[0]).macs, space.cost(members[-1]).macs])
    chosen: list[int] = []
    for place in np.linspace(ends[0], ends[1], count + 2)[1:-1]:
        free = [i for i in range(len(pool)) if i not in chosen]
        if not free:
            raise RunError(f"the space has no {count} subnets beside the family")
        chosen.append(min(free, key=lambda i: (abs(log_macs[i] - place), i)))
    return tuple(pool[i] for i in chosen)


def architecture_of(training: Training) -> Architecture:
    assert training.architecture is not None  # asked only of those trained alone
    return Architecture.parse(training.architecture)


def planned(out: Path, wishes: Wishes, space: Space, frame: Context, progress: Progress) -> Plan:
    """Return the study's plan: the one that its folder has, else one with step times measured now."""
    path = out / "plan.json"
    dataset = DatasetInfo.model_validate_json((frame.folder.root / "data" / "dataset.json").read_text())
    members = [*family(space), *others(space, wishes.others, wishes.seed)]
    if path.exists():
        plan = Plan.model_validate_json(path.read_text())
        asked = {
            "dataset": (plan.dataset, dataset),
            "seed": (plan.seed, wishes.seed),
            "minutes_each": (plan.minutes_each, wishes.minutes_each),
            "finish_share": (plan.finish_share, wishes.finish_share),
            "candidates": (plan.candidates, wishes.candidates),
        }
        wrong = [name for name, (before, now) in asked.items() if before != now]
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
        dataset=dataset,
        seed=wishes.seed,
        minutes_each=wishes.minutes_each,
        finish_share=wishes.finish_share,
        candidates=wishes.candidates,
        alone=alone,
        supernet=training("supernet", None, in_all_s * (1 - wishes.finish_share), taken["supernet"]),
        finish_minutes=in_all_s * wishes.finish_share / 60.0,
    )
    write_text(path, plan.model_dump_json(indent=1) + "\n")
    return plan


def _step_seconds(
    out: Path, wishes: Wishes, members: Sequence[Architecture], progress: Progress
) -> dict[str, float]:
    """Return what a step of each training takes: the least of the rounds' means, the first steps left out."""
    kinds: dict[str, dict[str, object]] = {
        one.name: {"space": _only(one, wishes), "steps": wishes.timed_steps} for one in members
    }
    kinds["supernet"] = {"steps": _SUPERNET_TIMES * wishes.timed_steps}
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    progress.start("time the steps of every training", _ROUNDS * len(kinds))
    for _ in range(_ROUNDS):
        for name, given in kinds.items():
            folder = out / "timing" / name
            rmtree(folder, ignore_errors=True)
            context = opened(folder, wishes, given, Silent(), "train")
            rows = (context.folder.root / "train" / "history.jsonl").read_text().splitlines()
            seconds = [json.loads(row)["seconds"] for row in rows]
            taken[name].append(float(np.mean(seconds[int(_SKIPPED_SHARE * len(seconds)) :])))
            progress.advance(1, f"{name}: {taken[name][-1]:.3f} s")
    rmtree(out / "timing")
    return {name: min(rounds) for name, rounds in taken.items()}


def trained(out: Path, wishes: Wishes, training: Training, progress: Progress) -> Context:
    given: dict[str, object] = {"steps": training.steps}
    if training.architecture is not None:
        given["space"] = _only(architecture_of(training), wishes)
    else:
        given["candidates"] = wishes.candidates
    return opened(out / training.name, wishes, given, progress, "train")


def finished(
    out: Path, wishes: Wishes, plan: Plan, space: Space, frontier: Sequence[Architecture], progress: Progress
) -> tuple[Training, ...]:
    """Train each of the frontier's models alone from the supernet's weights, all for the same time."""
    step_s = step_seconds_fit(plan, space)
    each_s = 60.0 * plan.finish_minutes / len(frontier)
    done = []
    for one in frontier:
        seconds = step_s(one)
        training = Training(
            name=f"finish/{one.name}",
            architecture=one.name,
            steps=max(round(each_s / seconds), 1),
            step_s=seconds,
        )
        given: dict[str, object] = {
            "space": _only(one, wishes),
            "steps": training.steps,
            "init": out / plan.supernet.name / "train" / "weights.pt",
            "calm_share": 1.0,
            "learning_rate": RATE_SHARE * Settings(data="").learning_rate,
        }
        opened(out / training.name, wishes, given, progress, "train")
        done.append(training)
    return tuple(done)


def step_seconds_fit(plan: Plan, space: Space) -> Callable[[Architecture], float]:
    """Return what a step of a subnet takes, in seconds: a line through those that were timed, over
    multiply-accumulates, fitted to the relative error."""
    macs = np.array([space.cost(architecture_of(training)).macs for training in plan.alone]) / 1e9
    taken = np.array([training.step_s for training in plan.alone])
    rows = np.column_stack((np.ones_like(macs), macs)) / taken[:, None]
    base, slope = (float(value) for value in nnls(rows, np.ones_like(taken))[0])
    return lambda one: base + slope * space.cost(one).macs / 1e9


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


def opened(
    folder: Path, wishes: Wishes, given: Mapping[str, object], progress: Progress, until: str
) -> Context:
    """Open a training's folder and do its steps up to one of `data` and `train`."""
    run, settings = open_run(folder, {**wishes.settings, "seed": wishes.seed, **given})
    context = Context(run, settings, None, progress, lambda _: None)
    run_steps(context, ("data", "train")[: 1 if until == "data" else 2])
    return context


def context_of(out: Path, name: str, progress: Progress) -> Context:
    run, settings = open_run(out / name, {})
    return Context(run, settings, None, progress, lambda _: None)
