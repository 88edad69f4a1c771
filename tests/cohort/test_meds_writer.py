"""Records that are written are MEDS, in an order that the source cannot change, no subject in two files."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ican_ml.cohort import meds_writer
from ican_ml.cohort.meds_writer import write_meds
from ican_ml.cohort.validate import validate

EVENTS = pl.DataFrame(
    {
        "subject_id": [3, 1, 1, 2, 1, 3],
        "time": [datetime(2020, 1, 1), datetime(2020, 1, 2), None, datetime(2020, 1, 1), datetime(2020, 1, 1), None],
        "code": ["A", "A", "SEX//F", "B", "B", "SEX//M"],
        "numeric_value": [1.0, None, None, 2.0, None, None],
        "text_value": [None, None, None, "<2", None, None],
        "unit": [None, None, None, "mg", None, None],
    },
    schema_overrides={"time": pl.Datetime("us"), "numeric_value": pl.Float32},
)
CODES = pl.DataFrame(
    {"code": ["SEX//M", "A", "B", "SEX//F"], "description": [None, "a", None, None], "parent_codes": [None] * 4},
    schema_overrides={"parent_codes": pl.List(pl.String)},
)


@pytest.mark.parametrize(
    ("rows", "files"), [(100, [[1, 2, 3]]), (2, [[1], [2], [3]]), (3, [[1], [2, 3]]), (1, [[1], [2], [3]])]
)
def test_no_subject_lies_in_two_files(
    rows: int, files: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meds_writer, "_ROWS", rows)
    write_meds(tmp_path / "records", EVENTS.reverse(), CODES, name="x", source_timezone="Europe/Helsinki")
    parts = [pl.read_parquet(path) for path in sorted((tmp_path / "records/data").glob("*.parquet"))]
    assert [part["subject_id"].unique().sort().to_list() for part in parts] == files
    written = pl.concat(parts)
    assert written["code"].to_list() == ["SEX//F", "B", "A", "B", "SEX//M", "A"]
    assert written["unit"].to_list() == [None, None, None, "mg", None, None]
    assert not [v for v in validate(tmp_path / "records").violations if v.severity == "error"]


def test_records_without_events_can_be_written(tmp_path: Path) -> None:
    write_meds(tmp_path / "records", EVENTS[:0], CODES[:0], name="x")
    assert len(pl.read_parquet(tmp_path / "records/data/0.parquet")) == 0
