"""Survival curves, Brier score and calibration at a horizon."""

from __future__ import annotations

import numpy as np
import pytest

from ican_ml.evaluation.outcome import Outcome
from ican_ml.evaluation.survival import ipcw_brier_losses, kaplan_meier, survival_calibration_error


def test_kaplan_meier_by_hand() -> None:
    curve = kaplan_meier(Outcome.survival([1, 2, 2, 3, 4], [True, True, False, False, True]))
    np.testing.assert_allclose(curve.time, [0, 1, 2, 4])
    np.testing.assert_allclose(curve.value, [1, 0.8, 0.6, 0.0])
    np.testing.assert_allclose(curve.at(np.array([0.5, 2.0, 3.9])), [1, 0.6, 0.6])
    np.testing.assert_allclose(curve.before(np.array([1.0, 2.0])), [1, 0.8])


def test_delayed_entry_thins_the_early_risk_set() -> None:
    curve = kaplan_meier(Outcome.survival([1, 2, 3], [True, True, True], entry=[0, 1.5, 0]))
    np.testing.assert_allclose(curve.value, [1, 0.5, 0.25, 0.0])


def test_brier_without_censoring_is_the_mean_squared_error() -> None:
    rng = np.random.default_rng(0)
    time, survival = rng.exponential(100, 200), rng.random(200)
    losses = ipcw_brier_losses(Outcome.survival(time, np.ones(200, bool)), survival, 80.0)
    np.testing.assert_allclose(losses, (survival - (time > 80)) ** 2)


def test_brier_weights_make_up_for_censoring() -> None:
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.5, 2.0, 20000)
    time, censoring = rng.exponential(100 / rate), rng.exponential(150, 20000)
    survival = np.exp(-rate)
    full = ipcw_brier_losses(Outcome.survival(time, np.ones(20000, bool)), survival, 100.0).mean()
    seen = Outcome.survival(np.minimum(time, censoring), time <= censoring)
    assert ipcw_brier_losses(seen, survival, 100.0).mean() == pytest.approx(full, abs=0.01)
    assert survival_calibration_error(seen, survival, 100.0) < 0.03
    assert survival_calibration_error(seen, survival**2, 100.0) > 0.1


def test_brier_is_undefined_beyond_follow_up_and_under_delayed_entry() -> None:
    outcome = Outcome.survival([1.0, 2.0], [True, False])
    assert np.isnan(ipcw_brier_losses(outcome, np.ones(2), 5.0)).all()
    delayed = Outcome.survival([1.0, 2.0], [True, False], entry=[0.5, 0.5])
    assert np.isnan(ipcw_brier_losses(delayed, np.ones(2), 1.5)).all()
