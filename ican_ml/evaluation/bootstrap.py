"""Bootstrap intervals by subject: whole subjects are drawn with replacement, never single rows.

A subject may have several rows (lines of therapy, drugs); resampling rows would make intervals too narrow. A replicate
is a weight per row, so any `WeightedMetric` (see `weighted`) gets its interval in one vectorised pass.
Percentile intervals, Efron and Tibshirani 1993; clustered resampling, Field and Welsh, JRSS B 69, 2007.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ican_ml.evaluation.outcome import FloatArray, IntArray
from ican_ml.evaluation.weighted import WeightedMetric

_WEIGHTS_AT_ONCE = 1_000_000


class Interval(NamedTuple):
    """An estimate and the ends of its interval; NaN where undefined."""

    estimate: float
    low: float
    high: float


def interval(
    metric: WeightedMetric,
    subject_id: ArrayLike,
    *,
    replicates: int = 500,
    seed: int = 0,
    level: float = 0.95,
    centred: bool = False,
) -> Interval:
    """Estimate of a metric and its interval over subjects.

    Parameters
    ----------
    metric
        From a factory in `weighted`, for instance `weighted_auroc(outcome, score)`.
    subject_id
        [rows] the subject of each row.
    replicates
        Bootstrap replicates; 0 gives the estimate alone.
    seed
        The same seed draws the same subjects, so that models can be compared.
    level
        Coverage.
    centred
        Shift the interval to the estimate: for metrics that resampling biases, such as the calibration error.
    """
    centre = frozenset({"metric"}) if centred else frozenset[str]()
    return intervals({"metric": metric}, subject_id, replicates=replicates, seed=seed, level=level, centred=centre)[
        "metric"
    ]


def intervals(
    metrics: Mapping[str, WeightedMetric],
    subject_id: ArrayLike,
    *,
    replicates: int = 500,
    seed: int = 0,
    level: float = 0.95,
    centred: frozenset[str] = frozenset(),
) -> dict[str, Interval]:
    """As `interval`, for several metrics of the same rows, which share their replicates."""
    _, subject = np.unique(np.asarray(subject_id), return_inverse=True)
    estimates = {name: float(metric(np.ones((len(subject), 1)))[0]) for name, metric in metrics.items()}
    drawn: dict[str, list[FloatArray]] = {name: [] for name in metrics}
    for weights in _replicate_weights(subject.astype(np.int64), replicates, seed):
        for name, metric in metrics.items():
            drawn[name].append(metric(weights))
    return {name: _percentiles(estimates[name], drawn[name], level, centred=name in centred) for name in metrics}


def paired_difference(
    first: WeightedMetric,
    second: WeightedMetric,
    subject_id: ArrayLike,
    *,
    replicates: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of `first` minus `second` on the same rows and the same resampled subjects."""

    def difference(weights: FloatArray) -> FloatArray:
        return first(weights) - second(weights)

    return interval(difference, subject_id, replicates=replicates, seed=seed, level=level)


def _replicate_weights(subject: IntArray, replicates: int, seed: int) -> Iterator[FloatArray]:
    n_subjects = int(subject.max(initial=-1)) + 1
    if not n_subjects:
        return
    rng = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // len(subject))
    for first in range(0, replicates, at_once):
        count = min(at_once, replicates - first)
        draw = rng.integers(0, n_subjects, size=(count, n_subjects))
        flat = draw + n_subjects * np.arange(count)[:, None]
        multiplicity = np.bincount(flat.ravel(), minlength=count * n_subjects).reshape(count, n_subjects)
        yield np.ascontiguousarray(multiplicity[:, subject].T, dtype=np.float64)


def _percentiles(estimate: float, drawn: list[FloatArray], level: float, *, centred: bool) -> Interval:
    values = np.concatenate(drawn) if drawn else np.zeros(0)
    defined = values[np.isfinite(values)]
    if not np.isfinite(estimate) or 2 * len(defined) <= len(values) or not len(defined):
        return Interval(estimate, float("nan"), float("nan"))
    tail = 0.5 * (1.0 - level)
    low, middle, high = np.quantile(defined, [tail, 0.5, 1.0 - tail])
    if centred:
        low, high = max(0.0, low + estimate - middle), high + estimate - middle
    return Interval(estimate, float(low), float(high))
