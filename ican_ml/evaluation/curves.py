"""The curves of a run report: thinned, aggregated, free of any subject.

In: outcomes and predictions per row. Out: small arrays to draw. A ROC curve has at most 200 points, calibration is by
bins, predicted against observed is a two-dimensional histogram, survival curves are cut where few remain at risk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ican_ml.evaluation.metrics import CALIBRATION_BINS
from ican_ml.evaluation.outcome import FloatArray, IntArray, Outcome
from ican_ml.evaluation.survival import kaplan_meier
from ican_ml.evaluation.weighted import equal_mass_bins, label_codes

RISK_GROUPS = ("low risk", "medium risk", "high risk")

_POINTS = 200
_MIN_AT_RISK = 10
_MIN_ANSWERED = 20
_DENSITY_CELLS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Points of a named line."""

    label: str
    x: FloatArray
    y: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Density:
    """Counts on a square grid: `counts[i, j]` rows with observed in column i and predicted in row j."""

    edges: FloatArray
    counts: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCurves:
    """What is drawn for one task; empty where a kind of outcome has no such curve."""

    roc: Sequence[Curve] = ()
    calibration: Sequence[Curve] = ()
    survival: Sequence[Curve] = ()
    density: Density | None = None
    selective: Sequence[Curve] = ()


def task_curves(
    outcome: Outcome,
    predictions: Mapping[str, FloatArray],
    *,
    indication: NDArray[np.str_] | None = None,
) -> TaskCurves:
    """Curves of all models on one task; risk groups and density are those of the first model.

    Parameters
    ----------
    outcome
        [rows]; unlabelled rows are left out.
    predictions
        model -> [rows], as given to `evaluate_task`.
    indication
        [rows]; risk groups are thirds of each indication, so that they do not merely tell indications apart.
    """
    keep = outcome.labelled
    known = outcome.take(keep)
    models = {name: np.asarray(values, dtype=np.float64)[keep] for name, values in predictions.items()}
    if not models or not len(known):
        return TaskCurves()
    first = next(iter(models.values()))
    if outcome.kind == "binary":
        return TaskCurves(
            roc=[roc_curve(known.value, score, name) for name, score in models.items()],
            calibration=[calibration_curve(known.value, score, name) for name, score in models.items()],
            selective=[selective_curve(known.value, score, name) for name, score in models.items()],
        )
    if outcome.kind == "survival":
        return TaskCurves(survival=risk_group_curves(known, first, None if indication is None else indication[keep]))
    return TaskCurves(density=density(known.value, first))


def roc_curve(outcome: FloatArray, score: FloatArray, label: str = "") -> Curve:
    """True against false positive rate over all thresholds, thinned."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True)) if len(order) else np.zeros(0, np.int64)
    hits = np.concatenate([[0.0], np.cumsum(outcome[order] == 1)[last]])
    misses = np.concatenate([[0.0], np.cumsum(outcome[order] == 0)[last]])
    chosen = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), _POINTS)).round().astype(np.int64))
    x, y = misses / max(misses[-1], 1.0), hits / max(hits[-1], 1.0)
    return Curve(label=label, x=x[chosen], y=y[chosen])


def calibration_curve(outcome: FloatArray, probability: FloatArray, label: str = "") -> Curve:
    """Observed frequency against mean prediction in bins of equal mass."""
    membership = equal_mass_bins(probability, CALIBRATION_BINS)
    size = np.maximum(np.bincount(membership), 1)
    return Curve(
        label=label,
        x=np.bincount(membership, weights=probability) / size,
        y=np.bincount(membership, weights=outcome) / size,
    )


def selective_curve(outcome: FloatArray, probability: FloatArray, label: str = "") -> Curve:
    """Share of wrong answers among the most certain x of all, by distance from one half (El-Yaniv and Wiener 2010).

    Equally certain answers stand or fall together; the first point has at least 5% of the rows and 20 of them.
    """
    certainty = np.abs(probability - 0.5)
    order = np.argsort(-certainty, kind="stable")
    wrong = np.cumsum((outcome == 1)[order] != (probability >= 0.5)[order])
    last = np.flatnonzero(np.append(np.diff(certainty[order]) != 0, True))
    last = last[last + 1 >= max(_MIN_ANSWERED, len(order) / 20)]
    chosen = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), _POINTS)).round().astype(np.int64))]
    return Curve(label=label, x=(chosen + 1) / len(order), y=wrong[chosen] / (chosen + 1))


def risk_group_curves(outcome: Outcome, risk: FloatArray, indication: NDArray[np.str_] | None = None) -> list[Curve]:
    """Kaplan-Meier curves of the thirds of predicted risk, taken inside each indication; time in days."""
    codes = np.zeros(len(risk), dtype=np.int64) if indication is None else label_codes(indication)[0]
    third = np.zeros(len(risk), dtype=np.int64)
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        third[members] = np.argsort(np.argsort(risk[members], kind="stable"), kind="stable") * 3 // len(members)
    curves = []
    for number, label in enumerate(RISK_GROUPS):
        part = outcome.take(third == number)
        if len(part) < _MIN_AT_RISK:
            continue
        steps = kaplan_meier(part)
        end = float(np.sort(part.value)[-_MIN_AT_RISK])
        shown = steps.time <= end
        time, value = steps.time[shown], steps.value[shown]
        chosen = np.unique(np.linspace(0, len(time) - 1, min(len(time), _POINTS)).round().astype(np.int64))
        curves.append(Curve(label=label, x=np.append(time[chosen], end), y=np.append(value[chosen], value[chosen[-1]])))
    return curves


def density(observed: FloatArray, predicted: FloatArray) -> Density:
    """Two-dimensional histogram of predicted against observed values, outer half percent clipped."""
    low, high = np.quantile(np.concatenate([observed, predicted]), [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-6), _DENSITY_CELLS + 1)
    counts, _, _ = np.histogram2d(np.clip(observed, low, edges[-1]), np.clip(predicted, low, edges[-1]), [edges, edges])
    return Density(edges=edges, counts=counts.astype(np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningCurve:
    """Loss by epoch of one fit."""

    label: str
    epoch: FloatArray
    train: FloatArray
    tuning: FloatArray = field(default_factory=lambda: np.zeros(0))
