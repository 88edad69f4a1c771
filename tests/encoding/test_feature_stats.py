"""`feature_stats`: every entry counts, at once or in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch
from ican_ml.encoding.feature_stats import feature_stats
from tests.encoding.batches import FINITE, batches, both, fuzz, random_batch, rows_of


@both
@fuzz
@given(batches(FINITE))
def test_it_counts_and_sums_every_stored_entry(backend: Backend, batch: CSRBatch) -> None:
    found = feature_stats(batch, backend=backend)
    entries: dict[int, list[float]] = {}
    for feature, value in (e for row in rows_of(batch) for e in row):
        entries.setdefault(feature, []).append(float(value))
    assert found.sum.dtype == found.sum_of_squares.dtype == np.float64
    assert found.count.dtype == np.int64
    assert found.sum.shape == found.sum_of_squares.shape == found.count.shape == (batch.n_features,)
    for feature, values in entries.items():
        size = math.fsum(abs(v) for v in values)
        assert abs(found.sum[feature] - math.fsum(values)) <= 1e-14 * size
        assert found.sum_of_squares[feature] == pytest.approx(math.fsum(v * v for v in values), rel=1e-13)
        assert found.count[feature] == sum(v != 0 for v in values)
    assert np.count_nonzero(found.count) == sum(any(v != 0 for v in values) for values in entries.values())


@both
def test_pieces_add_up(backend: Backend) -> None:
    batch = random_batch(40, 300, 0.2).compact()
    whole = feature_stats(batch, backend=backend)
    pieces = feature_stats((batch.rows(i, i + 8) for i in range(0, 40, 8)), backend=backend)
    for name in ("sum", "sum_of_squares", "count"):  # sums of whole numbers are exact in any order
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def test_pieces_must_be_there_and_of_one_width() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        feature_stats([])
    with pytest.raises(ValueError, match="one width, got 3 and 4"):
        feature_stats([random_batch(1, 3, 1), random_batch(1, 4, 1)])
