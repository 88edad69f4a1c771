"""Ridge-penalised linear models: logistic, Cox and least squares, over a path of strengths.

In: a standardised matrix float64 [rows, features] and an `Outcome`. Out: coefficients per strength. Minimises
`loss(X b) + strength / 2 * |b|^2`, the loss summed over rows, so a strength means the same prior at any sample size.

The Gram matrix is formed once; its Cholesky factor at the loss's typical curvature preconditions L-BFGS, which then
needs some ten passes over the data (a fixed-Hessian method: Boehning and Lindsay, Ann. Inst. Statist. Math. 40, 1988).
Cox: Breslow's partial likelihood (Biometrics 30, 1974), with strata and delayed entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ican_ml.evaluation.outcome import FloatArray, IntArray, Outcome

Loss: TypeAlias = Callable[[FloatArray], tuple[float, FloatArray]]

_JITTER = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearModel:
    """Coefficients on standardised features and an intercept (0 for Cox, whose scale has none)."""

    coefficients: FloatArray
    intercept: float

    def predict(self, matrix: FloatArray) -> FloatArray:
        """The linear predictor [rows]: logit, log hazard ratio, or the outcome's mean."""
        return matrix @ self.coefficients + self.intercept


def fit_ridge_path(
    matrix: FloatArray, outcome: Outcome, strengths: Sequence[float], *, strata: IntArray | None = None
) -> list[LinearModel]:
    """Fit one model per strength, strongest first for warm starts, returned in the order asked.

    Parameters
    ----------
    matrix
        float64 [rows, features], standardised, no NaN.
    outcome
        [rows], all labelled.
    strengths
        Penalties on the summed loss, all positive.
    strata
        int64 [rows], Cox only: separate baseline hazards.
    """
    with_intercept = outcome.kind != "survival"
    x = np.column_stack([matrix, np.ones(len(matrix))]) if with_intercept else matrix
    gram = x.T @ x
    models: dict[float, LinearModel] = {}
    start = np.zeros(x.shape[1])
    for strength in sorted(set(strengths), reverse=True):
        start = (
            _least_squares(x, gram, outcome.value, strength, with_intercept)
            if outcome.kind == "regression"
            else _minimise(x, gram, outcome, strata, strength, start, with_intercept)
        )
        models[strength] = LinearModel(
            coefficients=start[: matrix.shape[1]].copy(), intercept=float(start[-1]) if with_intercept else 0.0
        )
    return [models[strength] for strength in strengths]


def logistic_loss(outcome: Outcome) -> Loss:
    """Summed cross-entropy of logits, and its gradient."""
    y = outcome.value

    def loss(logits: FloatArray) -> tuple[float, FloatArray]:
        probability = 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))
        return float(np.sum(np.logaddexp(0.0, logits) - y * logits)), probability - y

    return loss


def cox_loss(outcome: Outcome, strata: IntArray | None = None) -> Loss:
    """Negative Breslow partial log likelihood of log hazard ratios, and its gradient."""
    groups = np.zeros(len(outcome), dtype=np.int64) if strata is None else strata
    parts = [
        (rows, _cox_stratum(outcome.take(rows))) for rows in (np.flatnonzero(groups == g) for g in np.unique(groups))
    ]

    def loss(log_hazard: FloatArray) -> tuple[float, FloatArray]:
        total = 0.0
        gradient = np.zeros(len(log_hazard))
        for rows, part in parts:
            value, gradient[rows] = part(log_hazard[rows])
            total += value
        return total, gradient

    return loss


def _cox_stratum(outcome: Outcome) -> Loss:
    event = outcome.event.astype(np.float64)
    by_time, by_entry = np.argsort(outcome.value, kind="stable"), np.argsort(outcome.entry, kind="stable")
    times, deaths = np.unique(outcome.value[outcome.event], return_counts=True)
    first_leaving = np.searchsorted(outcome.value[by_time], times, side="left")
    first_entering = np.searchsorted(outcome.entry[by_entry], times, side="left")
    until_exit = np.searchsorted(times, outcome.value, side="right")
    until_entry = np.searchsorted(times, outcome.entry, side="right")

    def loss(log_hazard: FloatArray) -> tuple[float, FloatArray]:
        shift = log_hazard.max(initial=0.0)
        hazard = np.exp(log_hazard - shift)
        at_risk = _tail_sums(hazard[by_time])[first_leaving] - _tail_sums(hazard[by_entry])[first_entering]
        at_risk = np.maximum(at_risk, np.finfo(np.float64).tiny)
        cumulative = np.concatenate([[0.0], np.cumsum(deaths / at_risk)])
        value = float(deaths @ (np.log(at_risk) + shift) - event @ log_hazard)
        return value, hazard * (cumulative[until_exit] - cumulative[until_entry]) - event

    return loss


def _tail_sums(values: FloatArray) -> FloatArray:
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _least_squares(x: FloatArray, gram: FloatArray, y: FloatArray, strength: float, with_intercept: bool) -> FloatArray:
    from scipy.linalg import cho_factor, cho_solve

    solution: FloatArray = cho_solve(cho_factor(gram + np.diag(_penalty(x, strength, with_intercept))), x.T @ y)
    return solution


def _penalty(x: FloatArray, strength: float, with_intercept: bool) -> FloatArray:
    penalty = np.full(x.shape[1], float(strength))
    if with_intercept:
        penalty[-1] = _JITTER
    return penalty


def _minimise(
    x: FloatArray,
    gram: FloatArray,
    outcome: Outcome,
    strata: IntArray | None,
    strength: float,
    start: FloatArray,
    with_intercept: bool,
) -> FloatArray:
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import minimize

    if outcome.kind == "binary":
        loss = logistic_loss(outcome)
        curvature = max(0.05, float(outcome.value.mean() * (1.0 - outcome.value.mean())))
    else:
        loss = cox_loss(outcome, strata)
        curvature = max(0.05, float(outcome.event.mean()))
    penalty = _penalty(x, strength, with_intercept)
    factor = cholesky(curvature * gram + np.diag(penalty), lower=True)

    def objective(white: FloatArray) -> tuple[float, FloatArray]:
        beta = solve_triangular(factor, white, lower=True, trans="T")
        value, slope = loss(x @ beta)
        gradient = x.T @ slope + penalty * beta
        return value + 0.5 * float(penalty @ beta**2), solve_triangular(factor, gradient, lower=True)

    found = minimize(
        objective,
        factor.T @ start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 100, "ftol": 1e-9, "gtol": 1e-3},
    )
    solution: FloatArray = solve_triangular(factor, found.x, lower=True, trans="T")
    return solution
