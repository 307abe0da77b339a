"""Claims about a search, measured anew on a finished training: how good the latency estimates are."""

from __future__ import annotations

import numpy as np

from model_repo.runtime.select import environment
from search.pipeline import Context
from search.predict import LatencyModel, PredictorError, error_of, measure_table, subnets_to_measure
from search.run_folder import RunError
from search.steps import measured_p50_ms, space_of

MEAN_ERROR = 0.05
RANK_CORRELATION = 0.98


def predictor(context: Context, held_out: int) -> PredictorError:
    """Return the error on subnets that the model was not fitted to, all measured in the same rounds.

    The model is fitted to as many subnets as a search measures, drawn as it draws them. Raises RunError when
    the run has no trained supernet or its space too few subnets.
    """
    settings, space = context.settings, space_of(context)
    if context.folder.record("train") is None:
        raise RunError(f"{context.folder.root}: the bench needs step 'train' to be done first")
    fitted = subnets_to_measure(space, settings.latency_subnets, settings.seed)
    drawn = subnets_to_measure(space, held_out + len(fitted) + 2, settings.seed + 1)
    others = [architecture for architecture in drawn if architecture not in fitted][:held_out]
    if len(others) < held_out:
        raise RunError(f"--held-out: the space has no {held_out} subnets beside the {len(fitted)} fitted")
    table = measure_table(
        space,
        (*fitted, *others),
        lambda architectures: measured_p50_ms(context, space, architectures),
        runtime=settings.runtimes[0],
        precision=settings.latency_precision,
        environment=environment(),
    )
    rows = table.measured
    model = LatencyModel(space, table.model_copy(update={"measured": rows[: len(fitted)]}))
    estimates = np.array([model.estimate(architecture) for architecture in others])
    return error_of(estimates, np.array([row.p50_ms for row in rows[len(fitted) :]]))
