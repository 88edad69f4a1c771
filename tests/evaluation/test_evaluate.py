"""Task metrics: which are reported, for whom, as plain data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ican_ml.evaluation.evaluate import evaluate_task, mean_and_sd
from ican_ml.evaluation.metrics import auroc
from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.table import MeanSd, summary_table

RNG = np.random.default_rng(0)
ROWS = 200
SUBJECT = np.repeat(np.arange(100), 2)
INDICATION = np.where(SUBJECT < 50, "lung", np.where(SUBJECT < 97, "breast", "rare"))


def test_binary_task_drops_unlabelled_rows_and_small_indications() -> None:
    response = (RNG.random(ROWS) < 0.4).astype(float)
    response[:10] = np.nan
    probability = np.clip(0.4 + 0.1 * RNG.normal(size=ROWS) + 0.1 * np.nan_to_num(response), 0, 1)
    found = evaluate_task(
        Outcome.binary(response), probability, subject_id=SUBJECT, indication=INDICATION, replicates=100
    )
    assert found.overall.rows == 190
    assert found.overall.subjects == 95
    assert set(found.by_indication) == {"lung", "breast"}
    assert found.primary.estimate == auroc(response[10:], probability[10:])
    assert found.primary.low < found.primary.estimate < found.primary.high
    assert set(found.overall.metrics) == {"auroc", "auprc", "brier", "calibration_error"}
    error = found.overall.metrics["calibration_error"]
    assert error.low <= error.estimate <= error.high


def test_survival_task_compares_inside_indications() -> None:
    time = RNG.exponential(100, ROWS) * np.where(INDICATION == "lung", 1, 50)
    knows_indication_only = (INDICATION == "lung").astype(float)
    outcome = Outcome.survival(time, np.ones(ROWS, bool))
    found = evaluate_task(
        outcome,
        knows_indication_only,
        subject_id=SUBJECT,
        indication=INDICATION,
        survival_at={100.0: np.full(ROWS, 0.5)},
        replicates=50,
    )
    assert found.primary.estimate == pytest.approx(0.5)
    assert {"c_index", "c_index_by_pairs", "brier_100d", "calibration_error_100d"} == set(found.overall.metrics)
    assert found.overall.metrics["brier_100d"].estimate == pytest.approx(0.25)


def test_regression_task_is_judged_per_treatment_where_there_are_treatments() -> None:
    value = RNG.normal(size=ROWS)
    outcome, treatment = Outcome.regression(value), np.array(["a", "b"] * 100)
    with_treatments = evaluate_task(outcome, value, subject_id=SUBJECT, treatment=treatment, replicates=50)
    assert with_treatments.primary == with_treatments.overall.metrics["per_treatment_pearson"]
    assert evaluate_task(outcome, value, subject_id=SUBJECT, replicates=0).primary.estimate == pytest.approx(1.0)


def test_task_metrics_are_plain_json_without_nan() -> None:
    outcome = Outcome.binary(np.ones(ROWS))
    found = evaluate_task(outcome, np.full(ROWS, 0.5), subject_id=SUBJECT, indication=INDICATION, replicates=20)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["overall"]["metrics"]["auroc"] == {"estimate": None, "low": None, "high": None}
    assert data["by_indication"]["lung"]["subjects"] == 50


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.full(ROWS, 3.0), "apply the sigmoid"),
        (np.full(ROWS, np.nan), "must be finite"),
        (np.full(ROWS - 1, 0.5), "one value per row"),
    ],
)
def test_wrong_predictions_are_refused(prediction: np.ndarray, message: str) -> None:
    outcome = Outcome.binary(np.tile([0, 1], ROWS // 2))
    with pytest.raises(ValueError, match=message):
        evaluate_task(outcome, prediction, subject_id=SUBJECT)


def test_no_labelled_row_gives_undefined_metrics() -> None:
    found = evaluate_task(Outcome.binary(np.full(3, np.nan)), np.full(3, 0.5), subject_id=np.arange(3))
    assert found.overall.rows == 0
    assert np.isnan(found.primary.estimate)


def test_mean_and_sd_over_folds() -> None:
    value = RNG.normal(size=ROWS)
    folds = [
        evaluate_task(Outcome.regression(value), value + shift, subject_id=SUBJECT, replicates=0)
        for shift in (1.0, 3.0)
    ]
    mean, sd = mean_and_sd(folds)["rmse"]
    assert mean == pytest.approx(2.0)
    assert sd == pytest.approx(np.sqrt(2.0))
    assert np.isnan(mean_and_sd(folds[:1])["rmse"][1])


def test_summary_table_aligns_columns() -> None:
    found = evaluate_task(
        Outcome.binary(np.tile([0, 1], ROWS // 2)), np.tile([0.2, 0.8], ROWS // 2), subject_id=SUBJECT, replicates=20
    )
    text = summary_table(
        [
            {"model": "model", "AUROC": found.primary, "folds": MeanSd(0.765, 0.008), "n": 12042},
            {"model": "ridge", "AUROC": None, "folds": MeanSd(0.7, float("nan"))},
        ]
    )
    assert text.splitlines() == [
        "model                 AUROC          folds       n",
        "-----  --------------------  -------------  ------",
        "model  1.000 [1.000, 1.000]  0.765 ± 0.008  12,042",
        "ridge                     -          0.700       -",
    ]
    assert summary_table([]) == "\n"
