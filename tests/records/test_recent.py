"""Which events a network reads: the rule as written, the same from memory and from a store, and never the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ican_ml.records.recent import CodedRecords, RecordLoader, recent
from ican_ml.records.store import RecordStore, histories
from ican_ml.records.vocabulary_fit import fit_vocabulary
from tests.records.conftest import Row, make_store

_DAYS = st.sampled_from([None, *(f"2020-01-{day:02}" for day in range(1, 12))])
_CODES = st.sampled_from(["LAB//A", "LAB//B", "DX//C", "MEDS_BIRTH"])
_EVENT = st.tuples(st.integers(1, 3), _DAYS, _CODES, st.one_of(st.none(), st.floats(-9, 9, width=16)), st.just(""))
_ROWS = st.lists(_EVENT, min_size=1, max_size=60)
_QUERIES = st.lists(st.tuples(st.integers(0, 4), _DAYS), min_size=1, max_size=5)


def _by_hand(ids: list[int], static: list[bool], limit: int, per_code: int) -> list[int]:
    n = len(ids)
    before = [i for i in range(n) if static[i] and ids[:i].count(ids[i]) < per_code]
    dated = [i for i in range(n) if not static[i] and ids[i + 1 :].count(ids[i]) < per_code]
    dated = dated[max(0, len(dated) - (limit - min(len(before), limit // 2))) :]
    return before[: limit - len(dated)] + dated


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=25), st.integers(1, 9), st.integers(1, 4))
def test_the_rule(events: list[tuple[int, bool]], limit: int, per_code: int) -> None:
    events.sort(key=lambda event: not event[1])
    ids, static = [event[0] for event in events], [event[1] for event in events]
    offsets = np.array([0, 0, len(ids)])
    kept = recent(offsets, np.array(ids, np.int64), np.array(static, bool), limit, per_code)
    assert np.flatnonzero(kept).tolist() == _by_hand(ids, static, limit, per_code)


def _loaded(store: RecordStore, queries: list[tuple[int, str | None]], limit: int, per_code: int) -> tuple[object, ...]:
    subject = np.array([query[0] for query in queries], np.int64)
    time = np.array([query[1] or "NaT" for query in queries], "datetime64[us]")
    everyone = histories(store, store.subject_id, np.full(len(store.subject_id), "NaT", "datetime64[us]")).events()
    vocabulary = fit_vocabulary(everyone, min_subjects=1)
    rows = histories(store, subject, time)
    loader = RecordLoader(rows, CodedRecords.of(store, vocabulary), limit, per_code)
    return rows.events(), vocabulary, loader


@settings(deadline=None, max_examples=150)
@given(_ROWS, _QUERIES, st.integers(1, 9), st.sampled_from([1, 2, 100]))
def test_a_store_gives_the_events_that_the_rule_keeps_in_memory(
    rows: list[Row], queries: list[tuple[int, str | None]], limit: int, per_code: int
) -> None:
    events, vocabulary, loader = _loaded(make_store(rows), queries, limit, per_code)
    batch = loader.batch(np.arange(len(queries)))
    ids, values, has_value = vocabulary.encode(events)
    kept = recent(events.offsets, ids, events.gap < 0, limit, per_code)
    for r in range(len(queries)):
        part = np.arange(events.offsets[r], events.offsets[r + 1])
        part = part[kept[part]]
        for name, column in (("code", ids), ("value", values), ("has_value", has_value), ("gap", events.gap)):
            np.testing.assert_array_equal(batch[name][r, : len(part)], column[part])
            assert not batch[name][r, len(part) :].any()


@settings(deadline=None, max_examples=60)
@given(_ROWS, _ROWS, st.integers(1, 9))
def test_the_future_changes_no_batch(rows: list[Row], others: list[Row], limit: int) -> None:
    queries = [(subject, "2020-01-06") for subject in (1, 2, 3)]
    known = [row for row in rows if row[1] is None or row[1] <= "2020-01-06"]
    future = [
        (subject, "2020-01-07", code, value, unit) for subject, _, code, value, unit in others if code != "MEDS_BIRTH"
    ]
    _, vocabulary, loader = _loaded(make_store(known), queries, limit, 2)
    changed = make_store([*known, *future])
    rows_after = histories(changed, np.array([1, 2, 3]), np.full(3, "2020-01-06", "datetime64[us]"))
    after = RecordLoader(rows_after, CodedRecords.of(changed, vocabulary), limit, 2)
    for name, array in loader.batch(np.arange(3)).items():
        np.testing.assert_array_equal(after.batch(np.arange(3))[name], array)


def test_coded_records_may_lie_on_disk_and_are_made_piece_by_piece(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(rows)
    vocabulary = fit_vocabulary(histories(store, store.subject_id, np.full(3, "NaT", "datetime64[us]")).events(), 1)
    whole = CodedRecords.of(store, vocabulary)
    monkeypatch.setattr("ican_ml.records.recent.PIECE_EVENTS", 1)
    pieces = CodedRecords.of(store, vocabulary, tmp_path)
    assert not list(tmp_path.iterdir())
    assert isinstance(pieces.events, np.memmap)
    np.testing.assert_array_equal(pieces.events.tolist(), whole.events.tolist())
