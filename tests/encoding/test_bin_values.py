"""`bin_values`: whole-number arithmetic on order statistics, equal on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.bin_values import bin_values
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.normalize_log1p import normalize_log1p
from tests.encoding.batches import COUNTS, SIGNED, batches, both, fuzz, random_batch, rows_of


@both
@fuzz
@given(batches(SIGNED) | batches(COUNTS), st.sampled_from([1, 2, 3, 10, 51, 1000, 2**20]))
def test_bins_are_the_documented_shares(backend: Backend, batch: CSRBatch, n_bins: int) -> None:
    found = bin_values(batch, n_bins, backend=backend)
    assert found.dtype == np.int32
    expected = []
    for row in rows_of(batch):
        binned = [float(v) for _, v in row if v != 0 and not np.isnan(v)]
        for _, value in row:
            upto = sum(other <= value for other in binned)
            is_binned = value != 0 and not np.isnan(value)
            expected.append(math.ceil(n_bins * upto / len(binned)) if is_binned else 0)
    assert found.tolist() == expected


@both
@fuzz
@given(batches(SIGNED), st.integers(1, 60))
def test_edges_are_order_statistics(backend: Backend, batch: CSRBatch, n_bins: int) -> None:
    found = iter(bin_values(batch, n_bins, backend=backend).tolist())
    for row in rows_of(batch):
        ordered = sorted(float(v) for _, v in row if v != 0 and not np.isnan(v))
        edges = [ordered[b * len(ordered) // n_bins] for b in range(1, n_bins)] if ordered else []
        for _, value in row:
            bin_ = next(found)
            if value != 0 and not np.isnan(value):
                assert bin_ == 1 + sum(edge <= value for edge in edges)


@pytest.mark.parametrize("n_bins", [1, 7, 51])
def test_long_rows_are_the_same_on_every_backend(n_bins: int) -> None:
    batch = random_batch(12, 3000, 0.4)
    rng = np.random.default_rng(0)
    signed = batch.with_values(rng.standard_normal(batch.nnz).astype(np.float32).round(2))
    for each in (batch, batch.compact(), signed, batch.with_values(batch.values * 300)):
        np.testing.assert_array_equal(
            bin_values(each, n_bins, backend="cpu"), bin_values(each, n_bins, backend="reference")
        )


@both
def test_an_increasing_change_of_a_row_leaves_its_bins(backend: Backend) -> None:
    batch = random_batch(20, 500, 0.4)
    np.testing.assert_array_equal(
        bin_values(batch, 51, backend=backend), bin_values(normalize_log1p(batch), 51, backend=backend)
    )


@pytest.mark.parametrize("n_bins", [0, -1, 2**20 + 1])
def test_a_number_of_bins_out_of_range_is_refused(n_bins: int) -> None:
    with pytest.raises(ValueError, match="n_bins must lie in"):
        bin_values(random_batch(1, 3, 1), n_bins)
