"""Metrics on plain arrays: one value per row in, one number out. NumPy only.

Undefined cases are NaN, never an error: no rows, one class only, no comparable pair, no variance. Rows must be
labelled; drop unknown outcomes first (`Outcome.labelled`). The formulas live in `weighted`, shared with the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ican_ml.evaluation.outcome import FloatArray, IntArray
from ican_ml.evaluation.weighted import (
    Averaging,
    WeightedMetric,
    label_codes,
    weighted_auprc,
    weighted_auroc,
    weighted_calibration_error,
    weighted_group_pearson,
    weighted_harrell_c,
    weighted_mean,
    weighted_pearson,
    weighted_rmse,
)

CALIBRATION_BINS = 10
MIN_ROWS_PER_TREATMENT = 10

_Factory: TypeAlias = Callable[[FloatArray, FloatArray], WeightedMetric]


class GroupedValue(NamedTuple):
    """A mean over groups, and over how many."""

    value: float
    groups: int


def auroc(outcome: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties half.

    Hanley and McNeil, Radiology 143, 1982. NaN if only one class is present.
    """
    return _value(weighted_auroc, outcome, score)


def auprc(outcome: ArrayLike, score: ArrayLike) -> float:
    """Average precision, the step-wise area under the precision-recall curve.

    Davis and Goadrich, ICML 2006 (no linear interpolation). A constant score gives the prevalence. NaN if only one
    class is present.
    """
    return _value(weighted_auprc, outcome, score)


def brier(outcome: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared error of a probability. Brier, Monthly Weather Review 78, 1950."""
    return _one(weighted_mean((_floats(outcome) - _floats(probability)) ** 2), len(_floats(outcome)))


def calibration_error(outcome: ArrayLike, probability: ArrayLike, *, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean distance of predicted and observed frequency over equal-mass bins.

    Naeini et al., AAAI 2015; equal-mass bins as in Nixon et al., CVPR workshops 2019. Equal predictions share a bin.
    Biased upward on small samples: even a perfect model scores about 0.25 / sqrt(rows per bin).
    """
    return _one(weighted_calibration_error(_floats(outcome), _floats(probability), bins), len(_floats(outcome)))


def harrell_c(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    *,
    entry: ArrayLike | None = None,
    strata: Sequence[object] | NDArray[np.generic] | None = None,
    averaging: Averaging = "equal",
) -> float:
    """Harrell's concordance: of two comparable rows, the chance that the one who fails first has the higher risk.

    A pair is comparable if one row's event comes before the other's time (or at it, if the other is censored there).
    Equal risks count half. With delayed entry a row only compares with events after it entered. With strata, pairs are
    formed inside a stratum only, and strata are averaged equally ("equal") or by their pairs ("pairs").

    Harrell et al., JAMA 247, 1982. NaN if there is no comparable pair.

    Parameters
    ----------
    time, event, risk
        [rows] follow-up in days, whether it ended in the event, and a score that is higher for worse prospects.
    entry
        [rows] days at which observation starts, on the same clock.
    strata
        [rows] labels, for instance the indication.
    averaging
        How strata are averaged.
    """
    days = _floats(time)
    metric = weighted_harrell_c(
        days,
        np.asarray(event, dtype=bool),
        _floats(risk),
        entry=None if entry is None else _floats(entry),
        strata=strata,
        averaging=averaging,
    )
    return _one(metric, len(days))


def pearson(outcome: ArrayLike, prediction: ArrayLike) -> float:
    """Pearson correlation; NaN if either side is constant."""
    return _value(weighted_pearson, outcome, prediction)


def per_treatment_pearson(
    outcome: ArrayLike,
    prediction: ArrayLike,
    treatment: Sequence[object] | NDArray[np.generic],
    *,
    min_rows: int = MIN_ROWS_PER_TREATMENT,
) -> GroupedValue:
    """Mean over treatments of the Pearson correlation across subjects.

    Pooled correlation rewards knowing which drug is potent; this asks who is sensitive to it (Sharifi-Noghabi et al.,
    Briefings in Bioinformatics 22, 2021). Only treatments with at least `min_rows` rows and some variance count.
    """
    y, p = _floats(outcome), _floats(prediction)
    group = treatment_groups(treatment, min_rows=min_rows)
    counted = sum(
        bool(np.isfinite(pearson(y[group == number], p[group == number]))) for number in np.unique(group[group >= 0])
    )
    return GroupedValue(_one(weighted_group_pearson(y, p, group), len(y)), counted)


def treatment_groups(
    treatment: Sequence[object] | NDArray[np.generic], *, min_rows: int = MIN_ROWS_PER_TREATMENT
) -> IntArray:
    """Number of each row's treatment, -1 for treatments with fewer than `min_rows` rows."""
    codes, _ = label_codes(treatment)
    return np.where(np.bincount(codes, minlength=1)[codes] >= min_rows, codes, -1)


def rmse(outcome: ArrayLike, prediction: ArrayLike) -> float:
    """Root mean squared error."""
    return _value(weighted_rmse, outcome, prediction)


def spearman(outcome: ArrayLike, prediction: ArrayLike) -> float:
    """Pearson correlation of mid-ranks. Spearman, American Journal of Psychology 15, 1904."""
    return pearson(_mid_ranks(_floats(outcome)), _mid_ranks(_floats(prediction)))


def _mid_ranks(values: FloatArray) -> FloatArray:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle: FloatArray = last - 0.5 * (count - 1)
    return middle[inverse]


def _floats(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _value(factory: _Factory, outcome: ArrayLike, prediction: ArrayLike) -> float:
    y, p = _floats(outcome), _floats(prediction)
    if y.shape != p.shape:
        raise ValueError(f"outcome and prediction must have one value per row; got {y.shape} and {p.shape}")
    return _one(factory(y, p), len(y))


def _one(metric: WeightedMetric, rows: int) -> float:
    return float(metric(np.ones((rows, 1)))[0])
