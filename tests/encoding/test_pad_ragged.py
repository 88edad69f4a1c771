"""`pad_ragged`: any dtypes, cut and filled rows, buffers used again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.pad_ragged import pad_ragged
from tests.encoding.batches import both, fuzz

_DTYPES = st.sampled_from([np.int32, np.uint16, np.float32, np.int64, np.float64, np.bool_])


@both
@fuzz
@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(0, 12),
    st.lists(_DTYPES, max_size=3),
    st.sampled_from([0, 3, 2**31 + 5]),
)
def test_rows_are_cut_and_filled(backend: Backend, lengths: list[int], width: int, dtypes: list[type], at: int) -> None:
    offsets = np.cumsum([at, *lengths], dtype=np.int64)
    columns = [np.random.default_rng(i).integers(0, 100, sum(lengths)).astype(d) for i, d in enumerate(dtypes)]
    fills = [1] * len(columns)
    padded, mask = pad_ragged(offsets, columns, width, fills, backend=backend)
    assert mask.dtype == np.bool_
    assert mask.shape == (len(lengths), width)
    for column, found in zip(columns, padded, strict=True):
        assert found.dtype == column.dtype
        for r, n in enumerate(lengths):
            row = column[offsets[r] - at :][:n][:width].tolist()
            assert found[r].tolist() == row + [1] * (width - len(row))
            assert mask[r].tolist() == [True] * len(row) + [False] * (width - len(row))


@both
def test_a_former_result_is_written_over(backend: Backend) -> None:
    offsets, column = np.array([0, 3, 4]), np.array([5, 6, 7, 8], np.int32)
    out = pad_ragged(offsets, [column], 4, [-1], backend=backend)
    again = pad_ragged(np.array([0, 0, 4]), [column], 4, [-1], out=out, backend=backend)
    assert again[0][0] is out[0][0]
    assert out[0][0].tolist() == [[-1] * 4, [5, 6, 7, 8]]
    assert out[1].tolist() == [[False] * 4, [True] * 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": np.array([0, 2, 1])}, "never decrease"),
        ({"offsets": np.array([0, 1, 3], np.int32)}, "must be int64"),
        ({"offsets": np.array([0, 1, 4])}, "must have 4 entries"),
        ({"width": -1}, "width must be"),
        ({"fills": [0, 0]}, "one value a column, 1; got 2"),
        ({"out": ([np.empty((2, 2))], np.empty((2, 2), bool))}, "out must be a result"),
        ({"out": ([np.empty((2, 3), np.int32)], np.empty((2, 3), bool))}, "out must be a result"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"offsets": np.array([0, 1, 3]), "columns": [np.zeros(3, np.int32)], "width": 2} | change
    with pytest.raises(ValueError, match=message):
        pad_ragged(**arguments)  # type: ignore[arg-type]
