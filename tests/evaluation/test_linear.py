"""Ridge solvers against scikit-learn, closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression, Ridge

from ican_ml.evaluation.linear import cox_loss, fit_ridge_path, logistic_loss
from ican_ml.evaluation.metrics import harrell_c
from ican_ml.evaluation.outcome import Outcome


def data(rows: int = 300, features: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, features))
    effect = rng.normal(size=features) * 0.4
    return matrix, matrix @ effect, effect


def test_logistic_path_agrees_with_scikit_learn() -> None:
    matrix, logit, _ = data()
    y = (np.random.default_rng(1).random(300) < 1 / (1 + np.exp(-logit))).astype(float)
    models = fit_ridge_path(matrix, Outcome.binary(y), [1.0, 50.0])
    for model, strength in zip(models, [1.0, 50.0], strict=True):
        reference = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=1000).fit(matrix, y)
        np.testing.assert_allclose(model.coefficients, reference.coef_[0], atol=2e-3)
        assert model.intercept == pytest.approx(reference.intercept_[0], abs=2e-3)


def test_least_squares_agrees_with_scikit_learn() -> None:
    matrix, mean, _ = data()
    y = 3.0 + mean + np.random.default_rng(1).normal(size=300)
    model = fit_ridge_path(matrix, Outcome.regression(y), [10.0])[0]
    np.testing.assert_allclose(model.predict(matrix), Ridge(alpha=10.0).fit(matrix, y).predict(matrix), atol=1e-6)


def test_cox_recovers_hazard_ratios_under_delayed_entry_and_strata() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(4000, 3))
    effect = np.array([0.8, -0.5, 0.0])
    strata = rng.integers(0, 2, 4000)
    time = rng.exponential(100 * np.exp(-matrix @ effect) * np.where(strata, 5.0, 1.0))
    entry = rng.uniform(0, 40, 4000)
    censoring = rng.exponential(300, 4000)
    outcome = Outcome.survival(np.minimum(time, censoring), time <= censoring, entry)
    keep = outcome.labelled
    model = fit_ridge_path(matrix[keep], outcome.take(keep), [1.0], strata=strata[keep])[0]
    np.testing.assert_allclose(model.coefficients, effect, atol=0.1)


@pytest.mark.parametrize("kind", ["binary", "survival"])
def test_gradients_are_those_of_the_loss(kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "binary":
        loss = logistic_loss(Outcome.binary(rng.integers(0, 2, 30)))
    else:
        outcome = Outcome.survival(rng.integers(5, 20, 30), rng.random(30) < 0.6, rng.integers(0, 5, 30))
        loss = cox_loss(outcome, rng.integers(0, 2, 30))
    assert check_grad(lambda x: loss(x)[0], lambda x: loss(x)[1], rng.normal(size=30)) < 1e-4


def test_more_features_than_rows_is_no_trouble() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, 200))
    time = rng.exponential(np.exp(-matrix[:, 0]))
    model = fit_ridge_path(matrix, Outcome.survival(time, np.ones(60, bool)), [10.0])[0]
    assert harrell_c(time, np.ones(60, bool), model.predict(matrix)) > 0.8
