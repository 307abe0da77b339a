"""The study: budgets respected, figures that follow from what models answered, and one small study whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from model_repo.detections import Detections
from model_repo.scoring import MatchTable, Truth, match
from search.__main__ import app
from search.run_folder import RunError, Silent
from search.space import Space
from search.study import study
from search.study_figures import ArmModels, Judged, compared, ranking, within
from search.study_plan import Wishes, family, others
from search.study_values import read_study
from tests.search.tiny import tiny_dataset

IMAGES = 12
SPACE = """{"resolutions": [64, 96, 128, 160, 192], "depths": [[1], [1, 2], [1], [1]],
            "widths": [[8], [8, 16], [16, 24], [16]], "neck_widths": [8, 16], "head_depths": [1],
            "stem_width": 8}"""


@given(
    st.lists(st.tuples(st.floats(0.5, 20.0), st.floats(0.0, 1.0)), min_size=1, max_size=8),
    st.lists(st.floats(0.1, 30.0), min_size=1, max_size=6),
)
def test_the_model_within_a_budget_is_fast_enough_and_the_best_on_valid(
    models: list[tuple[float, float]], budgets: list[float]
) -> None:
    """No model that is fast enough beats the chosen one on valid; none is chosen when none is fast enough."""
    p50_ms, valid = np.array(models).T
    for budget, chosen in zip(
        budgets, within(range(len(models)), p50_ms, valid, np.array(budgets)), strict=True
    ):
        able = np.flatnonzero(p50_ms <= budget)
        if not len(able):
            assert chosen == -1
        else:
            assert p50_ms[chosen] <= budget
            assert valid[chosen] == valid[able].max()


def _truths() -> tuple[Truth, ...]:
    rng = np.random.default_rng(5)
    out = []
    for _ in range(IMAGES):
        corner = rng.uniform(0, 60, (3, 2))
        xyxy = np.hstack((corner, corner + rng.uniform(10, 30, (3, 2)))).astype(np.float32)
        out.append(Truth(xyxy, np.zeros(3, np.int64), np.zeros(3, np.bool_)))
    return tuple(out)


def _answered(error: float) -> MatchTable:
    """Boxes that are off by so many pixels."""
    truths = _truths()
    answers = [
        Detections.make(truth.xyxy + np.float32(error), np.full(3, 0.9, np.float32), truth.label)
        for truth in truths
    ]
    return match(truths, answers, 1)


def _model(ms: float, error: float) -> Judged:
    table = _answered(error)
    return Judged(f"{ms:g}-{error:g}", ms, table, table)


def test_an_arm_of_better_models_lies_ahead_and_an_equal_one_does_not() -> None:
    """Leads are differences to the first arm, zero for the same models, above zero for more accurate ones."""
    base = ArmModels("family", 4.0, (_model(1.0, 4.0), _model(4.0, 2.0)), ((0, 1),))
    same = ArmModels("same", 4.0, base.models, ((0, 1),))
    ahead = ArmModels("ahead", 4.0, (_model(1.0, 2.0), _model(4.0, 0.0)), ((0, 1),))
    slow = ArmModels("slow", 4.0, (_model(9.0, 0.0),), ((0,),))
    first, equal, better, late = compared((base, same, ahead, slow), (1.0, 4.0), seed=0)
    assert first.area_ahead.value == equal.area_ahead.value == equal.area_ahead.low == 0.0
    assert better.area_ahead.low > 0.0
    assert all(lead.low > 0.0 for lead in better.at_budgets_ahead)
    assert better.at_budgets[1].value == pytest.approx(1.0, abs=1e-6)
    assert late.area.value == 0.0
    assert first.area.value < first.at_budgets[1].value


def test_an_arm_of_draws_is_the_mean_of_its_sets() -> None:
    """Random sets of models are judged set by set and averaged."""
    models = (_model(1.0, 4.0), _model(1.0, 0.0))
    family_, mixed = compared(
        (ArmModels("family", 1.0, models, ((0, 1),)), ArmModels("random", 1.0, models, ((0,), (1,)))),
        (1.0,),
        seed=0,
    )
    worse, better = (model.test_map.value for model in mixed.models)
    assert mixed.at_budgets[0].value == pytest.approx((worse + better) / 2)
    assert family_.at_budgets[0].value == pytest.approx(better)


def test_estimates_in_the_same_order_agree_wholly_and_in_the_opposite_order_not_at_all() -> None:
    """Kendall's tau is 1 for equal rankings and −1 for reversed ones, and the mean shortfall is told."""
    tables = [_answered(error) for error in (6.0, 4.0, 2.0, 0.0)]
    agreed = ranking("abcd", tables, tables, seed=0)
    assert agreed.tau.value == 1.0
    assert agreed.worse == 0.0
    assert ranking("abcd", tables, tables[::-1], seed=0).tau.value == -1.0
    assert ranking("abc", tables[:3], tables[1:], seed=0).worse > 0.0


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_family_grows_and_the_others_are_of_its_range(seed: int) -> None:
    """n, s, m and l cost more and more; the random ones beside it are distinct and no members."""
    space = Space(classes=3)
    members = family(space)
    costs = [space.cost(one).macs for one in members]
    assert costs == sorted(costs)
    assert members[-1] == space.largest
    drawn = others(space, 6, seed)
    assert len({*drawn, *members}) == 10


def test_a_space_too_small_for_a_family_is_refused() -> None:
    """Four sizes need choices; a space with one subnet says so."""
    space = Space(
        classes=1, resolutions=(96,), depths=((1,),) * 4, widths=((8,), (16,), (16,), (16,)),
        neck_widths=(8,), head_depths=(1,),
    )  # fmt: skip
    with pytest.raises(RunError, match="too small for a family"):
        family(space)


@pytest.mark.timeout(300)
def test_a_study_is_made_goes_on_where_it_was_and_is_told(tmp_path: Path) -> None:
    """A small study has its four arms at equal cost; done again it repeats nothing; `--show` prints it;
    another study is refused its folder."""
    data = tiny_dataset(tmp_path / "data", {"train": 12, "valid": 6, "test": 8})
    wishes = Wishes(
        0.004,
        1,
        2,
        4,
        0.25,
        0,
        {"data": data, "space": SPACE, "batch_size": 4, "latency_subnets": 4, "workers": 1},
        3,
    )
    made = study(tmp_path / "out", wishes, Silent())
    assert [arm.name for arm in made.arms] == ["family", "search", "unfinished", "random"]
    before, after = made.arm("family").minutes, made.arm("search").minutes
    steps = [*made.plan.alone, made.plan.supernet, *made.finished]
    assert abs(after - before) <= sum(training.step_s for training in steps) / 60
    assert len(made.ranking.architectures) == 5

    weights = tmp_path / "out" / "supernet" / "train" / "weights.pt"
    written_ns = weights.stat().st_mtime_ns
    again = study(tmp_path / "out", wishes, Silent())
    assert again.arms == made.arms
    assert weights.stat().st_mtime_ns == written_ns

    kept = tmp_path / "out" / "study.json"
    assert read_study(kept) == again
    shown = CliRunner().invoke(app, ["bench", "study", "--show", str(kept)])
    assert "Kendall's tau of 5 subnets" in shown.output
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(RunError, match=r"broken\.json: not a study"):
        read_study(tmp_path / "broken.json")

    other = Wishes(0.004, 1, 2, 5, 0.25, 0, wishes.settings, 3)
    with pytest.raises(RunError, match="candidates"):
        study(tmp_path / "out", other, Silent())
