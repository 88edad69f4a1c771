"""`normalize_log1p` against its formula, its error against plain float32, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.normalize_log1p import normalize_log1p
from tests.encoding.batches import COUNTS, batches, both, fuzz, random_batch, rows_of


@both
@fuzz
@given(batches(COUNTS))
def test_it_follows_its_formula(backend: Backend, batch: CSRBatch) -> None:
    found = normalize_log1p(batch, 1e4, backend=backend)
    assert found.indptr is batch.indptr
    assert found.indices is batch.indices
    assert found.values.dtype == np.float32
    expected = []
    for row in rows_of(batch):
        total = math.fsum(float(v) for _, v in row)
        expected += [math.log1p(float(v) * (1e4 / total)) if total else 0.0 for _, v in row]
    np.testing.assert_allclose(found.values, expected, rtol=3e-7, atol=0)


@both
def test_it_errs_at_most_twice_as_much_as_plain_float32(backend: Backend) -> None:
    rng = np.random.default_rng(1)
    dense = np.exp(rng.uniform(-18, 9, (20, 5000))).astype(np.float32)
    batch = CSRBatch.from_dense(dense, keep_zeros=False)
    exact = np.log1p(dense.astype(np.float64) * 1e4 / dense.sum(axis=1, dtype=np.float64, keepdims=True)).ravel()
    plain = np.log1p(dense * (np.float32(1e4) / dense.sum(axis=1, keepdims=True))).ravel()
    found = normalize_log1p(batch, backend=backend).values
    for scale in (1.0, exact):  # absolute, then relative
        assert np.abs((found - exact) / scale).max() <= 2 * np.abs((plain - exact) / scale).max()


@both
@pytest.mark.parametrize("row", [[1e-40, 3e-40], [3e38] * 3, [1e-38]])
def test_rows_whose_factor_float32_cannot_hold_are_still_right(backend: Backend, row: list[float]) -> None:
    values = np.array(row, np.float32)
    exact = np.log1p(values.astype(np.float64) * (1e4 / values.sum(dtype=np.float64)))
    found = normalize_log1p(CSRBatch.from_dense(values[None], keep_zeros=False), backend=backend)
    np.testing.assert_allclose(found.values, exact, rtol=3e-7)


@both
def test_rows_that_sum_to_zero_are_zero(backend: Backend) -> None:
    batch = CSRBatch.from_dense(np.zeros((2, 3)), keep_zeros=True)
    assert normalize_log1p(batch, backend=backend).values.tolist() == [0] * 6


@both
def test_in_place_and_into_a_given_array_are_the_same(backend: Backend) -> None:
    batch = random_batch(50, 400, 0.3)
    expected = normalize_log1p(batch, backend=backend).values
    out = np.empty(batch.nnz, np.float32)
    assert normalize_log1p(batch, out=out, backend=backend).values is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(normalize_log1p(batch, out=batch.values, backend=backend).values, expected)
    np.testing.assert_array_equal(batch.values, expected)


@both
def test_counts_in_16_bits_give_the_same_bits(backend: Backend) -> None:
    batch = random_batch(50, 400, 0.3)
    narrow = batch.compact()
    assert (narrow.indices.dtype, narrow.values.dtype) == (np.uint16, np.uint16)
    expected = normalize_log1p(batch, backend=backend).values
    np.testing.assert_array_equal(normalize_log1p(narrow, backend=backend).values, expected)


@both
@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_values_that_are_no_counts_are_refused(backend: Backend, bad: float) -> None:
    batch = CSRBatch(np.array([0, 2]), np.array([0, 1], np.int32), np.array([1, bad], np.float32), 2)
    with pytest.raises(ValueError, match="zero or more"):
        normalize_log1p(batch, backend=backend)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_that_is_not_positive_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="target_sum"):
        normalize_log1p(random_batch(1, 3, 1), target)


@pytest.mark.parametrize("out", [np.empty(2, np.float32), np.empty(3), np.empty(6, np.float32)[::2]])
def test_an_array_to_write_into_must_fit(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be contiguous float32 \(3,\)"):
        normalize_log1p(random_batch(1, 3, 1), out=out)
