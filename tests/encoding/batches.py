"""Sparse batches that the operators' tests share: invented by hypothesis, or random and large."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from ican_ml.encoding.backends import Backend
from ican_ml.encoding.csr import CSRBatch

BACKENDS: tuple[Backend, ...] = ("reference", "cpu")
both = pytest.mark.parametrize("backend", BACKENDS)
fuzz = settings(deadline=None, max_examples=100)

COUNTS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, 255.0, 256.0, 3e4, 2.0**24, 1e30, 3e38]),
    st.integers(0, 10**6).map(float),
)
SIGNED = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-30, 1e30, -3e38, math.nan, math.inf]),
    st.floats(-100, 100, width=32),
)
FINITE = SIGNED.filter(math.isfinite)


@st.composite
def batches(draw: st.DrawFn, values: st.SearchStrategy[float]) -> CSRBatch:
    """Rows in any order of features, with duplicates, empty rows and stored zeros.

    In 32 or 16 bits where they fit, and with row pointers of the first or of a far later row of a larger matrix.
    """
    n_features = draw(st.sampled_from([1, 2, 5, 300, 70000]))
    entry = st.tuples(st.integers(0, n_features - 1), values)
    rows = draw(st.lists(st.lists(entry, max_size=40), max_size=5))
    indptr = np.cumsum([draw(st.sampled_from([0, 0, 7, 2**31 + 5])), *map(len, rows)], dtype=np.int64)
    entries = [e for row in rows for e in row]
    indices = np.array([f for f, _ in entries], np.int32)
    batch = CSRBatch(indptr, indices, np.array([v for _, v in entries], np.float32), n_features)
    return batch.compact() if draw(st.booleans()) and not np.isnan(batch.values).any() else batch


def rows_of(batch: CSRBatch) -> list[list[tuple[int, np.float32]]]:
    """Each row's entries as pairs of feature and value."""
    bounds = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    return [[(int(batch.indices[i]), np.float32(batch.values[i])) for i in range(*pair)] for pair in bounds]


def random_batch(n_rows: int, n_features: int, density: float, seed: int = 0) -> CSRBatch:
    """Counts 1 to 59, features ascending."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 60, (n_rows, n_features)) * (rng.random((n_rows, n_features)) < density)
    return CSRBatch.from_dense(dense, keep_zeros=False)


def shuffled(batch: CSRBatch, seed: int = 0) -> CSRBatch:
    """The same rows with other feature ids, no longer ascending."""
    ids = np.random.default_rng(seed).permutation(batch.n_features).astype(batch.indices.dtype)
    return CSRBatch(batch.indptr, ids[batch.indices], batch.values, batch.n_features)
