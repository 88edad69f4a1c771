"""What must hold of the rows of ``episodes.parquet``: outcomes that fit their kind, no question asked twice, and a
subject that lies in one part only.

In: the frame (its columns may be absent or of the wrong type) and the number of each of its rows in the file. Out:
violations, noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.checks import Problems, Severity, shown
from ican_ml.cohort.split import PARTS

if TYPE_CHECKING:
    import polars as pl

EPISODES = "episodes.parquet"
Int64 = npt.NDArray[np.int64]


def survival_names(frame: pl.DataFrame) -> list[str]:
    """Names of the survival outcomes: every column ``<name>_event`` makes one."""
    return [column.removesuffix("_event") for column in frame.columns if column.endswith("_event")]


def check_outcomes(frame: pl.DataFrame, row: Int64, problems: Problems, clocks: Mapping[str, Any]) -> None:
    """Types and values of outcome columns, as far as they are there; ``clocks`` is that of cohort.json."""
    import polars as pl

    def fits(name: str, allowed: bool, expected: str, fix: str) -> bool:
        if not allowed:
            got = str(frame.schema[name])
            problems.add("wrong-dtype", EPISODES, column=name, expected=f"{name} {expected}", got=got, fix=fix)
        return allowed

    if "response" in frame.columns:
        fits("response", _is(frame, "response", pl.Boolean), "bool", "convert it, null = unknown")
    if "sensitivity" in frame.columns and fits("sensitivity", _is_number(frame, "sensitivity"), "float", "convert it"):
        wrong = pl.col("sensitivity").cast(pl.Float64).is_finite().not_()
        _check(frame, row, problems, "non-finite", "sensitivity", wrong, "finite")
    numbers = [column for column in frame.columns if frame.schema[column].is_numeric() and column != "prediction_time"]
    for time in [column for column in numbers if column.endswith("_time")]:
        event = f"{time.removesuffix('_time')}_event"
        if event not in frame.columns:
            problems.add(
                "missing-event",
                EPISODES,
                column=event,
                severity="warning",
                expected=f"{event} beside {time}",
                got="no such column",
                fix="add it (true = happened, false = censored), or rename what is no outcome",
            )
    for name in survival_names(frame):
        time, event, entry = (f"{name}_{part}" for part in ("time", "event", "entry"))
        if time not in frame.columns:
            problems.add(
                "missing-column",
                EPISODES,
                column=time,
                expected=f"{time} beside {event}",
                got="no such column",
                fix="add it (days)",
            )
            continue
        right = fits(event, _is(frame, event, pl.Boolean), "bool", "true = happened, false = censored")
        right = right and fits(time, _is_number(frame, time), "float (days)", "convert it to days")
        if entry in frame.columns:
            right = right and fits(entry, _is_number(frame, entry), "float (days)", "convert it to days")
        if right:
            _check_survival(frame, row, problems, name, str(clocks.get(name, "prediction_time")))


def _check_survival(frame: pl.DataFrame, row: Int64, problems: Problems, name: str, clock: str) -> None:
    import polars as pl

    time, event, entry = (f"{name}_{part}" for part in ("time", "event", "entry"))
    days, start = (pl.col(column).cast(pl.Float64) for column in (time, entry))
    _check(frame, row, problems, "non-finite", time, days.is_finite().not_(), "finite")
    _check(frame, row, problems, "negative-time", time, days < 0, f"at least 0 days from {clock}")
    unknown = days.is_not_null() & pl.col(event).is_null()
    _check(frame, row, problems, "time-without-event", time, unknown, f"null where {event} is null")
    _check(
        frame,
        row,
        problems,
        "event-without-time",
        event,
        days.is_null() & pl.col(event).is_not_null(),
        f"null where {time} is null",
    )
    if entry not in frame.columns:
        return
    missing = days.is_not_null() & (start.is_null() | start.is_finite().not_())
    _check(frame, row, problems, "missing-entry", entry, missing, f"finite where {time} is given")
    late = start.is_finite() & (start > days)
    _check(frame, row, problems, "entry-after-exit", entry, late, f"at most {time}, both in days from {clock}")


def check_repeated(frame: pl.DataFrame, row: Int64, problems: Problems) -> None:
    """Rows that differ in nothing but their outcomes ask one question twice."""
    import polars as pl

    if not {"subject_id", "prediction_time", "treatment"} <= set(frame.columns):
        return
    names = survival_names(frame)
    outcomes = {"response", "sensitivity"} | {f"{name}_{part}" for name in names for part in ("time", "event", "entry")}
    key = [column for column in frame.columns if column not in outcomes]
    regimen = pl.col("treatment").list.drop_nulls().list.sort().list.join("\0")
    known = frame.select(key)
    if frame.schema["treatment"] == pl.List(pl.String):
        known = known.with_columns(regimen)
    repeated = known.select(pl.struct(pl.all()).is_first_distinct().not_().alias("repeated"))["repeated"]
    problems.add_where(
        repeated.to_numpy(),
        "duplicate-episodes",
        EPISODES,
        column="",
        numbers=row,
        expected="one row a question",
        got="{} rows that differ from an earlier one at most in their outcomes",
        fix="keep one of each (the mean of replicates), or say in a column what sets them apart",
    )


def check_parts(frame: pl.DataFrame, row: Int64, problems: Problems) -> None:
    """``split`` and ``fold``: known values in every row, one value a subject."""
    import polars as pl

    if "split" in frame.columns and _is(frame, "split", pl.String):
        unknown = frame["split"].drop_nulls().unique().sort().to_list()
        _check(
            frame,
            row,
            problems,
            "unknown-split",
            "split",
            pl.col("split").is_in(PARTS).not_(),
            f"one of {shown(PARTS)}",
            got=shown([repr(name) for name in unknown if name not in PARTS]) + " in {} rows",
        )
    for column, code in (("split", "subject-in-two-splits"), ("fold", "subject-in-two-folds")):
        if column not in frame.columns:
            continue
        if not (_is(frame, "split", pl.String) if column == "split" else _is_whole(frame, column)):
            expected = "text" if column == "split" else "whole numbers"
            problems.add(
                "wrong-dtype",
                EPISODES,
                column=column,
                expected=f"{column} as {expected}",
                got=str(frame.schema[column]),
                fix="convert it",
            )
            continue
        if 0 < frame[column].null_count() < len(frame):
            _check(
                frame,
                row,
                problems,
                "incomplete-split",
                column,
                pl.col(column).is_null(),
                "given in every row or in none",
                severity="warning",
            )
        if frame.schema.get("subject_id") == pl.Int64:
            other = pl.col(column) != pl.col(column).drop_nulls().first().over("subject_id")
            _check(frame, row, problems, code, column, other, "one value for all rows of a subject")


def _check(
    frame: pl.DataFrame,
    row: Int64,
    problems: Problems,
    code: str,
    column: str,
    wrong: pl.Expr,
    expected: str,
    *,
    got: str = "",
    severity: Severity = "error",
) -> None:
    problems.add_where(
        frame.select(wrong.fill_null(False).alias("wrong"))["wrong"].to_numpy(),
        code,
        EPISODES,
        column=column,
        numbers=row,
        severity=severity,
        expected=f"{column} {expected}",
        got=got or "{} other rows",
        fix="repair these rows" if severity == "warning" or got else "repair them or set null",
    )


def _is(frame: pl.DataFrame, column: str, dtype: Any) -> bool:
    import polars as pl

    return frame.schema[column] in (dtype, pl.Null)


def _is_number(frame: pl.DataFrame, column: str) -> bool:
    import polars as pl

    return frame.schema[column].is_numeric() or frame.schema[column] == pl.Null


def _is_whole(frame: pl.DataFrame, column: str) -> bool:
    import polars as pl

    return frame.schema[column].is_integer() or frame.schema[column] == pl.Null
