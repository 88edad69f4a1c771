"""Metrics against scikit-learn, SciPy and brute force; degenerate inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ican_ml.evaluation import metrics
from ican_ml.evaluation.outcome import Outcome


def binary_data(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    outcome = (rng.random(rows) < 0.3).astype(float)
    score = np.clip(rng.normal(0.4 + 0.1 * outcome, 0.2), 0, 1).round(1)
    return outcome, score


@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_auprc_agree_with_scikit_learn_under_ties(seed: int) -> None:
    outcome, score = binary_data(300, seed)
    assert metrics.auroc(outcome, score) == pytest.approx(roc_auc_score(outcome, score), abs=1e-12)
    assert metrics.auprc(outcome, score) == pytest.approx(average_precision_score(outcome, score), abs=1e-12)
    assert metrics.brier(outcome, score) == pytest.approx(brier_score_loss(outcome, score), abs=1e-12)


def harrell_by_hand(time, event, risk, entry) -> float:
    concordant = comparable = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            later = time[j] > time[i] or (time[j] == time[i] and not event[j])
            if i != j and event[i] and later and entry[j] < time[i]:
                comparable += 1
                concordant += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return concordant / comparable


@pytest.mark.parametrize("delayed", [False, True])
def test_harrell_c_agrees_with_brute_force(delayed: bool) -> None:
    rng = np.random.default_rng(3)
    time = rng.integers(5, 40, 120).astype(float)
    event = rng.random(120) < 0.6
    risk = (rng.normal(size=120) - 0.05 * time).round(1)
    entry = rng.integers(0, 20, 120).astype(float) if delayed else np.full(120, -np.inf)
    expected = harrell_by_hand(time, event, risk, entry)
    found = metrics.harrell_c(time, event, risk, entry=entry if delayed else None)
    assert found == pytest.approx(expected, abs=1e-12)


def test_delayed_entry_leaves_out_pairs_that_were_never_at_risk_together() -> None:
    time, event = [10.0, 30.0], [True, True]
    assert metrics.harrell_c(time, event, [0.0, 1.0]) == 0.0
    assert np.isnan(metrics.harrell_c(time, event, [0.0, 1.0], entry=[0.0, 15.0]))


def test_stratified_c_compares_inside_strata_only() -> None:
    time = np.array([1.0, 2.0, 100.0, 200.0, 300.0])
    event = np.ones(5, dtype=bool)
    risk = np.array([1.0, 0.0, 11.0, 12.0, 10.0])
    strata = ["a", "a", "b", "b", "b"]
    assert metrics.harrell_c(time, event, risk, strata=strata) == pytest.approx((1.0 + 2 / 3) / 2)
    assert metrics.harrell_c(time, event, risk, strata=strata, averaging="pairs") == pytest.approx(3 / 4)


def test_calibration_error_of_equal_mass_bins_by_hand() -> None:
    outcome = np.array([0, 0, 1, 1, 1, 0.0])
    probability = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    expected = 0.5 * abs(1 / 3 - 0.2) + 0.5 * abs(2 / 3 - 0.7)
    assert metrics.calibration_error(outcome, probability, bins=2) == pytest.approx(expected)


def test_calibration_error_keeps_equal_predictions_in_one_bin() -> None:
    outcome = np.array([0.0, 1.0] * 50)
    assert metrics.calibration_error(outcome, np.full(100, 0.5)) == pytest.approx(0.0)


def test_per_treatment_pearson_ignores_drug_potency_and_rare_drugs() -> None:
    rng = np.random.default_rng(0)
    treatment = np.repeat(["potent", "weak", "rare"], [30, 30, 5])
    offset = np.repeat([-5.0, 5.0, 0.0], [30, 30, 5])
    outcome, prediction = offset + rng.normal(size=65), offset + rng.normal(size=65)
    value, groups = metrics.per_treatment_pearson(outcome, prediction, treatment)
    by_hand = [np.corrcoef(outcome[a:b], prediction[a:b])[0, 1] for a, b in ((0, 30), (30, 60))]
    assert groups == 2
    assert value == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert metrics.pearson(outcome, prediction) > 0.9 > abs(value)


def test_pearson_spearman_and_rmse_agree_with_numpy_and_scipy() -> None:
    rng = np.random.default_rng(0)
    x = 1e4 + rng.normal(size=50).round(1)
    y = x + rng.normal(size=50)
    assert metrics.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert metrics.spearman(x, y) == pytest.approx(spearmanr(x, y)[0], abs=1e-12)
    assert metrics.rmse(x, y) == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))


def test_undefined_metrics_are_nan() -> None:
    ones, score = np.ones(4), np.arange(4) / 4
    assert np.isnan(metrics.auroc(ones, score))
    assert np.isnan(metrics.auprc(ones, score))
    assert np.isnan(metrics.auprc(1 - ones, score))
    assert np.isnan(metrics.harrell_c(ones, np.zeros(4, bool), score))
    assert np.isnan(metrics.pearson(ones, score))
    assert np.isnan(metrics.per_treatment_pearson(ones, score, ["a"] * 4).value)
    for metric in (
        metrics.auroc,
        metrics.auprc,
        metrics.brier,
        metrics.calibration_error,
        metrics.pearson,
        metrics.rmse,
    ):
        assert np.isnan(metric([], []))
    assert np.isnan(metrics.harrell_c([], [], []))


def test_outcomes_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        Outcome.binary([0, 2])
    with pytest.raises(ValueError, match="one value per row"):
        Outcome.survival([1.0, 2.0], [True])


def test_a_row_that_leaves_before_it_enters_is_not_labelled() -> None:
    outcome = Outcome.survival([5.0, 5.0, np.nan], [True] * 3, entry=[0.0, 7.0, 0.0])
    assert outcome.labelled.tolist() == [True, False, False]


def test_metrics_import_numpy_only() -> None:
    code = (
        "import sys, ican_ml.evaluation.metrics as m; assert m.auroc([0, 1], [0, 1]) == 1.0; "
        "sys.exit(any(name in sys.modules for name in "
        "('torch', 'scipy', 'sklearn', 'xgboost', 'polars', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
