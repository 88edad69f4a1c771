"""Landmarks: what is asked later about the rest of a follow-up, by hand, and that a subject's draws are its own."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from ican_ml.training.landmarks import draw_landmarks
from ican_ml.training.outcomes import read_outcomes

KINDS = {"os": "survival", "pfs": "survival", "response": "binary", "size": "regression"}
BEGIN = datetime(2020, 1, 1)


def _table(*rows: dict[str, Any]) -> pl.DataFrame:
    """Episodes with a long follow-up, but for what a row says."""
    usual = {
        "subject_id": 1,
        "prediction_time": BEGIN,
        "treatment": ["A", "B"],
        "indication": "X",
        "os_time": 1000.0,
        "os_event": True,
        "os_entry": None,
        "pfs_time": 900,
        "pfs_event": False,
        "response": True,
        "size": 2.5,
    }
    types = {"prediction_time": pl.Datetime("us"), "os_time": pl.Float32, "os_entry": pl.Float32, "pfs_time": pl.Int32}
    return pl.DataFrame([usual | row for row in rows], schema_overrides=types)


def _drawn(episodes: pl.DataFrame, kinds: dict[str, str] = KINDS, **settings: Any) -> pl.DataFrame:
    settings = {"per_episode": 1, "horizon": 1500, "seed": 7} | settings
    return draw_landmarks(episodes, read_outcomes(episodes, kinds), **settings)


def test_outcomes_count_from_the_landmark() -> None:
    episodes = _table({"os_entry": 400.0}, {"subject_id": 2}, {"subject_id": 3, "os_entry": 30.0})
    found = _drawn(episodes, per_episode=40)
    assert found.schema == episodes.schema
    assert found["subject_id"].to_list() == [1] * 40 + [2] * 40 + [3] * 40
    days = (found["prediction_time"] - BEGIN).dt.total_days().to_numpy()
    assert found["prediction_time"].to_list() == [BEGIN + timedelta(days=day) for day in days.tolist()]
    np.testing.assert_array_equal(found["os_time"], 1000 - days)
    np.testing.assert_array_equal(found["pfs_time"], 900 - days)
    entry = np.concatenate([np.maximum(400 - days[:40], 0), np.full(40, np.nan), np.maximum(30 - days[80:], 0)])
    np.testing.assert_array_equal(found["os_entry"].fill_null(np.nan), entry)
    assert found["os_event"].all()
    assert not found["pfs_event"].any()
    assert found["response"].null_count() == found["size"].null_count() == len(found)
    assert set(found["indication"]) == {"X"}
    assert found["treatment"].to_list() == [["A", "B"]] * len(found)
    assert all(outcome.labelled.all() for name, outcome in read_outcomes(found, KINDS).items() if name in ("os", "pfs"))


@pytest.mark.parametrize(
    ("row", "last"),
    [
        ({"pfs_time": 3}, 2),
        ({"os_time": 2.5}, 2),
        ({"pfs_time": 6, "os_time": 4.0}, 3),
        ({"os_entry": 2.0, "os_time": 3.0}, 2),
    ],
)
def test_every_day_before_the_end_of_follow_up_and_none_later(row: dict[str, Any], last: int) -> None:
    found = _drawn(_table(row), per_episode=60)
    assert set((found["prediction_time"] - BEGIN).dt.total_days()) == set(range(1, last + 1))
    assert found["os_time"].min() > 0  # type: ignore[operator]
    assert found["pfs_time"].min() > 0  # type: ignore[operator]


def test_no_landmark_beyond_the_horizon() -> None:
    days = (_drawn(_table({}), per_episode=200, horizon=10)["prediction_time"] - BEGIN).dt.total_days()
    assert set(days) == set(range(1, 10))


@pytest.mark.parametrize(
    "row",
    [
        {"pfs_time": 1},
        {"os_time": 0.0},
        {"os_time": None},
        {"pfs_event": None},
        {"os_entry": 1000.0},
        {"prediction_time": None},
    ],
)
def test_none_without_follow_up_outcome_or_time(row: dict[str, Any]) -> None:
    found = _drawn(_table(row, {"subject_id": 2}))
    assert found["subject_id"].to_list() == [2]
    assert _drawn(_table(row)).is_empty()


def test_the_draws_of_a_subject_are_its_own() -> None:
    several = [{"subject_id": -5}, {"subject_id": 3}, {"subject_id": -5, "pfs_time": 500}, {"subject_id": 4}]
    all_of_them = _drawn(_table(*several), per_episode=3)
    assert _drawn(_table(*several), per_episode=3).equals(all_of_them)
    for subject in (-5, 3, 4):
        alone = _drawn(_table(*[row for row in several if row["subject_id"] == subject]), per_episode=3)
        assert alone.equals(all_of_them.filter(pl.col("subject_id") == subject))
    others = [row if row["subject_id"] == 3 else row | {"pfs_time": None} for row in several]
    assert _drawn(_table(*others), per_episode=3).equals(all_of_them.filter(pl.col("subject_id") == 3))
    assert not _drawn(_table(*several), per_episode=3, seed=8).equals(all_of_them)
    times = all_of_them.filter(pl.col("subject_id") != -5).partition_by("subject_id")
    assert times[0]["prediction_time"].to_list() != times[1]["prediction_time"].to_list()
