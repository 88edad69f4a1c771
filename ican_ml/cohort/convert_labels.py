"""Turns MEDS labels (``meds.LabelSchema`` 0.4) into the episodes of a cohort, one row a label.

In: a Parquet file, or a folder of them, with subject_id, prediction_time and one column of values; and the cohort, or
bare MEDS dataset, whose subjects they are of. Out: ``episodes.parquet`` with ``task``, no treatment, and the outcome:

- ``boolean_value`` is ``response`` (binary), ``float_value`` is ``sensitivity`` (regression);
- ``integer_value`` is ``sensitivity`` too, a count or a rank, since whole numbers have an order;
- ``categorical_value`` has none, and a cohort has no outcome of several classes: a category is named that counts as
  true, and the outcome is ``response``. The same can be asked of whole numbers.

``split`` is that of ``metadata/subject_splits.parquet``, or of the folder (train, tuning, held_out) that a file is in.
ACES writes the value columns that it does not use too, all null, so a column's type counts only where it has values.
Labels that make no episode are counted by reason; a label's value is never shown.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from ican_ml.cohort.accounting import Accounting, Reason
from ican_ml.cohort.checks import CohortError, Problems
from ican_ml.cohort.cohort import FORMAT, read_meta
from ican_ml.cohort.episode_checks import EPISODES
from ican_ml.cohort.files import read_object, read_table
from ican_ml.cohort.meds_schema import ZONE_FIX
from ican_ml.cohort.split import PARTS
from ican_ml.cohort.tables import TREATMENTS

ACCOUNT = "conversion_labels.json"
TABLE = "labels"
Progress = Callable[[str, int, int], None]
_VALUES = {
    "boolean_value": pl.Boolean(),
    "integer_value": pl.Int64(),
    "float_value": pl.Float64(),
    "categorical_value": pl.String(),
}


def convert_labels(
    labels: Path,
    cohort: Path,
    *,
    out: Path | None = None,
    task: str | None = None,
    positive: str | None = None,
    progress: Progress | None = None,
) -> tuple[pl.DataFrame, Accounting]:
    """Write the episodes that labels ask for, and ``conversion_labels.json`` beside them.

    Parameters
    ----------
    labels
        File or folder.
    cohort
        Folder of a cohort, or with ``out`` of a MEDS dataset.
    out
        Cohort to make: a copy of the omics, records and treatments of ``cohort``, with these episodes. ``None`` adds
        the episodes to ``cohort``, which must have none.
    task
        Name of the task; ``None`` is that of the file or folder.
    positive
        Category, or whole number, that is true; every other is false.
    progress
        Called as (file, files done, files in all).

    Returns
    -------
    episodes : DataFrame
    accounting : Accounting
        Of the table "labels".

    Raises
    ------
    ValueError
        If the labels or the cohort cannot be used; names no subject.
    """
    tell = progress or (lambda file, done, total: None)
    records = _check_places(cohort, out)
    accounting = Accounting()
    table = _outcomes(_read_labels(labels, tell), positive)
    accounting.read(TABLE, len(table))
    table = _accounted(table, _subjects(records, tell), _splits(records), accounting)
    accounting.check()
    if not len(table):
        raise CohortError(f"labels: expected some that make episodes, got none\n{accounting.table()}")
    episodes = _episodes(table, task or labels.resolve().name.removesuffix(".parquet"))
    if out is None:
        _write(episodes, accounting, cohort)
    else:
        _write_cohort(episodes, accounting, cohort, records, out)
    return episodes, accounting


def _check_places(cohort: Path, out: Path | None) -> Path:
    """The folder of the records; refuses what cannot be read or written."""
    bare = (cohort / "data").is_dir() and not (cohort / "cohort.json").exists()
    records = cohort if bare else cohort / "records"
    if not (records / "data").is_dir():
        raise CohortError(f"expected a cohort with records, or a MEDS dataset, got neither at {cohort}: check the path")
    if out is None and bare:
        raise CohortError("expected a cohort, got a MEDS dataset: give a folder to make one in (--out)")
    if out is None and (cohort / EPISODES).exists():
        raise CohortError(f"expected a cohort without {EPISODES}, got one: give a folder for another cohort (--out)")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CohortError(f"expected a new or empty folder, got {out.name!r} with contents: choose another")
    if out is not None and out.resolve().is_relative_to(cohort.resolve()):
        raise CohortError("expected a new folder outside the cohort, got one inside: choose another")
    return records


def _read_labels(labels: Path, tell: Progress) -> pl.DataFrame:
    """All labels: subject_id, time, the four values, and the split of the folder."""
    paths = [labels] if labels.is_file() else sorted(labels.rglob("*.parquet"))
    if not paths:
        raise CohortError(f"expected a Parquet file of labels, or a folder of them, got none at {labels}")
    frames = []
    for done, path in enumerate(paths):
        parts = () if path == labels else path.relative_to(labels).parts[:-1]
        name = "/".join((*parts, path.name))
        tell(name, done, len(paths))
        split = next((part for part in parts if part in PARTS), None)
        frame = _opened(path, name)
        frames.append(
            frame.select(
                _column(frame, "subject_id", pl.Int64(), name),
                _column(frame, "prediction_time", pl.Datetime("us"), name),
                *(_column(frame, value, dtype, name) for value, dtype in _VALUES.items()),
                pl.lit(split, pl.String).alias("folder"),
            )
        )
    return pl.concat(frames)


def _opened(path: Path, name: str) -> pl.DataFrame:
    problems = Problems()
    frame = read_table(path, name, problems)
    problems.raise_if_any("labels")
    assert frame is not None
    return frame


def _column(frame: pl.DataFrame, column: str, dtype: pl.DataType, file: str) -> pl.Expr:
    """The column in its type, null where it is not there; what has no values is of any type."""
    if column not in frame.columns:
        if column not in _VALUES:
            raise CohortError(f"{file}: expected the MEDS columns subject_id, prediction_time, got no {column}")
        return pl.lit(None, dtype).alias(column)
    found = frame.schema[column]
    if frame[column].null_count() == len(frame):
        return pl.lit(None, dtype).alias(column)
    if isinstance(found, pl.Datetime) and found.time_zone is not None:
        raise CohortError(f"{file}: expected {column} without a timezone, got {found.time_zone}: {ZONE_FIX}")
    if dtype.is_integer():
        fits = found.is_integer() and found != pl.UInt64
    elif dtype.is_float():
        fits = found.is_numeric()
    elif dtype.is_temporal():
        fits = isinstance(found, pl.Datetime | pl.Date)
    else:
        fits = found == dtype
    if not fits:
        raise CohortError(f"{file}: expected {column} of type {dtype}, got {found}: convert it")
    return pl.col(column).cast(dtype)


def _outcomes(labels: pl.DataFrame, positive: str | None) -> pl.DataFrame:
    """subject_id, prediction_time, folder, and ``response`` or ``sensitivity``."""
    used = [name for name in _VALUES if labels[name].null_count() < len(labels)]
    if len(used) != 1:
        got = " and ".join(used) or "none"
        raise CohortError(f"labels: expected values in one column, got {got}: keep the column of one task")
    value = pl.col(used[0])
    if positive is not None:
        if used[0] not in ("integer_value", "categorical_value"):
            raise CohortError(f"--positive: expected integer or categorical labels, got {used[0]}: leave it out")
        value = value.cast(pl.String) == positive
        if not labels.select(value.any())[used[0]].item():
            raise CohortError(f"--positive: expected a value of {used[0]}, got {positive!r}, which no label has")
    elif used[0] == "categorical_value":
        raise CohortError("labels: expected one category that counts as true, got none: name it (--positive)")
    binary = positive is not None or used[0] == "boolean_value"
    outcome = value.alias("response") if binary else value.cast(pl.Float64).alias("sensitivity")
    return labels.select("subject_id", "prediction_time", "folder", outcome)


def _subjects(records: Path, tell: Progress) -> pl.DataFrame:
    """Subjects of the records, each once."""
    paths = sorted((records / "data").rglob("*.parquet"))
    found = []
    for done, path in enumerate(paths):
        tell(f"data/{path.name}", done, len(paths))
        try:
            column = pl.read_parquet(path, columns=["subject_id"])["subject_id"]
        except (OSError, pl.exceptions.PolarsError):
            raise CohortError(f"data/{path.name}: expected a Parquet file with subject_id: ican validate it") from None
        found.append(column.cast(pl.Int64).unique())
    return pl.DataFrame(
        {"subject_id": pl.concat(found).drop_nulls().unique() if found else pl.Series([], dtype=pl.Int64)}
    )


def _splits(records: Path) -> pl.DataFrame:
    """subject_id and split of ``metadata/subject_splits.parquet``; no rows without it."""
    path, file = records / "metadata" / "subject_splits.parquet", "metadata/subject_splits.parquet"
    if not path.exists():
        return pl.DataFrame(schema={"subject_id": pl.Int64, "split": pl.String})
    frame = _opened(path, file)
    if not {"subject_id", "split"} <= set(frame.columns):
        raise CohortError(f"{file}: expected subject_id and split, got other columns: ican validate it")
    splits = frame.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)).unique()
    if splits["subject_id"].is_duplicated().any():
        raise CohortError(f"{file}: expected one split a subject, got subjects in several: ican validate it")
    return splits


def _accounted(
    labels: pl.DataFrame, subjects: pl.DataFrame, splits: pl.DataFrame, accounting: Accounting
) -> pl.DataFrame:
    """Labels that make an episode, by subject and time, with ``split`` where there is any; counts the others."""
    known = subjects.with_columns(pl.lit(True).alias("known"))
    table = labels.join(known, on="subject_id", how="left").join(splits, on="subject_id", how="left")
    table = table.sort("subject_id", "prediction_time", maintain_order=True)
    (name,) = {"response", "sensitivity"} & set(table.columns)
    outcome, part = pl.col(name), pl.coalesce("split", "folder")
    is_split = table["split"].is_not_null().any() or table["folder"].is_not_null().any()
    divided = (pl.col("folder") != pl.col("split")).any() | (part.drop_nulls().n_unique() > 1)
    rows = pl.struct("subject_id", "prediction_time")
    for reason, wrong in (
        (Reason.NO_SUBJECT, pl.col("subject_id").is_null()),
        (Reason.NO_TIME, pl.col("prediction_time").is_null()),
        (Reason.NO_VALUE, outcome.is_null()),
        (Reason.NOT_FINITE, outcome.cast(pl.Float64).is_finite().not_()),
        (Reason.UNKNOWN_SUBJECT, pl.col("known").is_null()),
        (Reason.SPLIT_CONFLICT, divided.over("subject_id")),
        (Reason.NO_SPLIT, (part.is_in(PARTS).not_() | part.is_null()) & is_split),
        (Reason.CONFLICT, outcome.n_unique().over("subject_id", "prediction_time") > 1),
        (Reason.DUPLICATE, rows.is_first_distinct().not_()),
    ):
        left = table.select(wrong.fill_null(False).alias("left"))["left"]
        if left.any():
            accounting.left(TABLE, reason, int(left.sum()))
        table = table.filter(~left)
    accounting.converted(TABLE, len(table))
    columns = ["subject_id", "prediction_time", *([part.alias("split")] if is_split else []), name]
    return table.select(columns)


def _episodes(table: pl.DataFrame, task: str) -> pl.DataFrame:
    asked = [pl.lit(task).alias("task"), pl.lit([], pl.List(pl.String)).alias("treatment")]
    return table.select("subject_id", "prediction_time", *asked, pl.exclude("subject_id", "prediction_time"))


def _write(episodes: pl.DataFrame, accounting: Accounting, folder: Path) -> None:
    (folder / ACCOUNT).write_text(json.dumps(accounting.to_json(), indent=2) + "\n")
    part = folder / f".{EPISODES}.part"
    episodes.write_parquet(part)
    part.replace(folder / EPISODES)


def _write_cohort(episodes: pl.DataFrame, accounting: Accounting, cohort: Path, records: Path, out: Path) -> None:
    """The cohort's parts and the episodes, all of them or nothing."""
    part = out.with_name(f".{out.name}.part")
    part.mkdir(parents=True)
    try:
        for name in ("data", "metadata"):
            if (records / name).is_dir():
                shutil.copytree(records / name, part / "records" / name)
        if records != cohort:
            if (cohort / "omics").is_dir():
                shutil.copytree(cohort / "omics", part / "omics")
            if (cohort / TREATMENTS).exists():
                shutil.copy(cohort / TREATMENTS, part / TREATMENTS)
        (part / "cohort.json").write_text(json.dumps(_about(cohort, records), indent=2) + "\n")
        _write(episodes, accounting, part)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _about(cohort: Path, records: Path) -> dict[str, Any]:
    """``cohort.json``: that of the cohort without the clocks of its outcomes, or a new one named as the dataset."""
    problems = Problems()
    if cohort != records:
        about = read_meta(cohort, problems)
        problems.raise_if_any("labels")
        return {name: value for name, value in about.items() if name != "clocks"}
    path = cohort / "metadata" / "dataset.json"
    dataset = read_object(path, path.name, problems, code="missing-file", severity="warning", fix="add it") or {}
    return {"format": FORMAT, "name": str(dataset.get("dataset_name") or cohort.resolve().name)}
