"""Metrics as functions of row weights, so that a bootstrap replicate costs a pass, not a sort.

Each factory takes the data once, does the work that does not depend on weights (sorting, grouping), and returns a
`WeightedMetric`: weights float64 [rows, replicates] -> values float64 [replicates]. A weight is a multiplicity: weights
of ones give the metric itself, weight 2 counts a row twice, 0 leaves it out. Where a metric is undefined (one class
only, no comparable pair, no variance) the value is NaN. Definitions and sources stand in `metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ican_ml.evaluation.outcome import BoolArray, FloatArray, IntArray

WeightedMetric = Callable[[FloatArray], FloatArray]
Averaging = Literal["equal", "pairs"]

_PAIR_BLOCK = 4_000_000


def weighted_auroc(outcome: FloatArray, score: FloatArray) -> WeightedMetric:
    """Area under the ROC curve; ties count half."""
    order, starts, positive = _threshold_groups(outcome, score, descending=False)

    def evaluate(weights: FloatArray) -> FloatArray:
        if not len(order):
            return _nothing(weights)
        sorted_weights = weights[order]
        hits = np.add.reduceat(sorted_weights * positive, starts, axis=0)
        misses = np.add.reduceat(sorted_weights * (1.0 - positive), starts, axis=0)
        below = np.cumsum(misses, axis=0) - misses
        return _ratio((hits * (below + 0.5 * misses)).sum(axis=0), hits.sum(axis=0) * misses.sum(axis=0))

    return evaluate


def weighted_auprc(outcome: FloatArray, score: FloatArray) -> WeightedMetric:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    order, starts, positive = _threshold_groups(outcome, score, descending=True)

    def evaluate(weights: FloatArray) -> FloatArray:
        if not len(order):
            return _nothing(weights)
        sorted_weights = weights[order]
        hits = np.add.reduceat(sorted_weights * positive, starts, axis=0)
        called = np.cumsum(np.add.reduceat(sorted_weights, starts, axis=0), axis=0)
        precision = np.cumsum(hits, axis=0) / np.where(called > 0, called, 1.0)
        total = hits.sum(axis=0)
        value = _ratio((precision * hits).sum(axis=0), total)
        value[total == called[-1]] = np.nan
        return value

    return evaluate


def weighted_mean(values: FloatArray) -> WeightedMetric:
    """Mean of a number per row (the Brier score is the mean of squared errors)."""

    def evaluate(weights: FloatArray) -> FloatArray:
        return _ratio(values @ weights, weights.sum(axis=0))

    return evaluate


def weighted_rmse(outcome: FloatArray, prediction: FloatArray) -> WeightedMetric:
    """Root mean squared error."""
    mean_square = weighted_mean((outcome - prediction) ** 2)

    def evaluate(weights: FloatArray) -> FloatArray:
        return np.sqrt(mean_square(weights))

    return evaluate


def weighted_calibration_error(outcome: FloatArray, probability: FloatArray, bins: int) -> WeightedMetric:
    """Expected calibration error over equal-mass bins, which are laid once, on the rows as given."""
    membership = equal_mass_bins(probability, bins)
    indicator = (membership[None, :] == np.arange(membership.max(initial=-1) + 1)[:, None]).astype(np.float64)
    gap = indicator * (outcome - probability)

    def evaluate(weights: FloatArray) -> FloatArray:
        return _ratio(np.abs(gap @ weights).sum(axis=0), weights.sum(axis=0))

    return evaluate


def weighted_pearson(outcome: FloatArray, prediction: FloatArray) -> WeightedMetric:
    """Pearson correlation."""
    return weighted_group_pearson(outcome, prediction, np.zeros(len(outcome), dtype=np.int64))


def weighted_group_pearson(outcome: FloatArray, prediction: FloatArray, group: IntArray) -> WeightedMetric:
    """Pearson correlation inside each group, averaged over the groups in which it is defined.

    `group` numbers the rows' groups; rows with a negative number are left out.
    """
    rows = np.flatnonzero(group >= 0)
    order = rows[np.argsort(group[rows], kind="stable")]
    sorted_group = group[order]
    starts = _run_starts(sorted_group)
    x, y = _centred(outcome[order], starts), _centred(prediction[order], starts)

    def evaluate(weights: FloatArray) -> FloatArray:
        if not len(order):
            return _nothing(weights)
        w = weights[order]
        mass = np.add.reduceat(w, starts, axis=0)
        safe = np.where(mass > 0, mass, 1.0)

        def moment(values: FloatArray) -> FloatArray:
            sums: FloatArray = np.add.reduceat(w * values[:, None], starts, axis=0)
            return sums / safe

        mean_x, mean_y = moment(x), moment(y)
        variance_x = moment(x * x) - mean_x**2
        variance_y = moment(y * y) - mean_y**2
        floor_x, floor_y = 1e-12 * moment(x * x), 1e-12 * moment(y * y)
        defined = (variance_x > floor_x) & (variance_y > floor_y)
        scale = np.sqrt(np.where(defined, variance_x * variance_y, 1.0))
        r = np.where(defined, (moment(x * y) - mean_x * mean_y) / scale, 0.0)
        return _ratio(np.clip(r, -1.0, 1.0).sum(axis=0), defined.sum(axis=0))

    return evaluate


def weighted_harrell_c(
    time: FloatArray,
    event: BoolArray,
    risk: FloatArray,
    *,
    entry: FloatArray | None = None,
    strata: Sequence[object] | NDArray[np.generic] | None = None,
    averaging: Averaging = "equal",
) -> WeightedMetric:
    """Harrell's c from pairs inside strata; strata averaged equally, or by their number of comparable pairs."""
    start = np.full(len(time), -np.inf) if entry is None else entry
    labels = np.zeros(len(time), dtype=np.int64) if strata is None else label_codes(strata)[0]
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def evaluate(weights: FloatArray) -> FloatArray:
        if not members:
            return _nothing(weights)
        pairs = [_pair_counts(time[m], event[m], risk[m], start[m], weights[m]) for m in members]
        concordant = np.stack([p[0] for p in pairs])
        comparable = np.stack([p[1] for p in pairs])
        if averaging == "pairs":
            return _ratio(concordant.sum(axis=0), comparable.sum(axis=0))
        defined = comparable > 0
        c = np.where(defined, concordant / np.where(defined, comparable, 1.0), 0.0)
        return _ratio(c.sum(axis=0), defined.sum(axis=0))

    return evaluate


