"""Measure a published repository again: the same models and plans, the latencies of this machine and moment.

Whoever serves on other hardware than the search ran on, or published from a busy machine, gets profiles and
plan costs that hold there; accuracy, alignments and rules do not depend on the machine and stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from model_repo.frontier import Frontier, Plan, Variant
from model_repo.latency import Histogram, LatencyProfile, RuntimeName
from model_repo.plans import plan_cost
from model_repo.publish import Repository
from model_repo.runtime.select import environment
from search.data.coco import Dataset
from search.measure import COST_FRAMES, decode_cost, load_all, loaded, profiles_of
from search.run_folder import Progress, RunError
from search.targets import Targets

Profiles = dict[tuple[str, RuntimeName], tuple[LatencyProfile, ...]]


def remeasure(
    repository: Repository, dataset: Dataset, progress: Progress, targets: Targets, *, samples: int = 200
) -> Frontier:
    """Return the frontier with latencies and plan costs measured here, on the frames of split `test`.

    What the manifest says of a runtime that is not within reach stays as it was. Raises RunError when the
    plans' own runtime is not, or does not run all variants of its plans.
    """
    frontier = repository.frontier
    images = loaded(dataset, "test").images
    profiles: Profiles = {}
    for runtime in dict.fromkeys(r for variant in frontier.variants for r in variant.runtimes):
        variants = [
            variant
            for variant in frontier.variants
            if runtime in variant.runtimes and targets.supports(runtime, variant.precision)
        ]
        if not variants:
            continue
        with targets.engine(runtime) as engine:
            load_all(engine, repository.root, variants)
            taken = profiles_of(engine, variants, images, samples=samples, progress=progress)
        profiles |= {(name, runtime): measured for name, measured in taken.items()}
    encoded = [record.path.read_bytes() for record in dataset.splits["test"].images[:COST_FRAMES]]
    decode, rule = decode_cost(encoded, rule=False), decode_cost(encoded, rule=True)
    return frontier.model_copy(
        update={
            "environment": environment(),
            "decode": decode,
            "variants": tuple(_measured(variant, profiles) for variant in frontier.variants),
            "plans": tuple(_priced(plan, profiles, decode, rule) for plan in frontier.plans),
        }
    )


def _measured(variant: Variant, profiles: Profiles) -> Variant:
    measurements = tuple(
        measurement.model_copy(
            update={"latency": profiles.get((variant.name, measurement.runtime), measurement.latency)}
        )
        for measurement in variant.measurements
    )
    return variant.model_copy(update={"measurements": measurements})


def _priced(plan: Plan, profiles: Profiles, decode: Histogram, rule: Histogram) -> Plan:
    stages: list[Histogram] = []
    for stage in plan.stages:
        measured: Sequence[LatencyProfile] = profiles.get((stage.variant, plan.runtime), ())
        if not measured:
            raise RunError(f"plan {plan.name}: {stage.variant} does not run on {plan.runtime} here")
        stages.append(measured[0].histogram)
    reach = [1.0, *plan.accuracy[0].escalated]
    cost = plan_cost(rule if len(stages) > 1 else decode, stages, reach)
    return plan.model_copy(update={"mean_ms": cost.mean_ms, "p99_ms": cost.p99_ms})
