"""Gradient-boosted trees on the baseline matrix (XGBoost, histogram method).

Chen and Guestrin, KDD 2016. Logistic loss, squared error, or the stratified Breslow partial likelihood of `linear`,
which unlike XGBoost's own Cox objective knows delayed entry. Missing values go in as NaN. The number of trees comes
from early stopping on the tuning rows; the trees are then grown again on training and tuning rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ican_ml.evaluation.design import Float32Array
from ican_ml.evaluation.linear import cox_loss
from ican_ml.evaluation.outcome import FloatArray, IntArray, Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class BoostingConfig:
    """Size and pace of the ensemble.

    Attributes
    ----------
    trees, survival_trees
        Most trees grown; survival cohorts have fewer events than rows and get fewer.
    depth, survival_depth
        Depth of a tree.
    patience
        Trees without improvement on the tuning rows before stopping; 0 grows all trees.
    max_cells
        Beyond this many rows x features, wide omics blocks enter as principal components.
    """

    trees: int = 500
    survival_trees: int = 250
    depth: int = 5
    survival_depth: int = 4
    learning_rate: float = 0.04
    subsample: float = 0.8
    colsample: float = 0.5
    min_child_weight: float = 5.0
    max_bin: int = 64
    patience: int = 50
    max_cells: float = 6e7

    def __post_init__(self) -> None:
        if min(self.trees, self.survival_trees, self.depth, self.survival_depth) < 1 or self.learning_rate <= 0:
            raise ValueError("trees, depth and learning_rate must be positive")


def fit_boosting(
    matrix: Float32Array,
    outcome: Outcome,
    train_rows: IntArray,
    tuning_rows: IntArray,
    test_rows: IntArray,
    *,
    config: BoostingConfig,
    strata: IntArray | None = None,
    seed: int = 0,
    threads: int = 2,
) -> FloatArray:
    """Scores of the test rows: a probability, a log hazard ratio, or the outcome's mean.

    Parameters
    ----------
    matrix
        float32 [rows, features], NaN = missing.
    outcome
        [rows]; train and tuning rows must be labelled.
    strata
        int64 [rows], survival only: separate baseline hazards.
    """
    import xgboost as xgb

    survival = outcome.kind == "survival"
    settings: dict[str, Any] = {
        "tree_method": "hist",
        "max_depth": config.survival_depth if survival else config.depth,
        "eta": config.learning_rate,
        "subsample": config.subsample,
        "colsample_bytree": config.colsample,
        "min_child_weight": 1.0 if survival else config.min_child_weight,
        "max_bin": config.max_bin,
        "nthread": threads,
        "seed": seed,
        "verbosity": 0,
    }
    if survival:
        settings["base_score"] = 0.0
        settings["disable_default_eval_metric"] = 1
    else:
        settings["objective"] = "binary:logistic" if outcome.kind == "binary" else "reg:squarederror"

    def data(rows: IntArray) -> Any:
        return xgb.QuantileDMatrix(matrix[rows], outcome.value[rows], max_bin=config.max_bin, nthread=threads)

    def grow(rows: IntArray, trees: int, watched: IntArray | None) -> Any:
        train = data(rows)
        extra: dict[str, Any] = {}
        if survival:
            extra["obj"] = _Cox(outcome.take(rows), None if strata is None else strata[rows]).derivatives
        if watched is not None:
            held = xgb.QuantileDMatrix(
                matrix[watched], outcome.value[watched], ref=train, max_bin=config.max_bin, nthread=threads
            )
            extra |= {"evals": [(held, "tuning")], "early_stopping_rounds": config.patience, "verbose_eval": False}
            if survival:
                part = _Cox(outcome.take(watched), None if strata is None else strata[watched])
                extra["custom_metric"] = part.metric
        return xgb.train(settings, train, trees, **extra)

    trees = config.survival_trees if survival else config.trees
    if config.patience and len(tuning_rows) and not (survival and not outcome.event[tuning_rows].any()):
        trees = grow(train_rows, trees, tuning_rows).best_iteration + 1
    model = grow(np.concatenate([train_rows, tuning_rows]), trees, None)
    scores = model.predict(xgb.DMatrix(matrix[test_rows], nthread=threads), output_margin=survival)
    return np.asarray(scores, dtype=np.float64)


class _Cox:
    """Partial likelihood as an XGBoost objective and as an early-stopping metric."""

    def __init__(self, outcome: Outcome, strata: IntArray | None) -> None:
        self._loss = cox_loss(outcome, strata)
        self._event = outcome.event.astype(np.float64)

    def derivatives(self, margin: FloatArray, _: Any) -> tuple[FloatArray, FloatArray]:
        _, gradient = self._loss(np.asarray(margin, dtype=np.float64))
        return gradient, np.maximum(gradient + self._event, 1e-6)

    def metric(self, margin: FloatArray, _: Any) -> tuple[str, float]:
        loss, _gradient = self._loss(np.asarray(margin, dtype=np.float64))
        return "cox", loss / max(1.0, float(self._event.sum()))