def equal_mass_bins(probability: FloatArray, bins: int) -> IntArray:
    """Bin number of each row: rows in order of prediction, cut into `bins` parts of equal size, ties kept together."""
    n = len(probability)
    order = np.argsort(probability, kind="stable")
    starts = _run_starts(probability[order])
    if not n:
        return np.zeros(0, dtype=np.int64)
    size = np.diff(np.append(starts, n))
    middle = starts + 0.5 * (size - 1)
    part = np.minimum((middle + 0.5) * bins // n, bins - 1)
    _, part = np.unique(part, return_inverse=True)
    membership = np.empty(n, dtype=np.int64)
    membership[order] = np.repeat(part, size)
    return membership


def label_codes(labels: Sequence[object] | NDArray[np.generic]) -> tuple[IntArray, list[str]]:
    """Number each row's label: codes [rows] into the sorted distinct labels (as text)."""
    names, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    return codes.astype(np.int64), [str(name) for name in names]


def _threshold_groups(
    outcome: FloatArray, score: FloatArray, *, descending: bool
) -> tuple[IntArray, IntArray, FloatArray]:
    order = np.argsort(-score if descending else score, kind="stable")
    return order, _run_starts(score[order]), (outcome[order] == 1.0).astype(np.float64)[:, None]


def _run_starts(sorted_values: NDArray[np.generic]) -> IntArray:
    if not len(sorted_values):
        return np.zeros(0, dtype=np.int64)
    changes: BoolArray = np.asarray(sorted_values[1:] != sorted_values[:-1])
    return np.concatenate([np.zeros(1, dtype=np.int64), np.flatnonzero(changes) + 1])


def _centred(values: FloatArray, starts: IntArray) -> FloatArray:
    if not len(values):
        return values
    size = np.diff(np.append(starts, len(values)))
    return values - np.repeat(np.add.reduceat(values, starts) / size, size)


def _pair_counts(
    time: FloatArray, event: BoolArray, risk: FloatArray, entry: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weighted numbers of concordant and of comparable pairs, per replicate."""
    concordant = np.zeros(weights.shape[1])
    comparable = np.zeros(weights.shape[1])
    mass = weights.astype(np.float32)
    cases = np.flatnonzero(event)
    step = max(1, _PAIR_BLOCK // max(1, len(time)))
    for first in range(0, len(cases), step):
        i = cases[first : first + step, None]
        outlives = (time > time[i]) | ((time == time[i]) & ~event)
        pair = (outlives & (entry < time[i])).astype(np.float32)
        agrees = pair * ((risk[i] > risk) + np.float32(0.5) * (risk[i] == risk))
        comparable += np.einsum("ir,ir->r", weights[i[:, 0]], pair @ mass)
        concordant += np.einsum("ir,ir->r", weights[i[:, 0]], agrees.astype(np.float32) @ mass)
    return concordant, comparable


def _ratio(numerator: FloatArray, denominator: FloatArray | IntArray) -> FloatArray:
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)


def _nothing(weights: FloatArray) -> FloatArray:
    return np.full(weights.shape[1], np.nan)
