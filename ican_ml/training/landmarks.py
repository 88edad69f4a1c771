"""Landmarks: an episode asked again at later times of its own follow-up; more to train on, never to evaluate by.

In: episodes and their outcomes. Out: rows in the columns of ``episodes.parquet``. An episode whose follow-up ends T
days after its prediction is asked again d days later: how long from then on, for one who is still followed then, with
what the record shows by then? (Landmarking: van Houwelingen, Scand J Stat 34:70, 2007.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ican_ml.evaluation.outcome import Outcome

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64 = npt.NDArray[np.float64]
    Int64 = npt.NDArray[np.int64]


def draw_landmarks(
    episodes: pl.DataFrame, outcomes: Mapping[str, Outcome], *, per_episode: int, horizon: int, seed: int
) -> pl.DataFrame:
    """Ask every episode ``per_episode`` times again, on whole days drawn uniformly.

    Parameters
    ----------
    outcomes
        Of the episodes, by name, at least one of them survival. Survival outcomes count days from ``prediction_time``.
    horizon
        Days; a landmark lies at 0 < d < min(T, ``horizon``), with T the shortest follow-up of the survival outcomes.
    seed
        With it and the ``subject_id``, the draws of a subject; they do not depend on other subjects.

    Returns
    -------
    pl.DataFrame
        By landmark the row of its episode, with ``prediction_time`` d days later, ``<name>_time`` and ``<name>_entry``
        d days less (an entry at least 0), and other outcomes unknown. None of an episode without time of prediction, or
        one of whose survival outcomes is unknown.
    """
    survival = [name for name, outcome in outcomes.items() if outcome.kind == "survival"]
    follow_up = np.min([outcomes[name].value for name in survival], axis=0)
    n_days = np.nan_to_num(np.ceil(np.minimum(follow_up, horizon)) - 1)
    n_days[episodes["prediction_time"].is_null().to_numpy()] = 0
    rows = np.flatnonzero(n_days >= 1)
    draw = subject_draws(episodes["subject_id"].to_numpy(), per_episode, seed)
    days = pl.Series(1 + np.floor(draw[rows] * n_days[rows, None]).astype(np.int64).ravel())
    again = episodes[np.repeat(rows, per_episode)]
    changed = {"prediction_time": again["prediction_time"] + (days * 86_400_000_000).cast(pl.Duration("us"))}
    for name, outcome in outcomes.items():
        if outcome.kind != "survival":
            changed[name] = pl.Series([None] * len(again))
            continue
        changed[f"{name}_time"] = again[f"{name}_time"] - days
        if f"{name}_entry" in again.columns:
            changed[f"{name}_entry"] = (again[f"{name}_entry"] - days).clip(lower_bound=0)
    return again.with_columns(**{name: values.cast(again.schema[name]) for name, values in changed.items()})


def subject_draws(subject: Int64, count: int, seed: int) -> Float64:
    """float64 [rows, count] in [0, 1); a subject's rows, in their order, from a generator of its own."""
    draw = np.empty((len(subject), count))
    order = np.argsort(subject, kind="stable")
    known, begin = np.unique(subject[order], return_index=True)
    for who, rows in zip(known.tolist(), np.split(order, begin[1:]), strict=True):
        draw[rows] = np.random.default_rng([seed, who % 2**64]).random((len(rows), count))
    return draw
