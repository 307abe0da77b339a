from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search.predict import (
    LatencyModel,
    LatencyTable,
    MeasuredLatency,
    amounts,
    held_out_error,
    subnets_to_measure,
)
from search.run_folder import RunError
from search.space import Architecture, Space
from tests.search.tiny import recorded_table, tiny_space

SPACE = Space(classes=3)


def physical_ms(architecture: Architecture, noise: np.random.Generator) -> float:
    rates = np.linspace(0.01, 9.0, len(amounts(SPACE, architecture)))
    return float(amounts(SPACE, architecture) @ rates) * float(np.exp(noise.normal(0, 0.02)))


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    noise = np.random.default_rng(5)
    subnets = subnets_to_measure(SPACE, 28, seed=0)
    measured = tuple(
        MeasuredLatency(architecture=subnet.name, p50_ms=physical_ms(subnet, noise)) for subnet in subnets
    )
    return recorded_table(tmp_path).model_copy(update={"measured": measured, "aspect": SPACE.aspect})


def test_left_out_subnets_are_estimated_well(table: LatencyTable) -> None:
    """Twenty-eight measured subnets with 2 % of noise estimate a left-out one within 10 %."""
    error = held_out_error(SPACE, table)
    assert error.mean_relative < 0.10
    assert error.rank_correlation > 0.97


def test_a_measured_subnet_answers_with_its_measurement(table: LatencyTable) -> None:
    """The model returns what was measured where something was."""
    model = LatencyModel(SPACE, table)
    for row in table.measured:
        assert model(Architecture.parse(row.architecture)) == row.p50_ms


def test_a_wider_subnet_never_costs_less(table: LatencyTable) -> None:
    """Estimates do not fall when any gene of a subnet grows."""
    model = LatencyModel(SPACE, table)
    rng = np.random.default_rng(1)
    for _ in range(50):
        genes = SPACE.genes(SPACE.sample(rng))
        gene = int(rng.integers(len(genes)))
        if genes[gene] + 1 < SPACE.gene_sizes[gene]:
            larger = genes.copy()
            larger[gene] += 1
            assert model.estimate(SPACE.from_genes(larger)) >= model.estimate(SPACE.from_genes(genes)) - 1e-9


def test_the_table_round_trips_and_names_what_is_wrong(table: LatencyTable) -> None:
    """A table reads back as written, and a broken one is refused with the field's name."""
    assert LatencyTable.parse(table.model_dump_json(), "t.json") == table
    broken = table.model_dump_json().replace('"threads":1', '"threads":0')
    with pytest.raises(RunError, match=r"t\.json: .*threads"):
        LatencyTable.parse(broken, "t.json")


def test_a_table_of_another_aspect_is_refused(table: LatencyTable) -> None:
    """A table measured for frames of another shape is not used."""
    with pytest.raises(RunError, match="aspect"):
        LatencyModel(tiny_space(), table)


def test_both_ends_are_always_measured() -> None:
    """The subnets to measure hold the smallest and the largest and none twice."""
    subnets = subnets_to_measure(SPACE, 20, seed=3)
    assert subnets[:2] == [SPACE.smallest, SPACE.largest]
    assert len(set(subnets)) == 20
