"""The event store: a history holds what was known at the time, all of it, and nothing else."""

import math
import random
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ican_ml.records.aggregates import aggregate, fit_aggregates
from ican_ml.records.meds import read_records
from ican_ml.records.store import RecordStore, histories, history, latest_rows
from ican_ml.records.vocabulary import Events
from ican_ml.records.vocabulary_fit import fit_vocabulary

Row = tuple[int, str | None, str, float | None, str]
StoreOf = Callable[[Sequence[Row]], RecordStore]

any_row = st.tuples(
    st.integers(0, 3),
    st.none() | st.dates(min_value=date(2020, 1, 1), max_value=date(2020, 1, 9)).map(str),
    st.sampled_from(["A", "B//1", "B//2", "MEDS_BIRTH", "MEDS_DEATH"]),
    st.none() | st.sampled_from([-1.0, 0.0, 2.5]),
    st.sampled_from(["", "g/L"]),
)
any_query = st.tuples(st.integers(0, 4), st.none() | st.integers(0, 10))


def times(*texts: str) -> np.ndarray:
    return np.array(texts, "datetime64[us]")


def listed(events: Events, row: int) -> list[tuple[str, float | None, str, float]]:
    """Events of one row as (code, value, unit, gap)."""
    part = slice(events.offsets[row], events.offsets[row + 1])
    values = [None if math.isnan(v) else v for v in events.value[part].tolist()]
    codes = [events.codes[c] for c in events.code[part]]
    units = [events.units[u] for u in events.unit[part]]
    return list(zip(codes, values, units, events.gap[part].tolist(), strict=True))


def same(first: Events, second: Events) -> bool:
    return first.age.tobytes() == second.age.tobytes() and all(
        listed(first, row) == listed(second, row) for row in range(first.n_rows)
    )


def test_history_ends_at_the_prediction_time_inclusive(rows: list[Row], store_of: StoreOf) -> None:
    now = times("2020-02-29", "2020-03-01", "2020-03-01T08:30", "2030-01-01")
    events = history(store_of(rows), np.full(4, 7), now)
    assert np.diff(events.offsets).tolist() == [4, 5, 6, 6]
    assert listed(events, 1) == [
        ("SEX//F", None, "", -1.0),
        ("DX//C50.9", None, "", 21976.0),
        ("LAB//HGB", 11.0, "g/dL", 60.0),
        ("LAB//HGB", 120.0, "g/L", 60.0),
        ("DRUG//A//START", None, "", 0.0),
    ]
    assert events.parents == {"DRUG//A//START": ("DRUGCLASS//X",)}


def test_birth_gives_the_age_and_is_no_event(rows: list[Row], store_of: StoreOf) -> None:
    store = store_of(rows)
    assert not any(code.startswith("MEDS_") for code in {store.codes[c] for c in store.code})
    now = times("2020-01-01", "2020-01-01", "2020-06-01", "1959-12-31")
    events = history(store, np.array([7, 3, 9, 7]), now)
    days = (np.datetime64("2020-01-01") - np.datetime64("1960-01-01")) / np.timedelta64(1, "D")
    assert events.age.tolist()[0] == pytest.approx(days / 365.25)
    assert np.isnan(events.age).tolist() == [False, True, False, True], "unknown without a birth, and before it"
    assert np.diff(events.offsets).tolist() == [4, 0, 0, 2], "an event before birth is kept"
    assert store.death.tolist()[1] is not None
    assert np.isnat(store.death[[0, 2]]).all()


def test_unknown_subjects_and_empty_stores_have_no_events(rows: list[Row], store_of: StoreOf) -> None:
    for store in (store_of(rows), store_of([])):
        events = history(store, np.array([1, 10**12]), times("2020-01-01", "NaT"))
        assert events.offsets.tolist() == [0, 0, 0]
        assert np.isnan(events.age).all()


def test_without_a_prediction_time_nothing_is_cut(rows: list[Row], store_of: StoreOf) -> None:
    events = history(store_of(rows), np.array([7, 9]), times("NaT", "NaT"))
    assert np.diff(events.offsets).tolist() == [6, 0]
    assert events.gap.tolist()[-1] == 0.0, "days count from the latest event"
    assert events.gap.tolist()[2:4] == pytest.approx([60 + 8.5 / 24] * 2)
    assert events.age[0] == pytest.approx(60.16, abs=0.01)
    assert np.isnan(events.age[1])


