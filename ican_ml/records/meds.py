"""Reads the records of a cohort: a MEDS 0.4 dataset (https://github.com/Medical-Event-Data-Standard/meds).

In: ``records/data/**/*.parquet`` with subject_id, time (no timezone; null = static), code and optionally numeric_value
and unit, sorted or not, in any number of files; ``records/metadata/codes.parquet`` for the hierarchy. Out: a
:class:`~ican_ml.records.store.RecordStore`. Other columns, splits and dataset.json are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from ican_ml.records.store import RecordStore, build_store
from ican_ml.records.vocabulary import Int64

_T = TypeVar("_T")


class RecordError(ValueError):
    """A record dataset that cannot be read: says what was expected, what was found and how to fix it."""


def read_records(cohort_path: str | Path) -> RecordStore:
    """Read the records of a cohort folder.

    Parameters
    ----------
    cohort_path
        Folder that holds ``records/``.

    Raises
    ------
    RecordError
        If there are no data files, or columns are missing, empty or of the wrong type (a time with a timezone, say).
    """
    root = Path(cohort_path) / "records"
    paths = sorted((root / "data").rglob("*.parquet"))
    if not paths:
        raise RecordError(
            "records/data: expected at least one .parquet file (MEDS 0.4), got none; remove records/ if the cohort has "
            "no records"
        )
    frame = pl.concat([_read_data(path, path.relative_to(root.parent).as_posix()) for path in paths])
    codes, units = (frame[name].unique().sort().to_list() for name in ("code", "unit"))
    return build_store(
        subject_id=frame["subject_id"].to_numpy(),
        time=frame["time"].to_numpy(),
        code=_positions(frame["code"], codes),
        value=frame["numeric_value"].to_numpy(),
        unit=_positions(frame["unit"], units),
        codes=codes,
        units=units,
        parents=_read_parents(root / "metadata" / "codes.parquet"),
    )


def _read_data(path: Path, name: str) -> pl.DataFrame:
    """One data file with the five columns of the store."""
    schema = _readable(name, lambda: pl.read_parquet_schema(path))
    missing = [column for column in ("subject_id", "time", "code") if column not in schema]
    if missing:
        raise RecordError(f"{name}: expected the MEDS columns subject_id, time, code, got no {', '.join(missing)}")
    _check_types(schema, name)
    present: list[str] = [
        column for column in ("subject_id", "time", "code", "numeric_value", "unit") if column in schema
    ]
    frame = _readable(name, lambda: pl.read_parquet(path, columns=present))
    for column in ("subject_id", "code"):
        if n_null := frame[column].null_count():
            raise RecordError(
                f"{name}: expected {column} in every row, got {n_null} rows without; remove or repair them"
            )
    empty = {"numeric_value": pl.lit(None), "unit": pl.lit("")}
    value, unit = (pl.col(column) if column in schema else empty[column] for column in ("numeric_value", "unit"))
    return frame.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("time").cast(pl.Datetime("us")),
        pl.col("code").cast(pl.String),
        value.cast(pl.Float32, strict=False).fill_null(float("nan")).alias("numeric_value"),
        unit.cast(pl.String).str.strip_chars().fill_null("").alias("unit"),
    )


def _readable(name: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (OSError, pl.exceptions.PolarsError):
        raise RecordError(f"{name}: expected a readable Parquet file, got damaged bytes; write it again") from None


def _check_types(schema: Mapping[str, Any], name: str) -> None:
    time, subject = schema["time"], schema["subject_id"]
    if not subject.is_integer():
        raise RecordError(f"{name}: expected subject_id int64, got {subject}; map the identifiers to whole numbers")
    if isinstance(time, pl.Datetime) and time.time_zone is not None:
        raise RecordError(
            f"{name}: expected time without a timezone, got timezone {time.time_zone}; convert it to the local wall "
            "time of the source (polars: dt.convert_time_zone(source_timezone).dt.replace_time_zone(None)) and write "
            "source_timezone in cohort.json"
        )
    if not isinstance(time, pl.Datetime | pl.Date | pl.Null):
        raise RecordError(f"{name}: expected time timestamp[us], got {time}; parse it to a timestamp")
    if "numeric_value" in schema and not (schema["numeric_value"].is_numeric() or schema["numeric_value"] == pl.Null):
        raise RecordError(f"{name}: expected numeric_value float32, got {schema['numeric_value']}; parse it to numbers")


def _read_parents(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.exists() or "parent_codes" not in pl.read_parquet_schema(path):
        return {}
    frame = pl.read_parquet(path, columns=["code", "parent_codes"]).drop_nulls()
    if not isinstance(frame["parent_codes"].dtype, pl.List):
        raise RecordError(
            f"metadata/codes.parquet: expected parent_codes list<string>, got {frame['parent_codes'].dtype}"
        )
    rows = zip(frame["code"].to_list(), frame["parent_codes"].to_list(), strict=True)
    parents = {code: tuple(dict.fromkeys(p for p in above if p and p != code)) for code, above in rows}
    return {code: above for code, above in sorted(parents.items()) if above}


def _positions(column: pl.Series, categories: list[str]) -> Int64:
    return column.cast(pl.Enum(categories)).to_physical().to_numpy().astype(np.int64)
