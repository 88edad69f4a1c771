"""The calibration line and the reliability table against what is known of the data."""

import numpy as np
import pytest

from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.recalibration import calibration_line, reliability

N = 4000


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """True logits and outcomes drawn from them."""
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 1.5, N)
    return logit, (rng.random(N) < 1 / (1 + np.exp(-logit))).astype(float)


def test_a_right_model_has_slope_one_and_intercept_zero(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    logit, y = drawn
    line = calibration_line(Outcome.binary(y), 1 / (1 + np.exp(-logit)), np.arange(N), replicates=50, seed=0)
    assert line["slope"].low < 1 < line["slope"].high
    assert line["intercept"].low < 0 < line["intercept"].high


def test_extreme_and_low_predictions_are_told(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    logit, y = drawn
    extreme = calibration_line(Outcome.binary(y), 1 / (1 + np.exp(-2 * logit)), np.arange(N), replicates=0, seed=0)
    assert extreme["slope"].estimate == pytest.approx(0.5, abs=0.05)
    low = calibration_line(Outcome.binary(y), 1 / (1 + np.exp(1 - logit)), np.arange(N), replicates=0, seed=0)
    assert low["intercept"].estimate == pytest.approx(1.0, abs=0.1)


def test_regression_has_a_line_too() -> None:
    x = np.random.default_rng(1).normal(size=N)
    y = 0.5 * x + 2 + np.random.default_rng(2).normal(size=N) / 10
    line = calibration_line(Outcome.regression(y), x, np.arange(N), replicates=0, seed=0)
    assert line["slope"].estimate == pytest.approx(0.5, abs=0.01)
    assert line["intercept"].estimate == pytest.approx(float((y - x).mean()), abs=1e-9)


def test_undefined_lines_are_nan() -> None:
    one_class = calibration_line(Outcome.binary(np.ones(40)), np.full(40, 0.5), np.arange(40), replicates=5, seed=0)
    assert np.isnan([one_class["slope"].estimate, one_class["intercept"].estimate]).all()
    constant = calibration_line(Outcome.regression(np.arange(40.0)), np.ones(40), np.arange(40), replicates=0, seed=0)
    assert np.isnan(constant["slope"].estimate)


def test_reliability_has_no_bin_of_few_subjects(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    logit, y = drawn
    p = 1 / (1 + np.exp(-logit))
    table = reliability(Outcome.binary(y), p, np.arange(N))["reliability"]
    assert len(table) == 10
    assert all(abs(row["predicted"] - row["observed"]) < 0.08 for row in table)
    few = reliability(Outcome.binary(y[:35]), p[:35], np.arange(35))["reliability"]
    assert [row["subjects"] >= 10 for row in few] == [True] * 3
    assert reliability(Outcome.binary(y[:60]), p[:60], np.arange(60) % 9)["reliability"] == []


def test_survival_has_a_table_at_one_horizon() -> None:
    rng = np.random.default_rng(3)
    rate = np.exp(rng.normal(-6, 0.7, N))
    time = rng.exponential(1 / rate)
    found = reliability(
        Outcome.survival(np.minimum(time, 900), time < 900), np.exp(-rate * 365), np.arange(N), horizon=365.0
    )
    assert found["error"] < 0.03
    assert found["horizon_days"] == 365
    assert len(found["reliability"]) == 10