@given(rows=st.lists(any_row, max_size=25), queries=st.lists(any_query, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_history_matches_a_plain_search(
    store_of: StoreOf, rows: list[Row], queries: list[tuple[int, int | None]]
) -> None:
    now = [None if day is None else np.datetime64("2020-01-01", "us") + np.timedelta64(day, "D") for _, day in queries]
    events = history(
        store_of(rows),
        np.array([subject for subject, _ in queries], np.int64),
        np.array([np.datetime64("NaT") if t is None else t for t in now], "datetime64[us]"),
    )
    for row, ((subject, _), limit) in enumerate(zip(queries, now, strict=True)):
        known = [
            (time or "", code, math.inf if value is None else value, unit)
            for owner, time, code, value, unit in rows
            if owner == subject
            and not code.startswith("MEDS_")
            and (time is None or limit is None or np.datetime64(time) <= limit)
        ]
        expected = [(code, None if value == math.inf else value, unit) for _, code, value, unit in sorted(known)]
        assert [event[:3] for event in listed(events, row)] == expected
        assert all(gap == -1 or gap >= 0 for *_, gap in listed(events, row))


@given(seed=st.integers(0, 2**32), rows=st.lists(any_row, max_size=25))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_source_never_matters(store_of: StoreOf, seed: int, rows: list[Row]) -> None:
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    subject, now = np.arange(4), np.full(4, np.datetime64("2020-01-05", "us"))
    assert same(history(store_of(rows), subject, now), history(store_of(shuffled), subject, now))


def _simulated(seed: int) -> list[Row]:
    draw = random.Random(seed)
    codes = ["LAB//CEA", "LAB//PSA", "DRUG//A", "DRUG//B", "DX//C50.9", "DX//C50.1"]
    made: list[Row] = []
    for subject in range(60):
        made.append((subject, f"19{draw.randrange(30, 80)}-01-01", "MEDS_BIRTH", None, ""))
        for _ in range(30):
            code = draw.choice(codes)
            value = round(draw.lognormvariate(2, 1), 3) if code.startswith("LAB") else None
            time = None if draw.random() < 0.05 else f"2020-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}"
            made.append((subject, time, code, value, draw.choice(["ng/mL", "ug/L"]) if value else ""))
    return made


def test_what_is_fitted_and_encoded_is_the_same_in_one_piece_and_in_many(
    store_of: StoreOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = histories(store_of(_simulated(1)), np.arange(60), np.full(60, np.datetime64("2020-06-15", "us")))
    whole = known.events()
    vocabulary = fit_vocabulary(whole, min_subjects=5)
    monkeypatch.setattr("ican_ml.records.store.PIECE_EVENTS", 40)
    pieces = list(known.pieces())
    assert len(pieces) > 10
    assert sum(piece.n_rows for piece in pieces) == known.n_rows
    np.testing.assert_array_equal(np.concatenate([piece.gap for piece in pieces]), whole.gap)
    assert repr(fit_vocabulary(known, min_subjects=5).to_json()) == repr(vocabulary.to_json())
    assert fit_aggregates(vocabulary, known) == fit_aggregates(vocabulary, whole)
    nobody = histories(known.store, np.empty(0, np.int64), np.empty(0, "datetime64[us]"))
    assert [piece.n_rows for piece in nobody.pieces()] == [0]


def test_changing_the_future_changes_nothing(store_of: StoreOf) -> None:
    rows = _simulated(1)
    now = "2020-06-15"
    past = [row for row in rows if row[1] is None or row[1] <= now]
    future = [
        (subject, time, f"NEW//{i % 7}", 1e6, "kg")
        for i, (subject, time, *_) in enumerate(rows)
        if time is not None and time > now
    ]
    deaths: list[Row] = [(subject, "2020-06-16", "MEDS_DEATH", None, "") for subject in range(0, 60, 2)]
    assert len(future) > 500

    def encoded(source: list[Row]) -> tuple[bytes, ...]:
        events = history(store_of(source), np.arange(60), np.full(60, np.datetime64(now, "us")))
        vocabulary = fit_vocabulary(events, min_subjects=5)
        ids, values, has_value = vocabulary.encode(events)
        spec = fit_aggregates(vocabulary, events)
        columns = aggregate(spec, events.offsets, ids, values, has_value, events.gap, events.age)
        assert columns.shape[1] > 15
        parts = (events.offsets, ids, values, has_value, events.gap, events.age, columns)
        return (*(part.tobytes() for part in parts), repr(vocabulary.to_json()).encode())

    before = encoded(past)
    assert encoded(rows) == before
    assert encoded(past + future + deaths) == before


def test_one_row_alone_is_the_same_row_of_a_batch(store_of: StoreOf) -> None:
    store = store_of(_simulated(2))
    now = np.datetime64("2020-08-01", "us") + np.arange(60) * np.timedelta64(1, "D")
    batch = history(store, np.arange(60), now)
    for row in (0, 17, 59):
        alone = history(store, np.array([row]), now[row : row + 1])
        assert listed(alone, 0) == listed(batch, row)
        assert alone.age[0] == batch.age[row]


def test_latest_rows_are_one_a_subject() -> None:
    subject = np.array([5, 3, 5, 5, 3, 8])
    now = times("2020-01-02", "NaT", "2020-01-03", "2020-01-01", "2020-01-01", "2020-01-01")
    assert latest_rows(subject, now).tolist() == [1, 2, 5], "no limit is later than any"
    assert latest_rows(subject[:0], now[:0]).tolist() == []


def test_real_histories_hold_nothing_later(cohorts: Path) -> None:
    store = read_records(cohorts / "msk-chord")
    episodes = pl.read_parquet(cohorts / "msk-chord" / "episodes.parquet").filter(pl.col("task") == "line_benefit")
    subject, now = episodes["subject_id"].to_numpy(), episodes["prediction_time"].to_numpy()
    events = history(store, subject, now)
    assert events.n_rows == 21996
    assert ((events.gap >= 0) | (events.gap == -1)).all()
    source = pl.read_parquet(cohorts / "msk-chord" / "records" / "data" / "train" / "0.parquet")
    source = source.filter(~pl.col("code").str.starts_with("MEDS_"))
    for row in range(0, 21996, 1000):
        known = source.filter(
            (pl.col("subject_id") == subject[row]) & (pl.col("time").is_null() | (pl.col("time") <= now[row]))
        )
        assert sorted(known["code"].to_list()) == sorted(code for code, *_ in listed(events, row))
