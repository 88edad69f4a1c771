"""What is left of an outcome when drug, stratum and patient are taken out: the part that a gene may explain.

In: outcomes of episodes, each under a regimen, of a patient, in a stratum (an indication). Out: float64 [E], higher =
better for the patient: responses as they are, values turned round (a sensitivity is low where a drug works, and has its
drug's own spread), survival as minus the martingale residual of its stratum (Therneau, Grambsch and Fleming 1990,
doi:10.1093/biomet/77.1.147). From these, the effects of regimen, stratum and patient are subtracted by backfitting
(Buja, Hastie and Tibshirani 1989, doi:10.1214/aos/1176347115), those of regimens and patients shrunken to zero where
episodes are few. A patient's own level matters in screens, where one sample meets many drugs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.survival import kaplan_meier

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
_ROUNDS = 10
_PRIOR_EPISODES = 1.0  # what a regimen's or a patient's effect is shrunken by


def residual_benefit(outcome: Outcome, *, regimen: Int64, stratum: Int64, patient: Int64 | None = None) -> Float64:
    """See the module docstring.

    Parameters
    ----------
    regimen, stratum, patient
        int64 [E]: group of each episode, numbered from 0. Without ``patient``, patients keep their own level.

    Returns
    -------
    float64 [E]
        NaN where there is no outcome.
    """
    found = np.full(len(outcome), np.nan)
    rows = np.flatnonzero(np.isfinite(outcome.value))
    if not len(rows):
        return found
    left = _benefit(outcome.take(rows), regimen[rows], stratum[rows])
    groups = [(stratum[rows], 0.0), (regimen[rows], _PRIOR_EPISODES)]
    groups += [(patient[rows], _PRIOR_EPISODES)] if patient is not None else []
    effects = [np.zeros(int(group.max()) + 1) for group, _ in groups]
    for _ in range(_ROUNDS):
        for i, (group, prior) in enumerate(groups):
            left += effects[i][group]
            effects[i] = np.bincount(group, left, len(effects[i])) / np.maximum(
                np.bincount(group, minlength=len(effects[i])) + prior, 1.0
            )
            left -= effects[i][group]
    found[rows] = left
    return found


def _benefit(outcome: Outcome, regimen: Int64, stratum: Int64) -> Float64:
    if outcome.kind == "binary":
        return outcome.value.copy()
    if outcome.kind == "regression":
        return -_by_spread(outcome.value, regimen)
    found = np.empty(len(outcome))
    for s in np.unique(stratum):
        rows = np.flatnonzero(stratum == s)
        part = outcome.take(rows)
        curve = kaplan_meier(part)
        hazard = -np.log(np.maximum(curve.at(part.value), 1.0 / (len(rows) + 1)))
        entered = -np.log(np.maximum(curve.at(np.maximum(part.entry, 0.0)), 1.0 / (len(rows) + 1)))
        found[rows] = hazard - entered - part.event
    return found


def _by_spread(value: Float64, regimen: Int64) -> Float64:
    """In units of a regimen's own standard deviation, of few episodes that of all."""
    count = np.bincount(regimen)
    mean = np.bincount(regimen, value) / np.maximum(count, 1)
    square = np.bincount(regimen, np.square(value - mean[regimen]))
    spread = np.sqrt((square + square.sum() / len(value)) / (count + 1))
    found: Float64 = value / np.maximum(spread, 1e-9)[regimen]
    return found
