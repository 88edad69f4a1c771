"""`lookup` and `row_sums`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.lookup import lookup, row_sums
from tests.encoding.batches import COUNTS, FINITE, batches, both, fuzz, random_batch, rows_of


@both
@fuzz
@given(batches(COUNTS))
def test_row_sums_are_rounded_once(backend: Backend, batch: CSRBatch) -> None:
    found = row_sums(batch, backend=backend)
    with np.errstate(over="ignore"):
        expected = np.array([math.fsum(float(v) for _, v in row) for row in rows_of(batch)], np.float64).astype(
            np.float32
        )
    np.testing.assert_allclose(found, expected, rtol=1.2e-7)
    assert found.dtype == np.float32


@fuzz
@given(batches(FINITE), st.data())
def test_lookup_finds_the_first_stored_entry(batch: CSRBatch, data: st.DataObject) -> None:
    features = data.draw(st.lists(st.integers(-1, batch.n_features - 1), max_size=6))
    values, stored = lookup(batch, np.array(features, np.int32))
    assert values.shape == stored.shape == (batch.n_rows, len(features))
    for r, row in enumerate(rows_of(batch)):
        for q, feature in enumerate(features):
            held = [value for f, value in row if f == feature]
            assert stored[r, q] == bool(held)
            assert values[r, q] == (held[0] if held else 0)


def test_lookup_of_each_rows_own_features_tells_stored_zeros_from_nothing() -> None:
    matrix = CSRBatch(np.array([0, 2, 2, 3]), np.array([0, 2, 1], np.int32), np.array([5, 0, 7], np.float32), 3)
    values, stored = lookup(matrix, [[2, 0, -1], [1, 1, 1], [0, 2, 1]])
    assert values.tolist() == [[0, 5, 0], [0, 0, 0], [0, 0, 7]]
    assert stored.tolist() == [[True, True, False], [False] * 3, [False, False, True]]


def test_lookup_refuses_a_feature_that_is_not_there() -> None:
    for features in ([4], [-2], [0.5], [[1]], 1):
        with pytest.raises(ValueError, match="features must"):
            lookup(random_batch(2, 4, 1), features)
