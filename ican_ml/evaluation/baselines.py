"""The two baselines that every run is measured against, on the same folds and the same information.

"ridge": a penalised linear model (logistic, Cox or least squares; Hoerl and Kennard 1970, Cox 1972), its strength
chosen on the tuning rows; of survival, a model for each indication. "boosting": gradient-boosted trees. A screen of
single drugs gets their usual forms there (see `screen`). After tuning, both are fitted again on training and tuning
rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from ican_ml.evaluation.boosting import BoostingConfig, fit_boosting
from ican_ml.evaluation.design import Design, MatrixConfig, boosting_matrix, ridge_matrix
from ican_ml.evaluation.linear import fit_ridge_path
from ican_ml.evaluation.metrics import auroc, harrell_c, rmse
from ican_ml.evaluation.outcome import BoolArray, FloatArray, IntArray, Outcome
from ican_ml.evaluation.screen import fit_screen_boosting, fit_screen_ridge
from ican_ml.evaluation.weighted import label_codes

BASELINES = ("ridge", "boosting")
_MIN_EVENTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineConfig:
    """Which baselines, and how hard they try.

    Attributes
    ----------
    names
        Of "ridge" and "boosting".
    strengths
        Ridge penalties tried on the tuning rows; the middle one is taken where there are none.
    matrix, boosting
        See `MatrixConfig` and `BoostingConfig`.
    """

    names: tuple[str, ...] = BASELINES
    strengths: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0, 3000.0)
    matrix: MatrixConfig = field(default_factory=MatrixConfig)
    boosting: BoostingConfig = field(default_factory=BoostingConfig)

    def __post_init__(self) -> None:
        unknown = set(self.names) - set(BASELINES)
        if unknown:
            raise ValueError(f"unknown baseline {sorted(unknown)[0]!r}; choose from {', '.join(BASELINES)}")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"ridge strengths must be positive and at least one; got {self.strengths}")


def fit_baselines(
    design: Design,
    outcome: Outcome,
    train_rows: IntArray,
    tuning_rows: IntArray,
    test_rows: IntArray,
    *,
    seed: int = 0,
    threads: int = 2,
    config: BaselineConfig | None = None,
) -> dict[str, FloatArray]:
    """Fit the baselines and score the test rows.

    Parameters
    ----------
    design
        Inputs [rows].
    outcome
        Outcomes [rows]; unlabelled training and tuning rows are left out, test rows need no label.
    train_rows, tuning_rows, test_rows
        int64 row numbers, without common subjects. `tuning_rows` may be empty.
    seed, threads
        Two calls with the same ones give the same scores.

    Returns
    -------
    dict
        name -> float64 [test rows]: a probability (binary), a log hazard ratio (survival), a mean (regression).

    Raises
    ------
    ValueError
        If the training rows hold no signal to learn: one class, no event, no labelled row.
    """
    settings = config or BaselineConfig()
    if len(outcome) != design.n_rows:
        raise ValueError(f"outcome and design must have the same rows; got {len(outcome)} and {design.n_rows}")
    train = train_rows[outcome.labelled[train_rows]]
    tuning = tuning_rows[outcome.labelled[tuning_rows]]
    _check_learnable(outcome.take(train))
    fitted = {}
    with _limited_threads(threads):
        for name in settings.names:
            fit = _fit_ridge if name == "ridge" else _fit_boosting
            fitted[name] = fit(design, outcome, train, tuning, test_rows, settings, seed, threads)
    return fitted


def _fit_ridge(
    design: Design,
    outcome: Outcome,
    train: IntArray,
    tuning: IntArray,
    test: IntArray,
    config: BaselineConfig,
    seed: int,
    threads: int,
) -> FloatArray:
    del threads
    if outcome.kind == "regression" and design.single_drug:
        return fit_screen_ridge(
            design, outcome, train, tuning, test, strengths=config.strengths, matrix=config.matrix, seed=seed
        )
    strata, _ = label_codes(design.groups)
    parts = _parts(design, outcome, train, config.matrix, seed)
    best = config.strengths[len(config.strengths) // 2]
    if len(tuning):
        found = _ridge_scores(parts, outcome, train, tuning, config.strengths)
        quality = [_quality(outcome.take(tuning), scores, strata[tuning]) for scores in found]
        if np.isfinite(quality).any():
            best = config.strengths[int(np.nanargmax(quality))]
    scores: FloatArray = _ridge_scores(parts, outcome, np.concatenate([train, tuning]), test, [best])[0]
    return 1.0 / (1.0 + np.exp(-scores)) if outcome.kind == "binary" else scores


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that one linear model learns from, their matrix, their baseline hazards, and which of them it scores."""

    rows: IntArray
    matrix: FloatArray
    strata: IntArray
    scored: BoolArray


