"""Lines of therapy that a record holds beside the cohort's own episodes: more to train on, never to evaluate by.

In: the events that start a drug. Out: one row a line, in the columns of ``episodes.parquet``. A line begins with a drug
that starts more than ``window`` days after the line before began; its regimen is every drug that starts within them.
Its time of prediction is the day before, so that the record does not show what is asked for. The outcome is whether
neither another line nor death followed within ``horizon`` days: unknown where the record ends before (a death that was
not recorded, a table cut short), and so worth using only where a cohort records treatments completely. Beside it the
days until either of them, censored where the record ends.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ican_ml.cohort.asof import Int64

if TYPE_CHECKING:
    from ican_ml.records.store import RecordStore

_DAY = 86_400_000_000


def therapy_lines(
    store: RecordStore, *, start: str, window: int, horizon: int, outcome: str, time: str
) -> pl.DataFrame:
    """Find the lines of every subject.

    Parameters
    ----------
    start
        Regular expression of the codes that start a drug; its first group is the drug's name.
    window, horizon
        Days.
    outcome
        Name of the column for the outcome.
    time
        Stem of the columns ``<time>_time`` and ``<time>_event``.

    Returns
    -------
    pl.DataFrame
        ``subject_id``, ``prediction_time``, ``treatment`` (names, ascending), ``line`` (from 1) the outcome (null =
        unknown), and the time to it, by subject and time.
    """
    pattern = re.compile(start)
    found = [pattern.fullmatch(code) for code in store.codes]
    drug_of = [match.group(1) if match else "" for match in found]
    moment = store.time.view(np.int64)
    is_start = np.array([match is not None for match in found], bool)[store.code]
    at = np.flatnonzero(is_start & ~np.isnat(store.time))
    subject = np.searchsorted(store.offsets, at, side="right") - 1
    line = _lines(subject, moment[at], window * _DAY)
    first = np.flatnonzero(np.append(True, np.diff(line) != 0)[: len(line)])
    began, whose = moment[at[first]], subject[first]
    followed = np.append(np.where(whose[1:] == whose[:-1], began[1:], np.iinfo(np.int64).max), np.iinfo(np.int64).max)
    death = store.death.view(np.int64)[whose]
    followed = np.minimum(followed[: len(first)], np.where(np.isnat(store.death[whose]), followed[: len(first)], death))
    seen_until = moment[store.offsets[whose + 1] - 1]
    soon = followed - began <= horizon * _DAY
    is_followed = followed < np.iinfo(np.int64).max
    late = is_followed | (seen_until - began > horizon * _DAY)
    frame = pl.DataFrame({"line": line, "drug": [drug_of[code] for code in store.code[at].tolist()]})
    regimens = frame.group_by("line", maintain_order=True).agg(pl.col("drug").unique().sort())
    number = np.arange(len(first)) - np.searchsorted(whose, whose) + 1
    return pl.DataFrame(
        {
            "subject_id": store.subject_id[whose],
            "prediction_time": (began - _DAY).view("datetime64[us]"),
            "treatment": regimens["drug"],
            "line": number,
            outcome: pl.Series(np.where(soon, 0.0, np.where(late, 1.0, np.nan))).fill_nan(None),
            f"{time}_time": np.maximum((np.where(is_followed, followed, seen_until) - began) / _DAY, 1.0),
            f"{time}_event": is_followed,
        }
    )


def beside(lines: pl.DataFrame, episodes: pl.DataFrame, window: int) -> pl.DataFrame:
    """The lines that begin further than ``window`` days from every episode of their subject, with its indication."""
    own = episodes.select("subject_id", own="prediction_time").sort("own")
    near = lines.sort("prediction_time").join_asof(
        own,
        left_on="prediction_time",
        right_on="own",
        by="subject_id",
        strategy="nearest",
        check_sortedness=False,
    )
    distance = (pl.col("prediction_time") - pl.col("own")).abs()
    kept = near.filter((distance > pl.duration(days=window)).fill_null(True)).drop("own")
    if "indication" in episodes.columns:
        known = episodes.group_by("subject_id").agg(pl.col("indication").drop_nulls().mode().min())
        kept = kept.join(known, on="subject_id", how="left")
    kept = kept.sort("subject_id", "prediction_time")
    shared = [name for name in kept.columns if name in episodes.columns]
    return kept.select(pl.col(name).cast(episodes.schema[name]) for name in shared)


def _lines(subject: Int64, moment: Int64, window: int) -> Int64:
    """int64 [starts]: number of the line that each belongs to, over all subjects."""
    line, number, begun, whose = np.empty(len(subject), np.int64), -1, 0, -1
    for i, (who, when) in enumerate(zip(subject.tolist(), moment.tolist(), strict=True)):
        if who != whose or when - begun > window:
            number, begun, whose = number + 1, when, who
        line[i] = number
    return line
