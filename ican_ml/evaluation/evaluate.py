"""One task's metrics, overall and per indication, with intervals by subject.

In: an `Outcome` and a prediction per row. Out: `TaskMetrics`, which turns into plain dictionaries for `metrics.json`
and is what tables and report print. Rows without a label are left out; small groups are not reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ican_ml.evaluation.bootstrap import Interval, intervals
from ican_ml.evaluation.metrics import CALIBRATION_BINS, treatment_groups
from ican_ml.evaluation.outcome import FloatArray, IntArray, Kind, Outcome
from ican_ml.evaluation.survival import ipcw_brier_losses, survival_calibration_error
from ican_ml.evaluation.weighted import (
    WeightedMetric,
    weighted_auprc,
    weighted_auroc,
    weighted_calibration_error,
    weighted_group_pearson,
    weighted_harrell_c,
    weighted_mean,
    weighted_pearson,
    weighted_rmse,
)

PRIMARY_METRIC: dict[Kind, str] = {
    "binary": "auroc",
    "survival": "c_index",
    "regression": "per_treatment_pearson",
}
MIN_SUBJECTS = 10

_CENTRED = frozenset({"calibration_error"})


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupMetrics:
    """Metrics of one set of rows: its size and name -> interval."""

    rows: int
    subjects: int
    events: int
    metrics: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary; undefined numbers become None."""
        return {
            "rows": self.rows,
            "subjects": self.subjects,
            "events": self.events,
            "metrics": {name: _plain(value) for name, value in self.metrics.items()},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMetrics:
    """Metrics of one model on one task.

    Attributes
    ----------
    kind
        Of the outcome.
    overall
        All labelled rows. Survival: `c_index` compares within an indication and averages indications equally,
        `c_index_by_pairs` weighs them by their comparable pairs.
    by_indication
        indication -> the same on its rows, for indications of at least `MIN_SUBJECTS` subjects.
    """

    kind: Kind
    overall: GroupMetrics
    by_indication: Mapping[str, GroupMetrics] = field(default_factory=dict)

    @property
    def primary(self) -> Interval:
        """The metric that the task is judged by: AUROC, c-index or per-treatment r (pooled r without treatments)."""
        metrics = self.overall.metrics
        return metrics.get(PRIMARY_METRIC[self.kind]) or metrics["pearson"]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, fit for JSON."""
        return {
            "kind": self.kind,
            "overall": self.overall.to_dict(),
            "by_indication": {name: group.to_dict() for name, group in self.by_indication.items()},
        }


def evaluate_task(
    outcome: Outcome,
    prediction: ArrayLike,
    *,
    subject_id: ArrayLike,
    indication: Sequence[str] | NDArray[np.str_] | None = None,
    treatment: Sequence[str] | NDArray[np.str_] | None = None,
    survival_at: Mapping[float, ArrayLike] | None = None,
    replicates: int = 500,
    seed: int = 0,
) -> TaskMetrics:
    """Evaluate one model on one task.

    Parameters
    ----------
    outcome
        [rows].
    prediction
        [rows] a probability (binary), a risk score, higher = worse (survival), or a value (regression).
    subject_id
        [rows] whose rows are resampled together.
    indication
        [rows]; None: one indication.
    treatment
        [rows] label of the regimen, for per-treatment correlation (regression).
    survival_at
        horizon in days -> [rows] predicted probability of being event-free by then: adds Brier score and calibration.
    replicates, seed
        Of the bootstrap; 0 replicates give estimates alone.

    Raises
    ------
    ValueError
        If lengths differ, or a labelled row's prediction is not finite or (binary) not a probability.
    """
    predicted = np.asarray(prediction, dtype=np.float64)
    columns: dict[str, NDArray[Any]] = {
        "subject": np.unique(np.asarray(subject_id), return_inverse=True)[1],
        "indication": np.zeros(len(outcome), dtype="<U1") if indication is None else np.asarray(indication).astype(str),
        "treatment": np.zeros(len(outcome), dtype="<U1") if treatment is None else np.asarray(treatment).astype(str),
    } | {f"{horizon:g}": np.asarray(s, dtype=np.float64) for horizon, s in (survival_at or {}).items()}
    for name, column in [("prediction", predicted), *columns.items()]:
        if column.shape != (len(outcome),):
            raise ValueError(f"{name} must have one value per row; expected {len(outcome)} rows, got {column.shape}")
    keep = np.flatnonzero(outcome.labelled)
    outcome, predicted = outcome.take(keep), predicted[keep]
    columns = {name: column[keep] for name, column in columns.items()}
    _check_prediction(outcome, predicted)
    task = _Rows(
        outcome=outcome,
        prediction=predicted,
        subject=columns["subject"],
        indication=columns["indication"],
        treatment=None if treatment is None else columns["treatment"],
        survival_at={horizon: columns[f"{horizon:g}"] for horizon in survival_at or {}},
    )
    by_indication = {}
    for name in np.unique(task.indication) if indication is not None else ():
        part = task.take(np.flatnonzero(task.indication == name))
        if len(np.unique(part.subject)) >= MIN_SUBJECTS:
            by_indication[str(name)] = _evaluate(part, replicates, seed)
    return TaskMetrics(kind=outcome.kind, overall=_evaluate(task, replicates, seed), by_indication=by_indication)


def mean_and_sd(folds: Sequence[TaskMetrics]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation over folds of every overall metric; sd is NaN for one fold."""
    names = list(dict.fromkeys(name for fold in folds for name in fold.overall.metrics))
    found = {}
    for name in names:
        values = np.array([fold.overall.metrics[name].estimate for fold in folds if name in fold.overall.metrics])
        values = values[np.isfinite(values)]
        mean = float(values.mean()) if len(values) else float("nan")
        found[name] = (mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan"))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    outcome: Outcome
    prediction: FloatArray
    subject: IntArray
    indication: NDArray[np.str_]
    treatment: NDArray[np.str_] | None
    survival_at: Mapping[float, FloatArray]

    def take(self, rows: IntArray) -> _Rows:
        return _Rows(
            outcome=self.outcome.take(rows),
            prediction=self.prediction[rows],
            subject=self.subject[rows],
            indication=self.indication[rows],
            treatment=None if self.treatment is None else self.treatment[rows],
            survival_at={horizon: values[rows] for horizon, values in self.survival_at.items()},
        )


def _evaluate(task: _Rows, replicates: int, seed: int) -> GroupMetrics:
    outcome = task.outcome
    found = intervals(_metrics(task), task.subject, replicates=replicates, seed=seed, centred=_CENTRED)
    for horizon, survival in task.survival_at.items():
        error = survival_calibration_error(outcome, survival, horizon) if len(outcome) else float("nan")
        found[f"calibration_error_{horizon:g}d"] = Interval(error, float("nan"), float("nan"))
    happened = outcome.value == 1 if outcome.kind == "binary" else outcome.event
    return GroupMetrics(
        rows=len(outcome), subjects=len(np.unique(task.subject)), events=int(happened.sum()), metrics=found
    )


def _metrics(task: _Rows) -> dict[str, WeightedMetric]:
    outcome, score = task.outcome, task.prediction
    y = outcome.value
    if outcome.kind == "binary":
        return {
            "auroc": weighted_auroc(y, score),
            "auprc": weighted_auprc(y, score),
            "brier": weighted_mean((y - score) ** 2),
            "calibration_error": weighted_calibration_error(y, score, CALIBRATION_BINS),
        }
    if outcome.kind == "survival":
        found = {
            "c_index": weighted_harrell_c(y, outcome.event, score, entry=outcome.entry, strata=task.indication),
            "c_index_by_pairs": weighted_harrell_c(
                y, outcome.event, score, entry=outcome.entry, strata=task.indication, averaging="pairs"
            ),
        }
        for horizon, survival in task.survival_at.items():
            found[f"brier_{horizon:g}d"] = weighted_mean(ipcw_brier_losses(outcome, survival, horizon))
        return found
    found = {"rmse": weighted_rmse(y, score), "pearson": weighted_pearson(y, score)}
    if task.treatment is not None:
        found["per_treatment_pearson"] = weighted_group_pearson(y, score, treatment_groups(task.treatment))
    return found


def _check_prediction(outcome: Outcome, prediction: FloatArray) -> None:
    wrong = ~np.isfinite(prediction)
    if wrong.any():
        raise ValueError(
            f"predictions must be finite; {int(wrong.sum())} labelled rows are not, the first is labelled row "
            f"{int(np.flatnonzero(wrong)[0])}"
        )
    if outcome.kind == "binary" and ((prediction < 0) | (prediction > 1)).any():
        raise ValueError(
            "binary predictions are probabilities between 0 and 1; "
            f"got values from {prediction.min():g} to {prediction.max():g}: apply the sigmoid to logits first"
        )


def _plain(value: Interval) -> dict[str, float | None]:
    return {key: number if np.isfinite(number) else None for key, number in value._asdict().items()}
