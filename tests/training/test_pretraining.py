"""Episodes made of records: days to what comes next by hand, unknown where a record ends or a table was cut."""

import numpy as np
import polars as pl
import pytest

from ican_ml.records.store import RecordStore
from ican_ml.training.pretraining import record_episodes
from tests.records.conftest import Row, make_store

NEXT = {"tnt": "DRUG//.+//START|MEDS_DEATH", "death": "MEDS_DEATH"}
ROWS: list[Row] = [
    (1, "1960-01-01", "MEDS_BIRTH", None, ""),
    (1, None, "SEX//F", None, ""),
    (1, "2020-01-01", "LAB//X", 1.0, ""),
    (1, "2020-03-01", "DRUG//A//START", None, ""),
    (1, "2020-05-01", "LAB//X", 1.0, ""),
    (2, "2020-01-01", "LAB//X", 1.0, ""),
    (2, "2020-02-01", "LAB//X", 1.0, ""),
    (2, "2020-04-01", "MEDS_DEATH", None, ""),
    (3, "2020-01-01", "LAB//X", 1.0, ""),
    (4, None, "SEX//F", None, ""),
]
EPISODES = pl.DataFrame(
    {
        "subject_id": [1, 1, 2, 3, 4, 5],
        "indication": ["X", None, "Y", "X", "X", "X"],
        "fold": [0, 0, 1, 2, 3, 4],
        "response": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0],
    }
)


def made(store: RecordStore, episodes: pl.DataFrame = EPISODES, **changes: object) -> pl.DataFrame:
    settings = {"per_subject": 40, "seed": 5, "keep": ["indication", "fold", "site"]} | changes
    return record_episodes(store, episodes, NEXT, **settings)  # type: ignore[arg-type]


def days(name: str, moment: str) -> pl.Expr:
    until = pl.lit(moment).str.to_datetime(time_unit="us") - pl.col("prediction_time")
    return (pl.col(f"{name}_time") - until.dt.total_microseconds() / 86_400_000_000).abs().max() < 1e-6


def test_days_by_hand() -> None:
    found = made(make_store(ROWS))
    assert found["subject_id"].unique().sort().to_list() == [1, 2], "a single day, no dated event, no record: nothing"
    assert found.columns == [
        *("subject_id", "tnt_time", "tnt_event", "death_time", "death_event", "prediction_time", "treatment"),
        *("indication", "fold"),
    ]
    assert found["treatment"].list.len().max() == 0
    first, second = (found.filter(pl.col("subject_id") == who) for who in (1, 2))
    assert first.select("indication", "fold").unique().rows() == [("X", 0)]
    began = pl.col("prediction_time") < pl.datetime(2020, 3, 1)
    assert first.filter(began).select(days("tnt", "2020-03-01"), pl.col("tnt_event").all()).row(0) == (True, True)
    later = first.filter(~began)
    assert later.select(days("tnt", "2020-05-01"), ~pl.col("tnt_event").any()).row(0) == (True, True)
    assert first.select(days("death", "2020-05-01"), ~pl.col("death_event").any()).row(0) == (True, True)
    assert second.select(days("tnt", "2020-04-01"), days("death", "2020-04-01"), "tnt_event").unique().rows() == [
        (True, True, True)
    ]
    assert second["death_event"].all()
    span = second["prediction_time"]
    assert pl.Series([span.min()])[0] >= pl.Series(["2020-01-01"]).str.to_datetime()[0]
    assert pl.Series([span.max()])[0] < pl.Series(["2020-02-01"]).str.to_datetime()[0]


def test_a_subjects_draws_depend_on_it_alone() -> None:
    everybody = made(make_store(ROWS)).filter(pl.col("subject_id") == 2)
    alone = made(make_store([row for row in ROWS if row[0] == 2]), EPISODES.filter(pl.col("subject_id") == 2))
    assert everybody.equals(alone)
    assert not made(make_store(ROWS), seed=6).equals(made(make_store(ROWS)))


def test_after_the_last_row_of_a_cut_table_nothing_is_known() -> None:
    day = np.datetime64("2020-01-01")
    rows: list[Row] = []
    for subject in range(40):
        starts = 12 if subject < 20 else 1 + subject % 3
        rows += [(subject, str(day + 10 * k), "DRUG//A//START", None, "") for k in range(starts)]
        rows += [(subject, str(day + 400), "LAB//X", 1.0, "")]
    episodes = pl.DataFrame({"subject_id": range(40)})
    found = record_episodes(make_store(rows), episodes, {"tnt": "DRUG//.+//START"}, per_subject=30, seed=1)
    elapsed = (pl.col("prediction_time") - pl.lit(day)).dt.total_microseconds() / 86_400_000_000
    late = found.filter(elapsed > 110)
    full = pl.col("subject_id") < 20
    assert late.filter(full)["tnt_time"].null_count() == len(late.filter(full)) > 0
    assert late.filter(full)["tnt_event"].null_count() == len(late.filter(full))
    others = late.filter(~full)
    assert others.select(((elapsed + pl.col("tnt_time")) - 400).abs().max()).item() < 1e-6, "seen until the last event"
    assert not others["tnt_event"].any()


def test_codes_that_are_nowhere_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"outcomes.tnt: expected codes of the records to match, got none for 'SCAN//.\+'"
    ):
        record_episodes(make_store(ROWS), EPISODES, {"tnt": "SCAN//.+"}, per_subject=1, seed=1)
