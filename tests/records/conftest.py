"""A few patients' records as plain tuples, and any order of them as a store."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ican_ml.records.store import RecordStore, build_store

Row = tuple[int, str | None, str, float | None, str]

ROWS: list[Row] = [
    (7, "1960-01-01", "MEDS_BIRTH", None, ""),
    (7, None, "SEX//F", None, ""),
    (7, "1959-12-31", "DX//C50.9", None, ""),
    (7, "2020-01-01", "LAB//HGB", 120.0, "g/L"),
    (7, "2020-01-01", "LAB//HGB", 11.0, "g/dL"),
    (7, "2020-03-01", "DRUG//A//START", None, ""),
    (7, "2020-03-01T08:30", "LAB//HGB", 100.0, "g/L"),
    (7, "2020-06-01", "MEDS_DEATH", None, ""),
    (3, "2020-02-01", "LAB//HGB", None, ""),
    (9, "1980-06-01", "MEDS_BIRTH", None, ""),
]
PARENTS = {"DRUG//A//START": ("DRUGCLASS//X",)}


def columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows (subject, ISO time or None, code, value or None, unit) as the columns that stores are built from."""
    codes = list(dict.fromkeys(row[2] for row in rows))
    units = list(dict.fromkeys(row[4] for row in rows))
    return {
        "subject_id": np.array([row[0] for row in rows], np.int64),
        "time": np.array([row[1] or "NaT" for row in rows], "datetime64[us]"),
        "code": np.array([codes.index(row[2]) for row in rows], np.int64),
        "value": np.array([math.nan if row[3] is None else row[3] for row in rows], np.float32),
        "unit": np.array([units.index(row[4]) for row in rows], np.int64),
        "codes": codes,
        "units": units,
    }


def make_store(rows: Sequence[Row]) -> RecordStore:
    """Store of rows in any order."""
    return build_store(**columns(rows), parents=PARENTS)


@pytest.fixture
def rows() -> list[Row]:
    """Give the rows of three subjects: 7 with everything, 3 without a birth, 9 with nothing but a birth."""
    return list(ROWS)


@pytest.fixture
def store_of() -> Callable[[Sequence[Row]], RecordStore]:
    """Give the function that sorts rows into a store."""
    return make_store