def _parts(design: Design, outcome: Outcome, train: IntArray, config: MatrixConfig, seed: int) -> list[_Part]:
    """One model of all rows; of survival, one for each indication, and one of all rows for those with few events."""
    strata, names = label_codes(design.groups)
    own: list[int] = []
    if outcome.kind == "survival" and len(names) > 1:
        events = np.bincount(strata[train], weights=outcome.event[train], minlength=len(names))
        own = np.flatnonzero(events >= _MIN_EVENTS).tolist()
    parts = []
    for group in own:
        rows = np.flatnonzero(strata == group)
        inside = np.searchsorted(rows, train[strata[train] == group])
        matrix = ridge_matrix(design.take(rows), inside, config, seed, together=True)
        parts.append(_Part(rows, matrix, strata[rows], np.ones(len(rows), dtype=bool)))
    if len(own) < len(names):
        matrix = ridge_matrix(design, train, config, seed)
        parts.append(_Part(np.arange(design.n_rows), matrix, strata, ~np.isin(strata, own)))
    return parts


def _ridge_scores(
    parts: Sequence[_Part], outcome: Outcome, train: IntArray, asked: IntArray, strengths: Sequence[float]
) -> FloatArray:
    """Linear predictors [strengths, asked rows]."""
    found = np.full((len(strengths), len(outcome)), np.nan)
    for part in parts:
        known = np.flatnonzero(np.isin(part.rows, train))
        path = fit_ridge_path(part.matrix[known], outcome.take(part.rows[known]), strengths, strata=part.strata[known])
        found[:, part.rows[part.scored]] = [model.predict(part.matrix[part.scored]) for model in path]
    return found[:, asked]


def _fit_boosting(
    design: Design,
    outcome: Outcome,
    train: IntArray,
    tuning: IntArray,
    test: IntArray,
    config: BaselineConfig,
    seed: int,
    threads: int,
) -> FloatArray:
    if outcome.kind == "regression" and design.single_drug:
        return fit_screen_boosting(
            design,
            outcome,
            train,
            tuning,
            test,
            config=config.boosting,
            matrix=config.matrix,
            seed=seed,
            threads=threads,
        )
    matrix = boosting_matrix(design, train, config.matrix, seed, max_cells=config.boosting.max_cells)
    return fit_boosting(
        matrix,
        outcome,
        train,
        tuning,
        test,
        config=config.boosting,
        strata=label_codes(design.groups)[0],
        seed=seed,
        threads=threads,
    )


def _quality(outcome: Outcome, score: FloatArray, strata: IntArray) -> float:
    """Higher is better; what the strength is chosen by."""
    if outcome.kind == "binary":
        return auroc(outcome.value, score)
    if outcome.kind == "regression":
        return -rmse(outcome.value, score)
    return harrell_c(outcome.value, outcome.event, score, entry=outcome.entry, strata=strata, averaging="pairs")


def _check_learnable(outcome: Outcome) -> None:
    if not len(outcome):
        raise ValueError("baselines: no training row has a label; check the task's outcome columns and the split")
    if outcome.kind == "binary" and len(np.unique(outcome.value)) < 2:
        raise ValueError("baselines: the training rows hold one class only; check the outcome and the split")
    if outcome.kind == "survival" and not outcome.event.any():
        raise ValueError("baselines: the training rows hold no event; check the event column and the split")


def _limited_threads(threads: int) -> AbstractContextManager[object]:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[object] = threadpool_limits(limits=threads)
    return limits
