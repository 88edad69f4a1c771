"""Summary columns: the numbers a clinician would compute by hand, and the same bits in every batch."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.records.aggregates import Aggregates, aggregate, fit_aggregates
from ican_ml.records.vocabulary import FIRST_KNOWN, Events, Vocabulary

VOCABULARY = Vocabulary(codes=("LAB//CEA", "DRUG//A", "SEX//F"), normal={("LAB//CEA", ""): (0.0, 1.0)}, parents={})
CEA, DRUG, SEX = 2, 3, 4
Event = tuple[int, float, float | None]
YEAR = 365.25


def flat(rows: list[list[Event]]) -> dict[str, np.ndarray]:
    """Arrays of events given as (id, gap, value or None) by row."""
    events = [event for row in rows for event in row]
    return {
        "offsets": np.cumsum([0, *map(len, rows)]).astype(np.int64),
        "ids": np.array([e[0] for e in events], np.int64),
        "values": np.array([e[2] or 0.0 for e in events], np.float32),
        "has_value": np.array([e[2] is not None for e in events], bool),
        "gap": np.array([e[1] for e in events], np.float32),
    }


def fit(rows: list[list[Event]], min_rows: int | None = 1, most: int = 9) -> Aggregates:
    parts = flat(rows)
    events = Events(
        offsets=parts["offsets"],
        code=((parts["ids"] - FIRST_KNOWN) % 4).astype(np.int32),
        value=np.where(parts["has_value"], parts["values"], np.float32(np.nan)),
        unit=np.zeros(len(parts["ids"]), np.int32),
        gap=parts["gap"],
        age=np.full(len(rows), 61.5, np.float32),
        codes=(*VOCABULARY.codes, "NEW"),
    )
    return fit_aggregates(VOCABULARY, events, most=most, min_rows=min_rows)


def compute(spec: Aggregates, rows: list[list[Event]]) -> np.ndarray:
    return aggregate(spec, **flat(rows), age=np.full(len(rows), 61.5, np.float32))


ROWS: list[list[Event]] = [
    [(SEX, -1, None), (CEA, 2 * YEAR, 1.0), (CEA, YEAR, 2.0), (DRUG, 10, None), (CEA, 0, 4.5)],
    [(CEA, 30, 2.0), (CEA, 30, 4.0), (CEA, 90, 5.0)],
    [(CEA, 7, -1.0)],
    [(DRUG, 3, None), (DRUG, 400, None)],
    [],
]


def test_columns_by_hand() -> None:
    spec = fit(ROWS)
    assert spec.names == (
        *("age", "LAB//CEA:count", "DRUG//A:count", "SEX//F:count", "LAB//CEA:recency", "DRUG//A:recency"),
        *("LAB//CEA:last", "LAB//CEA:mean", "LAB//CEA:slope"),
        *("LAB//CEA:change", "LAB//CEA:above_lowest", "LAB//CEA:below_highest", "LAB//CEA:recent"),
    )
    none, log1p = math.nan, math.log1p
    several = np.polyfit([-30 / YEAR, -30 / YEAR, -90 / YEAR], [2.0, 4.0, 5.0], 1)[0]
    expected = [
        [61.5, log1p(3), log1p(1), log1p(1), log1p(0), log1p(10), 4.5, 2.5, 1.75, 2.5, 3.5, 0, 4.5],
        [61.5, log1p(3), 0, 0, log1p(30), none, 3.0, 11 / 3, several, -2.0, 1.0, 2.0, 11 / 3],
        [61.5, log1p(1), 0, 0, log1p(7), none, -1.0, -1.0, 0, none, 0, 0, -1.0],
        [61.5, 0, log1p(2), 0, none, log1p(3), *[none] * 7],
        [61.5, *[none] * 12],
    ]
    found = compute(spec, ROWS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_groups_by_hand() -> None:
    codes = ("DRUG//A//START", "DRUG//A//STOP", "DRUG//B//START", "SEX//F", "SEX//M")
    parents = {"DRUG//A//START": ("CHEMO",), "DRUG//B//START": ("CHEMO",)}
    vocabulary = Vocabulary(codes=codes, normal={}, parents=parents)
    rows = [[(2, 400.0, None), (3, 100.0, None), (4, 20.0, None), (5, -1.0, None)], [(6, -1.0, None)], []]
    parts = flat(rows)
    events = Events(
        offsets=parts["offsets"],
        code=(parts["ids"] - FIRST_KNOWN).astype(np.int32),
        value=np.full(5, np.nan, np.float32),
        unit=np.zeros(5, np.int32),
        gap=parts["gap"],
        age=np.full(3, np.nan, np.float32),
        codes=codes,
        parents=parents,
    )
    spec = fit_aggregates(vocabulary, events, most=32, min_rows=1)
    names = ("CHEMO", "DRUG", "DRUG//A", "SEX")
    assert spec.groups == ((2, 4), (2, 3, 4), (2, 3), (5, 6)), "CHEMO and DRUG//*//START are the same: named once"
    blocks = ("count", "recency", "count_90d", "count_365d")
    assert spec.names[-16:] == tuple(f"{name}:{block}" for block in blocks for name in names)
    first = dict(zip(spec.names, compute(spec, rows)[0], strict=True))
    expected = {"CHEMO": (2, 20, 1, 1), "DRUG": (3, 20, 1, 2), "DRUG//A": (2, 100, 0, 1)}
    for name, numbers in expected.items():
        np.testing.assert_allclose([first[f"{name}:{block}"] for block in blocks], np.log1p(numbers), rtol=1e-6)
    assert first["SEX:count"] == np.float32(math.log(2))
    assert math.isnan(first["SEX:recency"])
    assert (first["SEX:count_365d"], compute(spec, rows)[1, spec.names.index("DRUG:count")]) == (0, 0)
    assert np.isnan(compute(spec, rows)[2, 1:]).all()
    assert len(fit_aggregates(vocabulary, events, most=5, min_rows=1).groups) == 1, "an eighth as many"


def test_a_static_code_has_no_recency_and_no_slope() -> None:
    spec = fit([[(CEA, -1, 2.0)], [(CEA, -1, 3.0)]])
    assert spec.names == ("age", "LAB//CEA:count", "LAB//CEA:last", "LAB//CEA:mean")
    np.testing.assert_allclose(compute(spec, [[(CEA, -1, 2.0)]])[0, 2:], [2.0, 2.0])


def test_a_static_value_is_older_than_a_dated_one() -> None:
    names = (spec := fit(ROWS)).names
    row = dict(zip(names, compute(spec, [[(CEA, -1, 5.0), (CEA, 100, 1.0), (CEA, 50, 2.0)]])[0], strict=True))
    assert row["LAB//CEA:last"] == 2.0
    assert row["LAB//CEA:mean"] == pytest.approx(8 / 3)
    assert row["LAB//CEA:slope"] == pytest.approx(YEAR / 50)
    assert row["LAB//CEA:recency"] == pytest.approx(math.log1p(50))
    only_static = dict(zip(names, compute(spec, [[(CEA, -1, 5.0)]])[0], strict=True))
    assert only_static["LAB//CEA:last"] == 5.0
    assert math.isnan(only_static["LAB//CEA:recency"])
    assert math.isnan(only_static["LAB//CEA:slope"])


def test_kept_codes_are_those_of_enough_rows() -> None:
    rows: list[list[Event]] = [[(CEA, 1, 1.0 if i < 15 else None), (DRUG, 2, None), (1, 3, None)] for i in range(30)]
    rows += [[(SEX, -1, None)] * 40]
    assert fit(rows, None).names == ("age", "LAB//CEA:count", "DRUG//A:count", "LAB//CEA:recency", "DRUG//A:recency")
    assert fit(rows, 15).value_ids == (CEA,)
    many = rows * 300
    assert fit(many, None).code_ids == (CEA, DRUG, SEX), "half a percent of 9,300 rows"
    assert fit(many, 301).code_ids == (CEA, DRUG)
    assert fit(many, 1, most=2).code_ids == (CEA, DRUG), "the commonest"


def test_ids_beyond_the_spec_are_ignored() -> None:
    spec = fit([[(CEA, 1, 1.0)]])
    assert compute(spec, [[(CEA, 1, 1.0), (DRUG, 1, 2.0), (99, 1, 1.0)]]).shape == (1, len(spec.names))
    assert compute(fit([[]]), ROWS).shape == (5, 1)


event = st.tuples(
    st.sampled_from([1, CEA, DRUG, SEX]),
    st.sampled_from([-1.0, 0.0, 0.3, 7.0, 7.0, 400.0, 1e4]),
    st.none() | st.floats(-5, 5, width=32),
)


@given(rows=st.lists(st.lists(event, max_size=12), min_size=1, max_size=6), data=st.data())
def test_same_bits_alone_in_any_batch_and_in_any_order(rows: list[list[Event]], data: st.DataObject) -> None:
    spec = fit([*ROWS, [(DRUG, 1, 1.0), (SEX, 1, 1.0)]])
    batch = compute(spec, [*ROWS, *rows])[len(ROWS) :]
    for row, expected in zip(rows, batch, strict=True):
        assert compute(spec, [row])[0].tobytes() == expected.tobytes()
        assert compute(spec, [data.draw(st.permutations(row))])[0].tobytes() == expected.tobytes()


def test_json_restores_the_columns() -> None:
    spec = fit(ROWS)
    document = json.loads(json.dumps(spec.to_json()))
    assert Aggregates.from_json(document) == spec
    with pytest.raises(
        ValueError, match="expected encoding 'ican-aggregates' version 2, got 'ican-aggregates' version 1"
    ):
        Aggregates.from_json(document | {"version": 1})
