"""`bag` and `bag_transposed`: products with a table, in every mode of the kernels, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.encoding import cpu
from ican_ml.encoding.backends import Backend
from ican_ml.encoding.bag import bag, bag_transposed
from ican_ml.encoding.csr import CSRBatch
from tests.encoding.batches import batches, both, fuzz, random_batch, rows_of, shuffled

_WEIGHTS = st.floats(-8, 8, width=16)


@both
@fuzz
@given(batches(_WEIGHTS), st.sampled_from([0, 1, 21, 32, 37, 64, 70]))
def test_bags_are_weighted_sums(backend: Backend, batch: CSRBatch, width: int) -> None:
    rng = np.random.default_rng(width)
    table = rng.standard_normal((batch.n_features, width)).astype(np.float32)
    by_row = rng.standard_normal((batch.n_rows, width)).astype(np.float32)
    found, transposed = bag(batch, table, backend=backend), bag_transposed(batch, by_row, backend=backend)
    assert found.dtype == transposed.dtype == np.float32
    expected, expected_transposed = np.zeros((batch.n_rows, width)), np.zeros((batch.n_features, width))
    for r, row in enumerate(rows_of(batch)):
        for feature, value in row:
            expected[r] += float(value) * table[feature].astype(np.float64)
            expected_transposed[feature] += float(value) * by_row[r].astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(transposed, expected_transposed, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("width", [1, 31, 32, 100, 256])
@pytest.mark.parametrize("n_rows", [3, 200])
def test_errors_are_at_most_twice_those_of_plain_float32(
    width: int, n_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 200 rows there are entries enough for the table to be laid out in tiles."""
    monkeypatch.setattr(cpu, "_CACHED_TABLE", 0)
    batch, rng = shuffled(random_batch(n_rows, 500, 0.4)), np.random.default_rng(1)
    table = rng.standard_normal((500, width)).astype(np.float32)
    by_row = rng.standard_normal((n_rows, width)).astype(np.float32)
    matrix = batch.to_scipy()
    for found, plain, exact in (
        (bag(batch, table), matrix @ table, matrix.astype(np.float64) @ table.astype(np.float64)),
        (bag_transposed(batch, by_row), matrix.T @ by_row, matrix.T.astype(np.float64) @ by_row.astype(np.float64)),
    ):
        assert np.abs(found - exact).max() <= 2 * np.abs(plain - exact).max() + 1e-7


def test_16_bits_give_the_same_bits() -> None:
    batch = random_batch(60, 300, 0.4)
    table = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    np.testing.assert_array_equal(bag(batch.compact(), table), bag(batch, table))
    by_row = np.ascontiguousarray(table[:60])
    np.testing.assert_array_equal(bag_transposed(batch.compact(), by_row), bag_transposed(batch, by_row))


def test_a_table_of_another_shape_or_dtype_is_refused() -> None:
    batch = random_batch(2, 4, 1)
    for wrong in (np.ones((3, 2), np.float32), np.ones((4, 2)), np.ones(4, np.float32), np.ones((2, 4), np.float32).T):
        with pytest.raises(ValueError, match=r"table must be contiguous float32 \(4, width\)"):
            bag(batch, wrong)
    with pytest.raises(ValueError, match=r"rows_table must be contiguous float32 \(2, width\)"):
        bag_transposed(batch, np.ones((4, 2), np.float32))
