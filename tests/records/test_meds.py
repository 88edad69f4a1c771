"""Reading MEDS: any number of files in any order, and clear words for what cannot be read."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ican_ml.records.meds import RecordError, read_records
from ican_ml.records.store import history
from ican_ml.records.vocabulary_fit import fit_vocabulary

DAYS = [None, datetime(2020, 1, 2), datetime(2020, 1, 1)]


def frame(**changes: object) -> pl.DataFrame:
    columns: dict[str, object] = {
        "subject_id": [2, 1, 2],
        "time": DAYS,
        "code": ["SEX//F", "LAB//HGB", "LAB//HGB"],
        "numeric_value": [None, 12.5, 7.0],
    }
    return pl.DataFrame(columns | changes)


def write(root: Path, *frames: pl.DataFrame, codes: pl.DataFrame | None = None) -> Path:
    for number, part in enumerate(frames):
        path = root / "records" / "data" / ("train" if number else "held_out") / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(path)
    if codes is not None:
        (root / "records" / "metadata").mkdir()
        codes.write_parquet(root / "records" / "metadata" / "codes.parquet")
    return root


def test_files_are_joined_sorted_and_keep_their_units(tmp_path: Path) -> None:
    second = frame(unit=["", " g/dL ", None], subject_id=[3, 1, 3]).with_columns(pl.col("code").cast(pl.Categorical))
    store = read_records(write(tmp_path, frame(), second))
    assert store.subject_id.tolist() == [1, 2, 3]
    assert store.offsets.tolist() == [0, 2, 4, 6]
    assert store.units == ("", "g/dL")
    assert [store.codes[c] for c in store.code] == ["LAB//HGB"] * 2 + ["SEX//F", "LAB//HGB"] * 2
    assert store.unit.tolist() == [0, 1, 0, 0, 0, 0]
    assert np.isnat(store.time).tolist() == [False, False, True, False, True, False]
    assert np.array_equal(store.value, np.array([12.5, 12.5, np.nan, 7, np.nan, 7], np.float32), equal_nan=True)


def test_parents_come_without_gaps_and_self_reference(tmp_path: Path) -> None:
    codes = pl.DataFrame({"code": ["A", "B", "C"], "parent_codes": [["P", None, "P", "A"], None, [None]]})
    assert read_records(write(tmp_path, frame(), codes=codes)).parents == {"A": ("P",)}


def test_values_and_units_are_optional_and_values_that_are_not_finite_are_none(tmp_path: Path) -> None:
    bare = read_records(write(tmp_path / "bare", frame().drop("numeric_value")))
    assert np.isnan(bare.value).all()
    assert bare.units == ("",)
    wild = read_records(write(tmp_path / "wild", frame(numeric_value=[float("inf"), 1e300, float("nan")])))
    assert np.isnan(wild.value).all()


def test_texts_that_are_numbers_or_limits_count_where_there_is_no_number(tmp_path: Path) -> None:
    texts = ["<5", ">= 1.035", " 7 ", "1,5", "1,234", "> 30 mL", "negative", "", None, "≤12", "-3", "<9"]
    numbers = [None] * 11 + [8.0]
    n = len(texts)
    days = [datetime(2020, 1, 1 + i) for i in range(n)]
    written = pl.DataFrame(
        {"subject_id": [1] * n, "time": days, "code": ["A"] * n, "numeric_value": numbers, "text_value": texts}
    ).with_columns(pl.col("numeric_value").cast(pl.Float32))
    store = read_records(write(tmp_path, written))
    expected = [5, 1.035, 7, 1.5, np.nan, np.nan, np.nan, np.nan, np.nan, 12, -3, 8]
    np.testing.assert_array_equal(store.value, np.array(expected, np.float32))


def _nulls(values: Sequence[object]) -> list[object]:
    return [None, *values[1:]]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (frame().drop("code", "time"), "columns subject_id, time, code, got no time, code"),
        (
            frame().with_columns(pl.col("time").dt.replace_time_zone("Europe/Helsinki")),
            "without a timezone, got timezone Europe/Helsinki; convert it .* source_timezone in cohort.json",
        ),
        (frame(time=["a", "b", "c"]), "time timestamp.us., got String; parse it"),
        (frame(subject_id=["a", "b", "c"]), "subject_id int64, got String; map the identifiers"),
        (frame(subject_id=_nulls([1, 2, 3])), "subject_id in every row, got 1 rows without"),
        (frame(code=_nulls(["A", "B", "C"])), "code in every row, got 1 rows without"),
        (frame(numeric_value=["<5", "7", ""]), "numeric_value float32, got String; parse it"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, broken: pl.DataFrame, message: str) -> None:
    with pytest.raises(RecordError, match=f"^records/data/held_out/0.parquet: expected .*{message}"):
        read_records(write(tmp_path, broken))


def test_damaged_bytes_are_explained(tmp_path: Path) -> None:
    write(tmp_path, frame())
    (path,) = tmp_path.rglob("data/**/*.parquet")
    content = path.read_bytes()
    for damaged in (content[:-100], content[:4] + bytes(60) + content[64:]):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match="expected a readable Parquet file"):
            read_records(tmp_path)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"at least one \.parquet file"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("name", "subjects"), [("mimic_iv_demo", 100), ("delphi_ukb_sim", 14286), ("synthea27_meds_etl", 28)]
)
def test_foreign_datasets(cohorts: Path, tmp_path: Path, name: str, subjects: int) -> None:
    (tmp_path / "records").symlink_to(cohorts / "records" / name)
    store = read_records(tmp_path)
    assert len(store.subject_id) == subjects
    events = history(store, store.subject_id, np.full(subjects, np.datetime64("NaT", "us")))
    assert len(events.code) == len(store.code), "every row is in the history of its subject"
    coverage = fit_vocabulary(events, min_subjects=10).coverage(events)
    assert coverage["known"] + coverage["backed_off"] + coverage["unknown"] == pytest.approx(1)
    assert coverage["known"] > 0.7
