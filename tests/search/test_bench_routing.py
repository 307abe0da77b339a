"""The bench of escalation: it runs on a published repository, and its trial of the certificate can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_repo.escalation import GainModel
from model_repo.fusion import Fusion
from search import bench_certificate, bench_routing
from search.align import fit_alignment
from search.answers import AnswerSet, answered
from search.bench_certificate import try_certificate
from search.bench_routing import routing
from search.data.coco import read_dataset
from search.gain import fit_gain, swap_influences
from search.rivals import Rival, RuleCurve
from search.routing_claims import AlignmentError, Difference, Interval, PairResult, RoutingResult
from search.run_folder import RunError, Silent
from tests.fakes import tiny_repository
from tests.search.synthetic import CLASSES, artifact, scene
from tests.search.test_calibrate import squares_data


def answers(images: int, seed: int) -> AnswerSet:
    """Answers of a weak and a strong detector on frames of their own."""
    drawn = scene(images, seed=seed)
    sides = {}
    for name, weakness in (("small", 1.0), ("large", 0.1)):
        made = artifact(name, drawn, weakness=weakness, ms=1.0, seed=seed)
        sides[name] = answered(made.answers, drawn.views, made.table, fit_alignment(made.table, CLASSES))
    return AnswerSet(sides, drawn.truths, CLASSES)


@pytest.fixture(scope="module")
def fixed() -> AnswerSet:
    return answers(200, seed=1)


@pytest.fixture(scope="module")
def gain(fixed: AnswerSet) -> GainModel:
    labels = swap_influences(fixed.ranking(("small", "large"), "replace"))
    return fit_gain(fixed.sides["small"].features, labels, seed=0).model


def test_certified_choices_rarely_exceed(
    fixed: AnswerSet, gain: GainModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices certified from enough frames keep what they promise; without the test's margin they do not."""
    pool = answers(1500, seed=9)
    pair: tuple[str, str, Fusion] = ("small", "large", "replace")
    kept = try_certificate(fixed, pool, pair, gain, seed=0, progress=Silent(), draws=60, frames=400)
    assert kept.pool == 1500
    assert kept.exceeded <= 0.05 * 60 + 2
    assert kept.uncertified < 60
    assert kept.escalated is not None

    def reckless(excesses: list[np.ndarray], delta: float) -> list[tuple[float, float]]:
        return [(float(excess.mean()), float(excess.mean())) for excess in excesses]

    monkeypatch.setattr(bench_certificate, "in_fixed_sequence", reckless)
    broken = try_certificate(fixed, pool, pair, gain, seed=0, progress=Silent(), draws=60, frames=400)
    assert broken.exceeded >= kept.exceeded + 4


def test_every_published_pair_is_compared(tmp_path: Path) -> None:
    """On the test split alone: all rules, all baselines, every model's alignment, the cost of deciding."""
    repository = tiny_repository(tmp_path / "repo", variants=3)
    data = read_dataset(squares_data(tmp_path / "data", {"test": 30}), needed=("test",))
    found = routing(repository, data, Silent(), resamples=4)
    assert found.frames == 30
    assert [(pair.fast, pair.larger) for pair in found.pairs] == [("tiny-0", "tiny-1")]
    (pair,) = found.pairs
    assert len(pair.curves) == 6
    assert len(pair.ahead) == 4
    assert all(by.low <= by.high for row in pair.ahead for by in (row.average, row.reported))
    assert {row.variant for row in found.errors} == {"tiny-0", "tiny-1", "tiny-2"}
    assert found.decision_us > 0
    assert found.certificate is None


def test_the_widest_pair_is_fitted_on_calibration(tmp_path: Path) -> None:
    """With calibration frames the fastest and the largest are compared, though no plan asks both."""
    repository = tiny_repository(tmp_path / "repo", variants=3)
    data = squares_data(tmp_path / "data", {"test": 30, "calibration": 40})
    found = routing(repository, read_dataset(data, needed=("test",)), Silent(), resamples=4)
    assert found.widest is not None
    assert (found.widest.fast, found.widest.larger) == ("tiny-0", "tiny-2")
    assert [(pair.fast, pair.larger) for pair in found.pairs] == [("tiny-0", "tiny-1"), ("tiny-0", "tiny-2")]


def test_the_widest_pair_is_judged_on_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pool the certificate is tried on it, and so is the pair from the fastest to the largest."""
    monkeypatch.setattr(bench_routing, "LEAST_POOL", 30)
    repository = tiny_repository(tmp_path / "repo", variants=3)
    data = squares_data(tmp_path / "data", {"test": 30, "calibration": 40})
    pool = squares_data(tmp_path / "pool", {"test": 60}, seed=5)
    read = (read_dataset(each, needed=("test",)) for each in (data, pool))
    found = routing(repository, next(read), Silent(), pool=next(read), resamples=4)
    assert found.on_pool is not None
    assert found.certificate is not None
    assert found.certificate.pair == ("tiny-0", "tiny-1")
    assert any("certificates" in claim.text for claim in found.claims())


def test_claims_can_fail() -> None:
    """Each claim of a pair is judged by its own figures."""

    def curve(rule: Rival, at_rate: float) -> RuleCurve:
        return RuleCurve(rule=rule, map=(0.5, at_rate - 0.02, at_rate, 0.7, 0.72, 0.75, 0.78, 0.8))

    def judged(gain: float, low: float, pool: tuple[RuleCurve, ...] | None = None) -> list[bool]:
        ahead = Difference("random", Interval(1.0, 0.5, 1.5), Interval(2.0, low, 3.0))
        curves = (curve("gain", gain), curve("oracle", 0.65))
        pair = PairResult("a", "b", "replace", 0.5, 0.8, curves, (ahead,))
        result = RoutingResult(10, (pair,), pair, pool, (AlignmentError("a", 0.1, 0.06),), 0.5, 20.0, None)
        return [claim.holds for claim in result.claims()]

    assert judged(0.63, 0.1) == [True, True, False, True, True]
    assert judged(0.61, 0.1)[0] is False
    assert judged(0.63, -0.1)[1] is False
    assert judged(0.63, 0.1, (curve("gain", 0.61), curve("oracle", 0.65)))[0] is False


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """A repository without cascades, other classes, and a pool that is too small each say so."""
    data = read_dataset(squares_data(tmp_path / "data", {"test": 8}), needed=("test",))
    alone = tiny_repository(tmp_path / "alone", plans=False)
    with pytest.raises(RunError, match="publishes no plan of two stages"):
        routing(alone, data, Silent())
    repository = tiny_repository(tmp_path / "repo")
    others = squares_data(tmp_path / "others", {"test": 8}, classes=("cat", "dog"))
    with pytest.raises(RunError, match="its classes are cat, dog"):
        routing(repository, read_dataset(others, needed=("test",)), Silent())
    with pytest.raises(RunError, match="test: 0 other frames are too few, 20000 are needed"):
        routing(repository, data, Silent(), pool=data)
