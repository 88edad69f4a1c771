"""Prediction sets of binary answers: which answers a model cannot rule out, at a stated coverage (split conformal).

In: probabilities and outcomes of episodes that the model was not fitted on. Out: one number, the *quantile* of the
nonconformity 1 - p(true answer); an answer whose nonconformity is at most that belongs to the set. Where the episodes
to come are exchangeable with those, the set holds the truth with the stated probability or more, whatever the model
(Vovk, Gammerman, Shafer 2005; Angelopoulos and Bates 2021, arXiv:2107.07511). A set of both answers, or of neither,
leaves the question undecided.

Episodes of one subject are alike, so it is subjects that are exchangeable, not episodes. The bound is then no longer
exact: coverage is right as subjects become many, and what it varies with is their number, not that of the episodes.
Held-out coverage is therefore told with an interval by subject. Nor is it a promise for each indication: the report
shows those apart.

A set is about one patient. About all who get the same probability there is an *interval*: how closely the tuning
subjects tell the share of them in whom it happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ican_ml.evaluation.bootstrap import intervals
from ican_ml.evaluation.evaluate import MIN_SUBJECTS, GroupMetrics
from ican_ml.evaluation.outcome import BoolArray, FloatArray
from ican_ml.evaluation.table import Cell
from ican_ml.evaluation.weighted import weighted_mean
from ican_ml.inputs.answer import sigmoid

METHOD = "Platt scaling, split conformal sets"
_Z95, _SMALLEST = 1.959964, 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What the tuning subjects say about the probabilities of one binary task: aggregates alone.

    Attributes
    ----------
    slope, intercept
        Of the calibrated logit in the network's own. The exported network applies them; they are told, not to be used
        again.
    coverage
        The share of episodes whose set should hold the truth.
    quantile
        Largest nonconformity of an answer in the set, 0 to 1.
    n_episodes, n_subjects
        That they come from.
    variance
        How closely they tell the calibration: variance of the log of the slope, its covariance with the intercept,
        variance of that; None in bundles of before.
    """

    task: str
    slope: float
    intercept: float
    coverage: float
    quantile: float
    n_episodes: int
    n_subjects: int
    method: str = METHOD
    variance: tuple[float, float, float] | None = None

    @property
    def answers(self) -> tuple[str, str]:
        """What it is called when the outcome is there, and when not."""
        return ("responds", "does not respond") if self.task == "response" else (self.task, f"no {self.task}")

    def members(self, probability: FloatArray) -> BoolArray:
        """Bool [..., 2]: is the positive, is the negative answer in the set of a calibrated probability [...]."""
        return np.stack([1 - probability <= self.quantile, probability <= self.quantile], axis=-1)

    def answer_set(self, probability: float) -> tuple[str, ...]:
        """The answers in the set: one, or both or neither where undecided."""
        inside = self.members(np.asarray(probability)).tolist()
        return tuple(answer for answer, kept in zip(self.answers, inside, strict=True) if kept)

    def interval(self, probability: float) -> tuple[float, float] | None:
        """95% interval of the share in whom it happens, among all who get this calibrated probability."""
        if self.variance is None:
            return None
        of_slope, both, of_intercept = self.variance
        inside = min(max(probability, _SMALLEST), 1 - _SMALLEST)
        logit = math.log(inside / (1 - inside))
        moved = logit - self.intercept  # by the log of the slope
        reach = _Z95 * math.sqrt(max(moved**2 * of_slope + 2 * moved * both + of_intercept, 0.0))
        low, high = sigmoid(np.array([logit - reach, logit + reach])).tolist()
        return min(low, probability), max(high, probability)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary."""
        return asdict(self)


def calibrations(found: Iterable[Mapping[str, Any]]) -> dict[str, Calibration]:
    """By task: what :meth:`Calibration.to_dict` wrote."""
    return {
        entry["task"]: Calibration(**{**entry, "variance": tuple(entry["variance"]) if entry.get("variance") else None})
        for entry in found
    }


def conformal_quantile(nonconformity: FloatArray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of n scores in [0, 1]; 1, which rules out nothing, where n is too small.

    Raises
    ------
    ValueError
        If ``coverage`` is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: expected a share between 0 and 1, got {coverage}")
    n = len(nonconformity)
    rank = math.ceil(round((n + 1) * coverage, 9))
    return float(np.partition(nonconformity, rank - 1)[rank - 1]) if rank <= n else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SetMetrics:
    """How the sets did on held-out episodes.

    Attributes
    ----------
    coverage
        That was asked for.
    overall, by_indication
        `coverage` (the set holds the truth), `mean_size` (answers a set), and the shares of sets with `both` answers
        and with `neither`.
    """

    coverage: float
    overall: GroupMetrics
    by_indication: Mapping[str, GroupMetrics] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Cell]]:
        """A table: all episodes, then by indication."""
        return [
            {
                "Episodes": name,
                "Subjects": group.subjects,
                "Holds the truth": group.metrics["coverage"],
                "Answers a set": group.metrics["mean_size"],
                "Both": group.metrics["both"].estimate,
                "Neither": group.metrics["neither"].estimate,
            }
            for name, group in {"all": self.overall, **self.by_indication}.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, fit for JSON."""
        return {
            "asked_coverage": self.coverage,
            "overall": self.overall.to_dict(),
            "by_indication": {name: group.to_dict() for name, group in self.by_indication.items()},
        }


def evaluate_sets(
    value: FloatArray,
    members: BoolArray,
    *,
    coverage: float,
    subject_id: np.ndarray[Any, Any],
    indication: Sequence[str] | np.ndarray[Any, Any] | None = None,
    replicates: int = 500,
    seed: int = 0,
) -> SetMetrics:
    """Coverage and size of the sets of some episodes; those without an outcome are left out.

    Parameters
    ----------
    value
        [rows] 1, 0 or NaN.
    members
        [rows, 2], see :meth:`Calibration.members`.
    coverage
        That was asked for.
    subject_id
        [rows] whose rows are resampled together.
    indication
        [rows]; those of at least `MIN_SUBJECTS` subjects are told apart.
    replicates, seed
        Of the bootstrap.
    """
    known = np.flatnonzero(np.isfinite(value))
    positive, members = value[known] == 1, members[known]
    subject = np.unique(np.asarray(subject_id)[known], return_inverse=True)[1].astype(np.int64)
    size = members.sum(axis=1).astype(np.float64)
    columns = {
        "coverage": np.where(positive, members[:, 0], members[:, 1]).astype(np.float64),
        "mean_size": size,
        "both": (size == 2).astype(np.float64),
        "neither": (size == 0).astype(np.float64),
    }

    def group(rows: np.ndarray[Any, Any]) -> GroupMetrics:
        metrics = {name: weighted_mean(column[rows]) for name, column in columns.items()}
        return GroupMetrics(
            rows=int(rows.sum()),
            subjects=len(np.unique(subject[rows])),
            events=int(positive[rows].sum()),
            metrics=intervals(metrics, subject[rows], replicates=replicates, seed=seed),
        )

    found = {}
    if indication is not None:
        labels = np.asarray(indication)[known].astype(str)
        for name in np.unique(labels):
            if len(np.unique(subject[labels == name])) >= MIN_SUBJECTS:
                found[str(name)] = group(labels == name)
    return SetMetrics(coverage=coverage, overall=group(np.ones(len(known), bool)), by_indication=found)
