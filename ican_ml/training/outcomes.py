"""Outcomes of episodes as arrays beside the patients: what the loss needs, nothing fitted.

Shapes: N patients, R regimens (slots), K survival intervals. Discrete-time survival (Singer and Willett 1993): the
episode is at risk in every interval that it entered and completed, and in the one in which its event falls; a censored
interval is not counted. Delayed entry: intervals that end at or before entry are not at risk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ican_ml.evaluation.outcome import Outcome
from ican_ml.inputs.schema import Task

if TYPE_CHECKING:
    import polars as pl

    from ican_ml.inputs.assemble import CohortStates

_LITTLE = 1e-6
Float32 = npt.NDArray[np.float32]
Arrays = dict[str, Float32]


def read_outcomes(episodes: pl.DataFrame, tasks: Mapping[str, str]) -> dict[str, Outcome]:
    """Outcome columns of each task (name to kind).

    Raises
    ------
    ValueError
        If a column is missing.
    """
    return {name: _read_outcome(episodes, name, kind) for name, kind in tasks.items()}


def _read_outcome(episodes: pl.DataFrame, name: str, kind: str) -> Outcome:
    wanted = [f"{name}_time", f"{name}_event"] if kind == "survival" else [name]
    missing = [column for column in wanted if column not in episodes.columns]
    if missing:
        raise ValueError(
            f"task {name!r} ({kind}): expected column(s) {missing} in episodes.parquet; "
            f"it has {sorted(episodes.columns)}"
        )

    def column(label: str) -> npt.NDArray[np.float64]:
        return episodes[label].cast(float).to_numpy()

    if kind == "binary":
        return Outcome.binary(column(name))
    if kind == "regression":
        return Outcome.regression(column(name))
    time, event = column(f"{name}_time"), column(f"{name}_event")
    entry = column(f"{name}_entry") if f"{name}_entry" in episodes.columns else None
    return Outcome.survival(np.where(np.isnan(event), np.nan, time), np.nan_to_num(event) > 0, entry)


def loss_arrays(task: Task, outcome: Outcome, states: CohortStates) -> Arrays:
    """Arrays ``[N, R(, K)]`` for the loss: ``<task>_target`` and ``<task>_weight`` (0 = no outcome)."""
    if task.kind == "survival":
        target, weight = _survival_arrays(task, outcome)
    else:
        weight = outcome.labelled.astype(np.float32)
        target = np.nan_to_num(outcome.value).astype(np.float32)
    shape = (len(states.subject_id), int(states.slot.max(initial=0)) + 1, *target.shape[1:])
    arrays = {}
    for name, values in (("target", target), ("weight", weight)):
        placed = np.zeros(shape, np.float32)
        placed[states.patient, states.slot] = values
        arrays[f"{task.name}_{name}"] = placed
    return arrays


def _survival_arrays(task: Task, outcome: Outcome) -> tuple[Float32, Float32]:
    edges = np.asarray(task.edges)
    time = np.nan_to_num(outcome.value)[:, None]
    interval = np.arange(len(edges))
    target = outcome.event[:, None] & (interval == np.searchsorted(edges, time, side="left"))
    completed = edges <= time
    at_risk = (completed | target) & (edges > outcome.entry[:, None]) & outcome.labelled[:, None]
    return (target & at_risk).astype(np.float32), at_risk.astype(np.float32)


def log_odds(target: Float32, weight: Float32) -> Float32:
    """What a model of all starts from: the log odds of the event (by interval), ``[rows(, K)]`` -> ``[(K)]``."""
    share = (weight * target).sum(0) / np.maximum(weight.sum(0), _LITTLE)
    odds: Float32 = np.log(share + _LITTLE) - np.log(1 - share + _LITTLE)
    return odds
