"""What an engine serves of a repository, and what it costs here."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace

import pytest

from model_repo.frontier import Plan
from model_repo.publish import Repository
from model_repo.runtime.engine import EngineUnavailable
from model_repo.runtime.select import environment
from router.engines import (
    EngineHealth,
    ServedPoint,
    StartupError,
    difference,
    ladder,
    load_fleet,
    measure_fleet,
)
from tests.fakes import FakeEngine


def test_every_plan_that_names_the_runtime_is_served(repository: Repository) -> None:
    """A whole engine serves the whole frontier under the manifest's profiles."""
    fleet = load_fleet(repository, FakeEngine())
    assert {plan.name for plan in fleet.plans} == {plan.name for plan in repository.frontier.plans}
    assert [point.name for point in fleet.points] == ["fast", "balanced", "accurate"]
    assert not fleet.measured_here


def test_a_refused_variant_takes_its_plans_out_and_says_so(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """Operating points whose plan cannot run get the nearest cheaper one, with a warning."""
    with caplog.at_level(logging.WARNING):
        fleet = load_fleet(repository, FakeEngine(refuses=frozenset({"tiny-1"})))
    assert [plan.name for plan in fleet.plans] == ["tiny-0"]
    accurate = next(point for point in fleet.points if point.name == "accurate")
    assert (accurate.plan.name, accurate.published) == ("tiny-0", "tiny-1")
    assert "tiny-1 is out of service" in caplog.text
    assert "operating point accurate" in caplog.text


def test_a_repository_that_cannot_run_at_all_is_refused(repository: Repository) -> None:
    """Without a single plan the gateway does not start, and no model stays behind."""
    with pytest.raises(StartupError, match="no plan"):
        load_fleet(repository, FakeEngine(refuses=frozenset({"tiny-0", "tiny-1"})))
    larger = tuple(plan for plan in repository.frontier.plans if plan.name != "tiny-0")
    both = replace(repository, frontier=repository.frontier.model_copy(update={"plans": larger}))
    engine = FakeEngine(refuses=frozenset({"tiny-1"}))
    with pytest.raises(StartupError, match="no plan"):
        load_fleet(both, engine)
    assert engine.loaded == {}


def test_another_machine_version_or_thread_count_is_a_difference(repository: Repository) -> None:
    """What search measured elsewhere is no evidence, and the words say what differs."""
    engine = FakeEngine(version="0")
    profile = repository.frontier.variants[0].on("openvino").profile()
    same = profile.environment
    assert difference(profile, engine, same, threads=1) is None
    assert "threads" in (difference(profile, engine, same, threads=2) or "")
    assert "machine" in (difference(profile, engine, environment(), threads=1) or "")
    assert "runtime" in (difference(profile, FakeEngine(version="1"), same, threads=1) or "")


def test_measuring_gives_profiles_of_this_environment(repository: Repository) -> None:
    """Measured profiles replace the manifest's, at concurrency 1 and the engine's own."""
    engine = FakeEngine(parallelism=2)
    here = environment()
    fleet = measure_fleet(load_fleet(repository, engine), engine, here, threads=1, samples=4)
    assert fleet.measured_here
    for profiles in fleet.profiles.values():
        assert [profile.concurrency for profile in profiles] == [1, 2]
        assert all(profile.environment == here for profile in profiles)
        assert all(profile.histogram.total == 4 for profile in profiles)


def test_a_plans_mean_counts_stages_by_the_share_that_reaches_them(repository: Repository) -> None:
    """The cascade costs decoding, the first stage, and half of the second."""
    frontier = repository.frontier
    mean_ms = load_fleet(repository, FakeEngine()).mean_ms(frontier.decode)
    first, second = (variant.on("openvino").profile(1).mean_ms for variant in frontier.variants)
    assert mean_ms["tiny-0-then-tiny-1"] == pytest.approx(frontier.decode.mean_ms + first + 0.5 * second)


def test_an_engine_that_fails_to_measure_says_so(repository: Repository) -> None:
    """A model that does not run stops the start."""
    engine = FakeEngine(failures=deque([EngineUnavailable("gone")]))
    fleet = load_fleet(repository, engine)
    with pytest.raises(EngineUnavailable, match="gone"):
        measure_fleet(fleet, engine, environment(), threads=1, samples=2)


def test_three_failures_in_a_row_make_an_engine_ill_and_one_success_well() -> None:
    """Health follows failures in a row."""
    health = EngineHealth()
    for _ in range(2):
        health.failed()
    assert health.well
    health.failed()
    assert not health.well
    health.succeeded()
    assert health.well


def test_a_triton_that_nothing_was_measured_on_serves_what_its_runtime_was_published_with(
    repository: Repository,
) -> None:
    """Plans and alignments are those of the runtime that Triton runs; its latencies are no evidence."""
    frontier = repository.frontier
    embedded = frontier.model_copy(
        update={
            "variants": tuple(
                variant.model_copy(update={"measurements": (variant.on("openvino"),)})
                for variant in frontier.variants
            ),
            "plans": tuple(plan.model_copy(update={"engines": ("openvino",)}) for plan in frontier.plans),
        }
    )
    engine = FakeEngine(name="triton")
    fleet = load_fleet(replace(repository, frontier=embedded), engine, triton_runs="openvino")
    assert fleet.source == "openvino"
    assert {plan.name for plan in fleet.plans} == {plan.name for plan in frontier.plans}
    profile = fleet.profiles["tiny-0"][0]
    assert "runtime" in (difference(profile, engine, profile.environment, profile.threads) or "")
    with pytest.raises(StartupError, match="onnxruntime"):
        load_fleet(replace(repository, frontier=embedded), engine, triton_runs="onnxruntime")


def test_the_ladder_has_the_cheaper_points_and_plans_that_are_worth_a_step(repository: Repository) -> None:
    """Cheapest first, home last; a plan that is dearer or no more accurate than a cheaper one is no rung."""
    fleet = load_fleet(repository, FakeEngine())
    cheap, cascade, large = fleet.plans

    def accurate(plan: Plan, name: str, percent: int) -> Plan:
        accuracy = tuple(each.model_copy(update={"map": percent / 100}) for each in plan.accuracy)
        return plan.model_copy(update={"name": name, "accuracy": accuracy})

    plans = (
        accurate(cheap, cheap.name, 50), accurate(cascade, "good", 60), accurate(cascade, "poor", 55),
        accurate(cascade, "near", 61), accurate(large, large.name, 70),
    )  # fmt: skip
    points = (ServedPoint("fast", plans[0], "x"), ServedPoint("accurate", plans[-1], "y"))
    costs = {cheap.name: 2.0, "good": 4.0, "poor": 5.0, "near": 4.1, large.name: 9.0}
    wider = replace(fleet, plans=plans, points=points)
    assert [rung.name for rung in ladder(wider, "accurate", costs)] == ["fast", "near", "accurate"]
    assert [rung.name for rung in ladder(wider, "fast", costs)] == ["fast"]
