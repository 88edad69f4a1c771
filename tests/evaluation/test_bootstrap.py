"""Intervals by subject: weights mean multiplicity, coverage, width, determinism."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ican_ml.evaluation import metrics
from ican_ml.evaluation.bootstrap import interval, paired_difference
from ican_ml.evaluation.weighted import (
    WeightedMetric,
    weighted_auprc,
    weighted_auroc,
    weighted_group_pearson,
    weighted_harrell_c,
    weighted_mean,
    weighted_pearson,
    weighted_rmse,
)

Rows = Callable[[np.ndarray], float]


def metric_pairs() -> list[tuple[str, WeightedMetric, Rows]]:
    rng = np.random.default_rng(1)
    y = (rng.random(80) < 0.4).astype(float)
    score = (rng.normal(size=80) + y).round(1)
    time, event = rng.integers(1, 30, 80).astype(float), rng.random(80) < 0.7
    group = rng.integers(0, 3, 80)
    return [
        ("auroc", weighted_auroc(y, score), lambda i: metrics.auroc(y[i], score[i])),
        ("auprc", weighted_auprc(y, score), lambda i: metrics.auprc(y[i], score[i])),
        ("pearson", weighted_pearson(time, score), lambda i: metrics.pearson(time[i], score[i])),
        ("rmse", weighted_rmse(time, score), lambda i: metrics.rmse(time[i], score[i])),
        (
            "per_treatment",
            weighted_group_pearson(time, score, group),
            lambda i: metrics.per_treatment_pearson(time[i], score[i], group[i], min_rows=1).value,
        ),
        (
            "harrell",
            weighted_harrell_c(time, event, score, strata=group),
            lambda i: metrics.harrell_c(time[i], event[i], score[i], strata=group[i]),
        ),
    ]


@pytest.mark.parametrize(("name", "weighted", "plain"), metric_pairs(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_weight_is_a_multiplicity(name: str, weighted: WeightedMetric, plain: Rows) -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 4, size=(80, 3)).astype(float)
    expected = [plain(np.repeat(np.arange(80), weights[:, r].astype(int))) for r in range(3)]
    np.testing.assert_allclose(weighted(weights), expected, atol=1e-9)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        subject = np.repeat(np.arange(60), 3)
        values = np.repeat(rng.normal(size=60), 3) + 0.1 * rng.normal(size=180)
        found = interval(weighted_mean(values), subject, replicates=200, seed=trial)
        covered += found.low <= 0.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_repeating_rows_of_a_subject_does_not_narrow_its_interval() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(100) < 0.5).astype(float)
    score = rng.normal(size=100) + y
    once = interval(weighted_auroc(y, score), np.arange(100), replicates=400)
    repeated = interval(
        weighted_auroc(np.repeat(y, 5), np.repeat(score, 5)), np.repeat(np.arange(100), 5), replicates=400
    )
    assert repeated == pytest.approx(once)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    metric = weighted_mean(rng.normal(size=50))
    assert interval(metric, np.arange(50), seed=3) == interval(metric, np.arange(50), seed=3)
    assert interval(metric, np.arange(50), seed=3) != interval(metric, np.arange(50), seed=4)


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.5).astype(float)
    good = rng.normal(size=400) + y
    worse = good + 1.0 * rng.normal(size=400)
    first, second = weighted_auroc(y, good), weighted_auroc(y, worse)
    difference = paired_difference(first, second, np.arange(400))
    assert difference.estimate == pytest.approx(metrics.auroc(y, good) - metrics.auroc(y, worse))
    assert 0 < difference.low < difference.estimate < difference.high
    alone = interval(first, np.arange(400))
    assert difference.high - difference.low < alone.high - alone.low


def test_undefined_and_empty_give_nan() -> None:
    one_class = interval(weighted_auroc(np.ones(5), np.arange(5.0)), np.arange(5))
    assert np.isnan(one_class).all()
    assert np.isnan(interval(weighted_mean(np.zeros(0)), np.zeros(0))).all()
    estimate_alone = interval(weighted_mean(np.ones(5)), np.arange(5), replicates=0)
    assert estimate_alone.estimate == 1.0
    assert np.isnan(estimate_alone.low)
