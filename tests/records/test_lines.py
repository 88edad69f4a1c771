"""Lines of therapy from drug starts: by hand, unknown where the record ends, never one that the cohort asks about."""

import polars as pl

from ican_ml.records.lines import beside, therapy_lines
from ican_ml.records.store import RecordStore
from tests.records.conftest import Row, make_store

START = "DRUG//(.+)//START"


def _start(subject: int, time: str, drug: str) -> Row:
    return subject, time, f"DRUG//{drug}//START", None, ""


ROWS: list[Row] = [
    (1, None, "SEX//F", None, ""),
    _start(1, "2020-01-10", "B"),
    _start(1, "2020-01-10", "A"),
    _start(1, "2020-02-07", "A"),  # day 28
    (1, "2020-03-01", "DRUG//A//STOP", None, ""),
    _start(1, "2020-02-08", "C"),  # day 29: another line, within 180 days
    _start(1, "2021-02-08", "A"),  # a year later
    (1, "2021-08-08", "LAB//X", 1.0, ""),  # 181 days later: known to be without another line
    _start(2, "2020-01-01", "A"),
    (2, "2020-03-01", "MEDS_DEATH", None, ""),
    _start(3, "2020-01-01", "A"),
    (3, "2020-05-01", "LAB//X", 1.0, ""),  # the record ends before 180 days are over
    (4, "2020-05-01", "LAB//X", 1.0, ""),
]


def _lines(store: RecordStore) -> pl.DataFrame:
    return therapy_lines(store, start=START, window=28, horizon=180, outcome="response", time="tnt")


def test_lines_by_hand() -> None:
    found = _lines(make_store(ROWS)).with_columns(pl.col("prediction_time").dt.to_string("%F"))
    assert found.rows() == [
        (1, "2020-01-09", ["A", "B"], 1, 0.0, 29.0, True),
        (1, "2020-02-07", ["C"], 2, 1.0, 366.0, True),
        (1, "2021-02-07", ["A"], 3, 1.0, 181.0, False),
        (2, "2019-12-31", ["A"], 1, 0.0, 60.0, True),
        (3, "2019-12-31", ["A"], 1, None, 121.0, False),
    ]
    assert _lines(make_store(ROWS[:1])).is_empty()


def test_lines_near_an_episode_are_left_out_and_columns_are_the_cohorts() -> None:
    episodes = pl.DataFrame(
        {"subject_id": [1, 1], "prediction_time": ["2020-02-01", "2025-01-01"], "indication": ["X", None]},
    ).with_columns(
        pl.col("prediction_time").str.to_datetime(time_unit="us"),
        treatment=pl.lit(["A"], pl.List(pl.String)),
        line=pl.lit(1, pl.Int16),
    )
    found = beside(_lines(make_store(ROWS)), episodes, 28)
    assert found.select("subject_id", "line", "indication").rows() == [(1, 3, "X"), (2, 1, None), (3, 1, None)]
    assert all(found.schema[name] == kind for name, kind in episodes.schema.items())
    assert "response" not in found.columns, "an outcome that the cohort does not have"
