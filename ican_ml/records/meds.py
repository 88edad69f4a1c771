"""Reads the records of a cohort: a MEDS 0.4 dataset (https://github.com/Medical-Event-Data-Standard/meds).

In: ``records/data/**/*.parquet`` with subject_id, time (no timezone; null = static), code and optionally numeric_value,
text_value and unit, sorted or not, in any number of files; ``records/metadata/codes.parquet`` for the hierarchy. Out: a
:class:`~ican_ml.records.store.RecordStore`. Where there is no number, a text that is one counts, and of a limit such as
"<5" its bound. Other columns, splits and dataset.json are left alone.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ican_ml.records.build import ARRAYS, FORMAT, Chunk, build
from ican_ml.records.store import RecordStore
from ican_ml.records.vocabulary import Int64

_T = TypeVar("_T")
_READING = 1  # raised when the same files give other events, so that stores are built anew
_COLUMNS = ("subject_id", "time", "code", "numeric_value", "unit", "text_value")
# A number that is all of a text, perhaps behind a comparator: "<5", ">= 1.035", "1,5" (not "1,234", which may be 1234).
_NUMBER = r"^\s*(?:<=|>=|<|>|≤|≥)?\s*([-+]?\d+(?:\.\d+|,\d{1,2}|,\d{4,})?)\s*$"


class RecordError(ValueError):
    """A record dataset that cannot be read: says what was expected, what was found and how to fix it."""


def read_records(cohort_path: str | Path, stores: Path | None = None, *, chunk_rows: int = 1 << 20) -> RecordStore:
    """Read the records of a cohort folder.

    Parameters
    ----------
    cohort_path
        Folder that holds ``records/``.
    stores
        Folder that keeps built stores, each under a digest of the files it was made from: made once, in bounded memory,
        then memory-mapped. None reads into memory.
    chunk_rows
        Rows read at a time.

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
    metadata = root / "metadata" / "codes.parquet"
    digest_of = {path: _digest(path) for path in [*paths, *[metadata] * metadata.exists()]}
    sources = {
        f"{digest_of[path]}-{n}": partial(_chunks, path, path.relative_to(root.parent).as_posix(), chunk_rows)
        for n, path in enumerate(sorted(paths, key=digest_of.__getitem__))
    }
    name = sha256(" ".join([FORMAT, str(_READING), *sorted(digest_of.values())]).encode()).hexdigest()[:32]
    if stores is not None:
        return build(stores / name, sources, _read_parents(metadata))
    with tempfile.TemporaryDirectory(prefix="ican_records_") as folder:
        store = build(Path(folder) / name, sources, _read_parents(metadata))
        in_memory: dict[str, Any] = {name: np.array(getattr(store, name)) for name in ARRAYS}
        return replace(store, **in_memory)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
    """One data file, some rows at a time."""
    file = _readable(name, lambda: pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False))
    schema = _readable(name, lambda: pl.from_arrow(file.schema_arrow.empty_table()))
    assert isinstance(schema, pl.DataFrame)
    present = _check_columns(schema.schema, name)
    batches = file.iter_batches(batch_size=chunk_rows, columns=present)
    while (batch := _readable(name, lambda: next(batches, None))) is not None:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        frame = _five_columns(frame, name)
        codes, units = (frame[column].unique().sort().to_list() for column in ("code", "unit"))
        yield Chunk(
            subject_id=frame["subject_id"].to_numpy(),
            time=frame["time"].to_numpy(),
            code=_positions(frame["code"], codes),
            value=frame["numeric_value"].to_numpy(),
            unit=_positions(frame["unit"], units),
            codes=codes,
            units=units,
        )


def _check_columns(schema: Mapping[str, Any], name: str) -> list[str]:
    """Which of the columns that are read are there."""
    missing = [column for column in ("subject_id", "time", "code") if column not in schema]
    if missing:
        raise RecordError(f"{name}: expected the MEDS columns subject_id, time, code, got no {', '.join(missing)}")
    _check_types(schema, name)
    return [column for column in _COLUMNS if column in schema]


def _five_columns(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    for column in ("subject_id", "code"):
        if n_null := frame[column].null_count():
            raise RecordError(
                f"{name}: expected {column} in every row, got {n_null} rows without; remove or repair them"
            )
    empty = {"numeric_value": pl.lit(None), "unit": pl.lit(""), "text_value": pl.lit(None, pl.String)}
    value, unit, text = (pl.col(column) if column in frame else empty[column] for column in empty)
    bound = text.cast(pl.String).str.extract(_NUMBER, 1).str.replace(",", ".", literal=True)
    return frame.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("time").cast(pl.Datetime("us")),
        pl.col("code").cast(pl.String),
        pl.coalesce(value.cast(pl.Float32, strict=False), bound.cast(pl.Float32, strict=False))
        .fill_null(float("nan"))
        .alias("numeric_value"),
        unit.cast(pl.String).str.strip_chars().fill_null("").alias("unit"),
    )


def _readable(name: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError):
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
