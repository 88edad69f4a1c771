"""Survival curves and the quality of predicted survival probabilities at a horizon.

In: follow-up in days (right censored, optionally with delayed entry) and predicted probabilities of being event-free at
a horizon. Out: Kaplan-Meier curves, Brier losses weighted for censoring, calibration by equal-mass bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ican_ml.evaluation.outcome import FloatArray, Outcome
from ican_ml.evaluation.weighted import equal_mass_bins


class StepCurve(NamedTuple):
    """A right-continuous step function: `value[k]` from `time[k]` on; `value[0]` at time 0."""

    time: FloatArray
    value: FloatArray

    def at(self, query: FloatArray | float) -> FloatArray:
        """Value of the curve at some times."""
        return self.value[np.maximum(np.searchsorted(self.time, query, side="right") - 1, 0)]

    def before(self, query: FloatArray | float) -> FloatArray:
        """Value of the curve just before some times."""
        return self.value[np.maximum(np.searchsorted(self.time, query, side="left") - 1, 0)]


def kaplan_meier(outcome: Outcome) -> StepCurve:
    """Product-limit estimate of the survival curve; delayed entry thins the early risk sets.

    Kaplan and Meier, JASA 53, 1958. Only times with events are listed.
    """
    return _product_limit(outcome.value, outcome.event, outcome.entry)


def ipcw_brier_losses(outcome: Outcome, survival: FloatArray, horizon: float) -> FloatArray:
    """Squared error of predicted survival at `horizon`, per row, weighted for censoring; their mean is the Brier score.

    Graf et al., Statistics in Medicine 18, 1999. The censoring curve is estimated on the rows given. NaN for every row
    if nobody is observed at the horizon, or if entry is delayed (the weights do not cover truncation).
    """
    if outcome.has_delayed_entry:
        return np.full(len(outcome), np.nan)
    time, event = outcome.value, outcome.event
    censoring = _product_limit(time, ~event, outcome.entry)
    at_horizon = float(censoring.at(horizon))
    if not len(time) or at_horizon <= 0 or not (time > horizon).any():
        return np.full(len(outcome), np.nan)
    failed = (time <= horizon) & event
    still_here = time > horizon
    weight = np.where(still_here, 1.0 / at_horizon, 0.0)
    weight[failed] = 1.0 / np.maximum(censoring.before(time[failed]), 1e-12)
    return weight * np.where(still_here, (1.0 - survival) ** 2, survival**2)


def survival_calibration(
    outcome: Outcome, survival: FloatArray, horizon: float, *, bins: int = 10
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Predicted and observed (Kaplan-Meier) survival at `horizon` by bins of equal mass of the prediction.

    Returns
    -------
    predicted, observed, rows
        [bins] mean prediction, Kaplan-Meier estimate, number of rows. Bins without follow-up to the horizon are NaN.
    """
    membership = equal_mass_bins(survival, bins)
    predicted, observed, rows = [], [], []
    for number in range(int(membership.max(initial=-1)) + 1):
        chosen = membership == number
        part = outcome.take(chosen)
        reached = bool((part.value >= horizon).any()) or bool(part.event.all())
        predicted.append(float(survival[chosen].mean()))
        observed.append(float(kaplan_meier(part).at(horizon)) if reached else np.nan)
        rows.append(float(chosen.sum()))
    return np.array(predicted), np.array(observed), np.array(rows)


def survival_calibration_error(outcome: Outcome, survival: FloatArray, horizon: float, *, bins: int = 10) -> float:
    """Mean distance of predicted and observed survival at `horizon` over equal-mass bins; NaN if none is observed."""
    predicted, observed, rows = survival_calibration(outcome, survival, horizon, bins=bins)
    seen = np.isfinite(observed)
    if not seen.any():
        return float("nan")
    return float(np.average(np.abs(predicted - observed)[seen], weights=rows[seen]))


def _product_limit(time: FloatArray, event: np.ndarray, entry: FloatArray) -> StepCurve:
    times, deaths = np.unique(time[event], return_counts=True)
    leaving, entering = np.sort(time), np.sort(entry)
    at_risk = np.searchsorted(entering, times, side="left") - np.searchsorted(leaving, times, side="left")
    factors = 1.0 - deaths / np.maximum(at_risk, 1)
    return StepCurve(np.concatenate([[0.0], times]), np.concatenate([[1.0], np.cumprod(factors)]))
