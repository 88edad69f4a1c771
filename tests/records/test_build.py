"""A store on disk is the one in memory, however its events were spread, whoever was stopped or raced in building it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ican_ml.records.build import ARRAYS, Chunk, build, open_store
from ican_ml.records.meds import read_records
from ican_ml.records.store import RecordStore
from tests.records.conftest import PARENTS, Row, columns, make_store

_TIMES = st.sampled_from([None, "1950-01-01", "2020-01-01", "2020-01-01T08:30", "2021-05-05"])
_CODES = st.sampled_from(["MEDS_BIRTH", "MEDS_DEATH", "LAB//HGB", "DX//C50.9", "SEX//F", "\u00c4//1"])
_VALUES = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5, 120.0, 3e38]))
_ROWS = st.lists(
    st.tuples(st.sampled_from([-5, 1, 2, 3, 2**62]), _TIMES, _CODES, _VALUES, st.sampled_from(["", "g/L"])), max_size=30
)


def _chunks(rows: Sequence[Row], size: int) -> Iterator[Chunk]:
    for start in range(0, len(rows), size):
        yield Chunk(**columns(rows[start : start + size]))


def _same(found: RecordStore, expected: RecordStore) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert (found.codes, found.units, dict(found.parents)) == (expected.codes, expected.units, dict(expected.parents))


@settings(deadline=None, max_examples=60)
@given(_ROWS, st.integers(1, 4), st.integers(1, 8), st.sampled_from([1, 3, 1000]), st.randoms())
def test_sources_chunks_ranges_and_order_leave_no_trace(
    rows: list[Row], n_sources: int, chunk: int, range_events: int, random: object
) -> None:
    expected = make_store(rows)
    random.shuffle(rows)  # type: ignore[attr-defined]
    sources = {str(n): partial(_chunks, rows[n::n_sources], chunk) for n in range(n_sources)}
    with tempfile.TemporaryDirectory() as folder:
        _same(build(Path(folder) / "store", sources, PARENTS, range_events=range_events, workers=2), expected)


def test_a_stopped_build_goes_on_and_reads_nothing_twice(tmp_path: Path, rows: list[Row]) -> None:
    read: list[str] = []

    def source(name: str, part: list[Row]) -> Iterator[Chunk]:
        read.append(name)
        yield from _chunks(part, 2)
        if name == "b" and read.count("b") == 1:
            raise KeyboardInterrupt

    sources = {"a": partial(source, "a", rows[::2]), "b": partial(source, "b", rows[1::2])}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "store", sources, PARENTS, workers=1)
    assert not (tmp_path / "store").exists()
    _same(build(tmp_path / "store", sources, PARENTS, workers=1), make_store(rows))
    assert read == ["a", "b", "b"]
    _same(build(tmp_path / "store", sources, PARENTS), make_store(rows))
    assert read == ["a", "b", "b"], "a finished store is opened"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "store.lock"]


def test_of_several_at_once_one_builds(tmp_path: Path, rows: list[Row]) -> None:
    built: list[int] = []

    def source() -> Iterator[Chunk]:
        built.append(1)
        yield from _chunks(rows, 2)

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(build, tmp_path / "store", {"a": source}, PARENTS) for _ in range(4)]
        for job in jobs:
            _same(job.result(), make_store(rows))
    assert built == [1]


def test_arrays_are_mapped_and_read_only(tmp_path: Path, rows: list[Row]) -> None:
    store = build(tmp_path / "store", {"a": partial(_chunks, rows, 3)}, PARENTS)
    assert isinstance(store.time, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.code[:] = 0


def test_another_format_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    build(tmp_path / "store", {"a": partial(_chunks, rows, 3)}, PARENTS)
    path = tmp_path / "store" / "store.json"
    path.write_text(path.read_text().replace("ican-records/1", "ican-records/0"))
    with pytest.raises(ValueError, match="expected format 'ican-records/1', got 'ican-records/0'"):
        open_store(tmp_path / "store")


def test_a_store_is_made_anew_only_where_the_data_changed(tmp_path: Path) -> None:
    def write(values: list[float]) -> None:
        frame = pl.DataFrame(
            {"subject_id": [1, 2], "time": [datetime(2020, 1, 1)] * 2, "code": ["A", "B"], "numeric_value": values}
        )
        (tmp_path / "records" / "data").mkdir(parents=True, exist_ok=True)
        frame.write_parquet(tmp_path / "records" / "data" / "0.parquet")

    def stores() -> int:
        return len(list((tmp_path / "stores").glob("*/store.json")))

    for values, expected in (([1, 2], 1), ([1, 2], 1), ([1, 3], 2)):
        write([float(value) for value in values])
        _same(read_records(tmp_path, tmp_path / "stores"), read_records(tmp_path, chunk_rows=1))
        assert stores() == expected
