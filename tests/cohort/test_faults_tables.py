"""Faults of cohort.json, of the tables and of the records, each planted in a copy of a healthy cohort: the validator
names it, and nothing else.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COHORT, EPISODES, TREATMENTS = "cohort.json", "episodes.parquet", "treatments.parquet"
TRAIN, HELD_OUT = "records/data/train/0.parquet", "records/data/held_out/0.parquet"
CODES, SPLITS, DATASET = (f"records/metadata/{n}" for n in ("codes.parquet", "subject_splits.parquet", "dataset.json"))

Change = Callable[[Path], None]


def write(file: str, content: bytes | None) -> Change:
    """Give a change that writes bytes to a file, or removes it."""

    def change(root: Path) -> None:
        (root / file).unlink() if content is None else (root / file).write_bytes(content)

    return change


def cut(file: str) -> Change:
    def change(root: Path) -> None:
        whole = (root / file).read_bytes()
        (root / file).write_bytes(whole[: len(whole) * 2 // 3])

    return change


def meta(**entries: Any) -> Change:
    def change(root: Path) -> None:
        (root / COHORT).write_text(json.dumps(json.loads((root / COHORT).read_text()) | entries))

    return change


def table(file: str, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    """Give a change of a Parquet file that keeps the types of columns whose kind of type stays."""

    def change(root: Path) -> None:
        old = pq.read_schema(root / file)
        new = edit(pl.from_arrow(pq.read_table(root / file))).to_arrow()  # type: ignore[arg-type]
        fields = []
        for field in new.schema:
            before = old.field(field.name) if field.name in old.names else field
            pairs = ((pa.types.is_large_string, pa.types.is_string), (pa.types.is_large_list, pa.types.is_list))
            fields.append(before if any(new(field.type) and kind(before.type) for new, kind in pairs) else field)
        pq.write_table(new.cast(pa.schema(fields)), root / file)

    return change


def columns(file: str, **new: pl.Expr) -> Change:
    return table(file, lambda frame: frame.with_columns(**new))


def at(row: int, value: Any, column: str) -> pl.Expr:
    """Column with one value replaced."""
    value = value if isinstance(value, pl.Expr) else pl.lit(value)
    return pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(pl.col(column)).alias(column)


def two_subjects(frame: pl.DataFrame) -> list[int]:
    return frame["subject_id"].unique(maintain_order=True).to_list()[:2]


def scatter(frame: pl.DataFrame) -> pl.DataFrame:
    """The last row of the first subject comes last, unless sorted by time too."""
    last = int((frame["subject_id"] == frame["subject_id"][0]).sum()) - 1
    return pl.concat([frame[:last], frame[last + 1 :], frame[last : last + 1]])


def swap_subjects(frame: pl.DataFrame) -> pl.DataFrame:
    first, second = two_subjects(frame)
    of = pl.col("subject_id")
    return pl.concat([frame.filter(of == second), frame.filter(of == first), frame.filter(~of.is_in([first, second]))])


def static_last(frame: pl.DataFrame) -> pl.DataFrame:
    first = pl.col("subject_id") == frame["subject_id"][0]
    return pl.concat([frame.filter(first).sort("time", nulls_last=True), frame.filter(~first)])


def before_birth(frame: pl.DataFrame) -> pl.DataFrame:
    row = int((frame["code"] == "MEDS_BIRTH").arg_max() or 0)
    early = frame[row].with_columns(pl.col("time") - timedelta(days=9), code=pl.lit("ECOG"))
    return pl.concat([frame[:row], early, frame[row:]])


def in_two_files(root: Path) -> None:
    train = pl.from_arrow(pq.read_table(root / TRAIN))
    assert isinstance(train, pl.DataFrame)
    added = train.filter(pl.col("subject_id") == train["subject_id"][0])
    table(HELD_OUT, lambda frame: pl.concat([frame, added]).sort("subject_id", "time", maintain_order=True))(root)


def twice(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame[:2]])


def number(dtype: Any, column: str) -> pl.Expr:
    return pl.col(column).cast(dtype)


OS = pl.col("os_time")
# name: (change, what is found, rows of the first, severity)
FAULTS: dict[str, tuple[Any, ...]] = {
    # cohort.json
    "garbage in cohort.json": (write(COHORT, b"\xff{]"), {("unreadable", COHORT)}),
    "no object in cohort.json": (write(COHORT, b"[1]"), {("unreadable", COHORT)}),
    "no cohort.json": (write(COHORT, None), {("missing-file", COHORT)}),
    "another format": (meta(format="ican-cohort/9"), {("unknown-format", COHORT)}),
    "no name": (meta(name=None), {("missing-name", COHORT)}),
    "clock of no outcome": (meta(clocks={"pfs": "diagnosis"}), {("unknown-clock", COHORT)}, None, "warning"),
    "clock without entry": (meta(clocks={"os": "diagnosis"}), {("clock-without-entry", EPISODES)}, None, "warning"),
    # episodes.parquet
    "no episodes": (write(EPISODES, None), {("no-episodes", EPISODES)}, None, "warning"),
    "half a file of episodes": (cut(EPISODES), {("unreadable", EPISODES)}),
    "no treatment": (table(EPISODES, lambda f: f.drop("treatment")), {("missing-column", EPISODES)}),
    "subjects as text": (columns(EPISODES, subject_id=number(pl.String, "subject_id")), {("wrong-dtype", EPISODES)}),
    "subject unknown": (columns(EPISODES, subject_id=at(4, None, "subject_id")), {("null-subject", EPISODES)}, 1),
    "prediction in a zone": (
        columns(EPISODES, prediction_time=pl.col("prediction_time").dt.replace_time_zone("Europe/Helsinki")),
        {("timezone", EPISODES)},
    ),
    "prediction by day": (
        columns(EPISODES, prediction_time=pl.col("prediction_time").dt.date()),
        {("inexact-dtype", EPISODES)},
        None,
        "warning",
    ),
    "treatment as text": (columns(EPISODES, treatment=pl.col("treatment").list.first()), {("wrong-dtype", EPISODES)}),
    "response as number": (columns(EPISODES, response=number(pl.Int8, "response")), {("wrong-dtype", EPISODES)}),
    "event as number": (columns(EPISODES, os_event=number(pl.Int8, "os_event")), {("wrong-dtype", EPISODES)}),
    "event without time": (columns(EPISODES, os_time=at(3, None, "os_time")), {("event-without-time", EPISODES)}, 1),
    "time without event": (columns(EPISODES, os_event=at(3, None, "os_event")), {("time-without-event", EPISODES)}, 1),
    "no times": (table(EPISODES, lambda f: f.drop("os_time")), {("missing-column", EPISODES)}),
    "no events": (
        table(EPISODES, lambda f: f.drop("os_event")),
        {("missing-event", EPISODES), ("unknown-clock", COHORT)},
        None,
        "warning",
    ),
    "negative time": (columns(EPISODES, os_time=at(2, -1.0, "os_time")), {("negative-time", EPISODES)}, 1),
    "endless time": (columns(EPISODES, os_time=at(2, np.inf, "os_time")), {("non-finite", EPISODES)}, 1),
    "entry after exit": (columns(EPISODES, os_entry=at(5, OS + 1, "os_time")), {("entry-after-exit", EPISODES)}, 1),
    "entry unknown": (columns(EPISODES, os_entry=at(5, None, "os_time")), {("missing-entry", EPISODES)}, 1),
    "sensitivity as text": (columns(EPISODES, sensitivity=pl.lit("low")), {("wrong-dtype", EPISODES)}),
    "sensitivity NaN": (columns(EPISODES, sensitivity=at(1, np.nan, "os_time")), {("non-finite", EPISODES)}, 1),
    "episodes twice": (table(EPISODES, twice), {("duplicate-episodes", EPISODES)}, 2),
    "subject in two splits": (
        columns(EPISODES, split=at(1, "tuning", "split")),
        {("subject-in-two-splits", EPISODES), ("split-mismatch", EPISODES)},
        1,
    ),
    "subject in two folds": (columns(EPISODES, fold=pl.int_range(pl.len()) % 5), {("subject-in-two-folds", EPISODES)}),
    "unknown split": (
        columns(EPISODES, split=pl.col("split").replace("train", "training")),
        {("unknown-split", EPISODES), ("split-mismatch", EPISODES)},
    ),
    "fold for some": (
        columns(EPISODES, fold=pl.when(pl.col("split") == "train").then(1)),
        {("incomplete-split", EPISODES)},
        None,
        "warning",
    ),
    # treatments.parquet
    "empty treatments": (write(TREATMENTS, b""), {("unreadable", TREATMENTS)}),
    "drug twice": (table(TREATMENTS, twice), {("duplicate-drug", TREATMENTS)}, 2),
    "drug without row": (table(TREATMENTS, lambda f: f[3:]), {("drug-without-row", TREATMENTS)}, None, "warning"),
    "targets as text": (columns(TREATMENTS, targets=pl.col("targets").list.first()), {("wrong-dtype", TREATMENTS)}),
    # records
    "half a data file": (cut(TRAIN), {("unreadable", TRAIN)}),
    "no code": (table(TRAIN, lambda f: f.drop("code")), {("missing-column", TRAIN)}),
    "codes as numbers": (columns(TRAIN, code=pl.lit(3)), {("wrong-dtype", TRAIN)}),
    "record subjects as text": (columns(TRAIN, subject_id=number(pl.String, "subject_id")), {("wrong-dtype", TRAIN)}),
    "values in double precision": (
        columns(TRAIN, numeric_value=number(pl.Float64, "numeric_value")),
        {("inexact-dtype", TRAIN)},
        None,
        "warning",
    ),
    "times in a zone": (columns(TRAIN, time=pl.col("time").dt.replace_time_zone("UTC")), {("timezone", TRAIN)}),
    "event of nobody": (columns(TRAIN, subject_id=at(9, None, "subject_id")), {("null-subject", TRAIN)}, 1),
    "event without code": (columns(TRAIN, code=at(9, None, "code")), {("null-code", TRAIN)}, 1),
    "infinite laboratory value": (
        columns(TRAIN, numeric_value=at(9, np.inf, "numeric_value")),
        {("non-finite-value", TRAIN)},
        1,
        "warning",
    ),
    "scattered subject": (table(TRAIN, scatter), {("scattered-subjects", TRAIN)}, 1),
    "subjects swapped": (table(TRAIN, swap_subjects), {("unsorted-subjects", TRAIN)}, 1),
    "static rows last": (table(TRAIN, static_last), {("unsorted-times", TRAIN)}),
    "event before birth": (table(TRAIN, before_birth), {("before-birth", TRAIN)}, 1, "warning"),
    "subject in two files": (in_two_files, {("subject-in-two-files", TRAIN), ("split-mismatch", SPLITS)}),
    "codes unknown": (table(CODES, lambda f: f[5:]), {("unknown-code", CODES)}, None, "warning"),
    "code twice": (table(CODES, twice), {("duplicate-codes", CODES)}, 2, "warning"),
    "no codes": (write(CODES, None), {("missing-metadata", CODES)}, None, "warning"),
    "no subject splits": (write(SPLITS, None), {("missing-metadata", SPLITS)}, None, "warning"),
    "no dataset.json": (write(DATASET, None), {("missing-metadata", DATASET)}, None, "warning"),
    "garbage in dataset.json": (write(DATASET, b"{"), {("unreadable", DATASET)}),
    "old MEDS": (write(DATASET, b'{"meds_version": "0.3.3"}'), {("meds-version", DATASET)}, None, "warning"),
    "recorded subject in two splits": (
        table(SPLITS, lambda f: pl.concat([f, f[:1].with_columns(split=pl.lit("tuning"))])),
        {("subject-in-two-splits", SPLITS)},
        1,
    ),
    "recorded split of others": (
        columns(SPLITS, split=pl.lit("train")),
        {("split-mismatch", SPLITS), ("split-mismatch", EPISODES)},
    ),
    "subject without split": (table(SPLITS, lambda f: f[2:]), {("subject-without-split", SPLITS)}, None, "warning"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_else(assert_named: Callable[..., None], name: str) -> None:
    assert_named(*FAULTS[name])
