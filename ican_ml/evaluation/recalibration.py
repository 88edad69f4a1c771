"""Is a model calibrated on other patients: the line that would correct it, and a reliability table.

In: outcomes and predictions of some rows. Out: the *slope* (1 is right, below 1 is too extreme) and the *intercept* (0
is right, above 0 is too low), both with intervals by subject, and predicted against observed in bins of equal mass.
Binary: logistic regression of the outcome on the logit of the prediction; the intercept is that with slope 1, the
calibration in the large (Cox, Biometrika 45, 1958; Van Calster et al., BMC Medicine 17, 2019). Regression: least
squares; the intercept is the mean difference. Survival has the table alone, at one horizon.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ican_ml.evaluation.bootstrap import Interval, intervals
from ican_ml.evaluation.evaluate import MIN_SUBJECTS
from ican_ml.evaluation.metrics import CALIBRATION_BINS
from ican_ml.evaluation.outcome import FloatArray, IntArray, Outcome
from ican_ml.evaluation.survival import survival_calibration, survival_calibration_error
from ican_ml.evaluation.weighted import WeightedMetric, equal_mass_bins

_ITERATIONS = 30
_SMALLEST = 1e-7


def calibration_line(
    outcome: Outcome, prediction: FloatArray, subject: IntArray, *, replicates: int, seed: int
) -> dict[str, Interval]:
    """Slope and intercept of labelled rows, binary or regression; NaN where undefined (one class, no variance)."""
    y = outcome.value
    if outcome.kind == "binary":
        p = np.clip(prediction, _SMALLEST, 1 - _SMALLEST)
        x = np.log(p) - np.log1p(-p)
        metrics = {"slope": _logistic(y, x, sloped=True), "intercept": _logistic(y, x, sloped=False)}
    else:
        metrics = {"slope": _least_squares(y, prediction), "intercept": _mean_difference(y, prediction)}
    return intervals(metrics, subject, replicates=replicates, seed=seed)


def reliability(
    outcome: Outcome, prediction: FloatArray, subject: IntArray, *, horizon: float | None = None
) -> dict[str, Any]:
    """Predicted against observed by bins of equal mass; bins of fewer than `MIN_SUBJECTS` subjects are left out.

    Parameters
    ----------
    outcome, prediction, subject
        Labelled rows. Survival: the predicted probability to be event-free at ``horizon`` (days); observed is the
        Kaplan-Meier estimate.
    """
    bins = int(np.clip(len(np.unique(subject)) // MIN_SUBJECTS, 1, CALIBRATION_BINS))
    membership = equal_mass_bins(prediction, bins)
    n_bins = int(membership.max(initial=-1)) + 1
    found: dict[str, Any] = {}
    if outcome.kind == "survival":
        assert horizon is not None
        predicted, observed, _ = survival_calibration(outcome, prediction, horizon, bins=bins)
        found = {
            "horizon_days": horizon,
            "error": _finite(survival_calibration_error(outcome, prediction, horizon, bins=bins)),
        }
    else:
        size = np.maximum(np.bincount(membership), 1)
        predicted = np.bincount(membership, weights=prediction) / size
        observed = np.bincount(membership, weights=outcome.value) / size
    subjects = [len(np.unique(subject[membership == b])) for b in range(n_bins)]
    table = [
        {
            "predicted": float(predicted[b]),
            "observed": _finite(observed[b]),
            "rows": int((membership == b).sum()),
            "subjects": subjects[b],
        }
        for b in range(n_bins)
        if subjects[b] >= MIN_SUBJECTS
    ]
    return found | {"reliability": table}


def _logistic(y: FloatArray, x: FloatArray, *, sloped: bool) -> WeightedMetric:
    """Newton's method for all replicates at once; NaN where it does not settle."""

    def evaluate(weights: FloatArray) -> FloatArray:
        a, b = np.zeros(weights.shape[1]), np.ones(weights.shape[1])
        settled = np.zeros(weights.shape[1], bool)
        for _ in range(_ITERATIONS):
            p = 0.5 * (1.0 + np.tanh(0.5 * (a + x[:, None] * b)))
            error, spread = weights * (y[:, None] - p), weights * (p * (1.0 - p))
            g, h = error.sum(axis=0), spread.sum(axis=0)
            if sloped:
                g_x, h_x, h_xx = x @ error, x @ spread, (x * x) @ spread
                determinant = h * h_xx - h_x**2
                safe = determinant > 1e-12 * np.maximum(h * h_xx, 1e-300)
                by = np.where(safe, determinant, 1.0)
                step_a = np.where(safe, (h_xx * g - h_x * g_x) / by, np.nan)
                step_b = np.where(safe, (h * g_x - h_x * g) / by, np.nan)
            else:
                step_a = np.where(h > 1e-12, g / np.where(h > 1e-12, h, 1.0), np.nan)
                step_b = np.zeros_like(step_a)
            a, b = a + np.clip(step_a, -2.0, 2.0), b + np.clip(step_b, -2.0, 2.0)
            settled = (np.abs(step_a) < 1e-8) & (np.abs(step_b) < 1e-8)
            if (settled | np.isnan(step_a)).all():
                break
        return np.where(settled, b if sloped else a, np.nan)

    return evaluate


def _least_squares(y: FloatArray, x: FloatArray) -> WeightedMetric:
    def evaluate(weights: FloatArray) -> FloatArray:
        total = np.maximum(weights.sum(axis=0), 1e-300)
        mean_x, mean_y = x @ weights / total, y @ weights / total
        variance = (x * x) @ weights / total - mean_x**2
        covariance = (x * y) @ weights / total - mean_x * mean_y
        defined = variance > 1e-12 * np.maximum(mean_x**2, 1e-12)
        return np.where(defined, covariance / np.where(defined, variance, 1.0), np.nan)

    return evaluate


def _mean_difference(y: FloatArray, x: FloatArray) -> WeightedMetric:
    def evaluate(weights: FloatArray) -> FloatArray:
        total = weights.sum(axis=0)
        return np.where(total > 0, (y - x) @ weights / np.where(total > 0, total, 1.0), np.nan)

    return evaluate


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
