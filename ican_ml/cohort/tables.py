"""The tables of a cohort: ``episodes.parquet``, ``treatments.parquet``, and the columns of ``records/``.

Out: the episodes of one task (polars, ``prediction_time`` datetime[us], ``treatment`` list of text, [] where null),
drug targets and drug classes. What would break training later is noted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ican_ml.cohort.checks import Problems, Severity, shown
from ican_ml.cohort.episode_checks import EPISODES, check_outcomes, check_repeated
from ican_ml.cohort.files import open_parquet, read_table
from ican_ml.cohort.meds_schema import ZONE_FIX, check_schema, data_files

if TYPE_CHECKING:
    import polars as pl

TREATMENTS = "treatments.parquet"


def read_episodes(root: Path, task: str | None, problems: Problems, clocks: Mapping[str, Any]) -> pl.DataFrame | None:
    """Episodes of ``task`` (``None`` = all), or ``None`` where they are unusable."""
    noted = problems.n_errors
    frame = open_episodes(root, problems)
    if frame is None:
        return None
    check_columns(frame, problems)
    kept = np.arange(len(frame))
    if task is not None:
        kept = _of_task(frame, task, problems)
        frame = frame[kept]
    check_outcomes(frame, kept, problems, clocks)
    check_repeated(frame, kept, problems)
    return None if problems.n_errors > noted else as_episodes(frame)


def open_episodes(root: Path, problems: Problems, *, severity: Severity = "error") -> pl.DataFrame | None:
    """The table as it is stored; ``severity`` says what it means that there is none."""
    if not (root / EPISODES).exists():
        fix = "write it before training: one row a prediction, see the cohort format"
        problems.add("no-episodes", EPISODES, expected="the file", got="none", fix=fix, severity=severity)
        return None
    return read_table(root / EPISODES, EPISODES, problems)


def as_episodes(frame: pl.DataFrame) -> pl.DataFrame:
    """The table, its columns checked, in the types that training reads."""
    import polars as pl

    return frame.with_columns(
        pl.col("prediction_time").cast(pl.Datetime("us")),
        pl.col("treatment").cast(pl.List(pl.String)).fill_null([]),
    )


def check_columns(frame: pl.DataFrame, problems: Problems) -> None:
    """Columns that every cohort has, and their types."""
    import polars as pl

    required = ("subject_id", "prediction_time", "treatment")
    if absent := [name for name in required if name not in frame.columns]:
        problems.add(
            "missing-column",
            EPISODES,
            column=absent[0],
            expected=f"columns {shown(required)}",
            got=f"no {shown(absent)}",
            fix="add them (null = unknown)",
        )

    def refuse(column: str, expected: str, fix: str, code: str = "wrong-dtype", got: str = "") -> None:
        got = got or str(frame.schema[column])
        problems.add(code, EPISODES, column=column, expected=f"{column} {expected}", got=got, fix=fix)

    subject, time, treatment = (frame.schema.get(name) for name in required)
    if subject is not None and subject != pl.Int64:
        refuse("subject_id", "int64", "map the identifiers to whole numbers")
    elif subject is not None:
        problems.add_where(
            frame["subject_id"].is_null().to_numpy(),
            "null-subject",
            EPISODES,
            column="subject_id",
            expected="a subject_id in every row",
            got="{} null",
            fix="remove these rows",
        )
    if isinstance(time, pl.Datetime) and time.time_zone is not None:
        refuse("prediction_time", "without a timezone", ZONE_FIX, "timezone", f"timezone {time.time_zone}")
    elif time is not None and not isinstance(time, pl.Datetime | pl.Date | pl.Null):
        refuse("prediction_time", "timestamp[us]", "parse it to a timestamp")
    elif isinstance(time, pl.Date):
        problems.add(
            "inexact-dtype",
            EPISODES,
            column="prediction_time",
            severity="warning",
            expected="prediction_time timestamp[us]",
            got="Date",
            fix="convert it: a date is read as the midnight at its start, and the rest of the day as unknown",
        )
    if treatment is not None and treatment not in (pl.List(pl.String), pl.List(pl.Null)):
        refuse("treatment", "list<string>", "write a list of drug names, [] = none")
    for column in ("task", "indication"):
        if column in frame.columns and frame.schema[column] not in (pl.String, pl.Null):
            refuse(column, "as text", "convert it")


def read_treatments(root: Path, problems: Problems) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Targets and ATC class of the drugs; both empty without the file."""
    import polars as pl

    path = root / TREATMENTS
    frame = read_table(path, TREATMENTS, problems) if path.exists() else None
    if frame is None:
        return {}, {}
    noted = problems.n_errors
    types = {"drug": (pl.String,), "targets": (pl.List(pl.String), pl.List(pl.Null)), "atc": (pl.String, pl.Null)}
    for name, allowed in types.items():
        found = frame.schema.get(name)
        if found not in allowed and (found is not None or name != "atc"):
            code, got = ("missing-column", "no such column") if found is None else ("wrong-dtype", str(found))
            expected = f"{name} of type {allowed[0]}"
            problems.add(code, TREATMENTS, column=name, expected=expected, got=got, fix="see the cohort format")
    if problems.n_errors > noted:
        return {}, {}
    repeated = ~frame["drug"].is_first_distinct()
    problems.add_where(
        repeated.to_numpy(),
        "duplicate-drug",
        TREATMENTS,
        column="drug",
        expected="one row a drug",
        got=f"several for {shown(sorted({str(drug) for drug in frame['drug'].filter(repeated)}))}",
        fix="merge them",
    )
    drugs = frame["drug"].to_list()
    targets = {
        drug: tuple(dict.fromkeys(gene for gene in genes or () if gene))
        for drug, genes in zip(drugs, frame["targets"].to_list(), strict=True)
    }
    atc = frame["atc"].to_list() if "atc" in frame.columns else [None] * len(drugs)
    return targets, {drug: code for drug, code in zip(drugs, atc, strict=True) if code}


def check_records(root: Path, problems: Problems) -> bool:
    """Whether there are records; notes files whose columns cannot be read as MEDS."""
    if not (root / "records").is_dir():
        return False
    for path, file in data_files(root / "records", "records/", problems):
        stored = open_parquet(path, file, problems)
        if stored is not None:
            check_schema("DataSchema", stored.schema_arrow, file, problems)
    return True


def _of_task(frame: pl.DataFrame, task: str, problems: Problems) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of a task."""
    present: list[str] = []
    if "task" in frame.columns:
        present = sorted(str(name) for name in frame["task"].drop_nulls().unique())
    if task in present:
        return np.flatnonzero(frame["task"].cast(str).eq_missing(task).to_numpy())
    problems.add(
        "unknown-task",
        EPISODES,
        column="task",
        expected=f"episodes of task {task!r}",
        got=f"tasks {shown(present)}",
        fix="choose one of these" if present else "leave the task out",
    )
    return np.zeros(0, np.int64)
