"""The operators in NumPy: the oracle of the other backends, and the path that serves a single patient.

In and out as `operators` documents. Written for certainty, then speed: arithmetic in float64 rounded once, sorting
by `numpy.lexsort`. It needs NumPy alone and shares no code with the other backends, so that agreement means
something. Arguments are trusted; `operators` checks them.
"""

from __future__ import annotations

import numpy as np

from ican_ml.encoding.csr import Bool, CSRBatch, FeatureStats, Float32, Float64, Int32, Int64


def normalize_log1p(batch: CSRBatch, target_sum: float) -> CSRBatch:
    """See `operators.normalize_log1p`."""
    totals = _row_totals(batch)
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals != 0)
    scaled = np.repeat(factors, np.diff(batch.indptr))
    scaled *= batch.values
    return batch.with_values(np.log1p(scaled, out=scaled).astype(np.float32))


def feature_stats(batch: CSRBatch) -> FeatureStats:
    """See `operators.feature_stats`."""
    values = batch.values.astype(np.float64)
    return FeatureStats(
        sum=_sums(batch.indices, values, batch.n_features),
        sum_of_squares=_sums(batch.indices, values * values, batch.n_features),
        count=np.bincount(batch.indices[batch.values != 0], minlength=batch.n_features).astype(np.int64),
    )


def rank_tokens(batch: CSRBatch, scale: Float32, k: int, by_magnitude: bool) -> tuple[Int32, Int32]:
    """See `operators.rank_tokens`."""
    tokens = np.full((batch.n_rows, k), -1, np.int32)
    lengths = np.zeros(batch.n_rows, np.int32)
    with np.errstate(all="ignore"):  # an overflowing key is infinite and ranks first; an underflowing one is zero
        keys = batch.values * scale[batch.indices]
    if by_magnitude:
        keys = np.abs(keys)
    is_token = (keys != 0) & ~np.isnan(keys)
    for row in range(batch.n_rows if k else 0):
        start, end = batch.indptr[row], batch.indptr[row + 1]
        kept = is_token[start:end]
        row_keys, features = keys[start:end][kept], batch.indices[start:end][kept]
        if row_keys.size > k:
            among_first = row_keys >= np.partition(row_keys, -k)[-k]
            row_keys, features = row_keys[among_first], features[among_first]
        ranked = features[np.lexsort((features, -row_keys))[:k]]
        tokens[row, : ranked.size] = ranked
        lengths[row] = ranked.size
    return tokens, lengths


def row_sums(batch: CSRBatch) -> Float32:
    """See `operators.row_sums`."""
    with np.errstate(over="ignore"):  # a total beyond float32 is infinite
        return _row_totals(batch).astype(np.float32)


def lookup(batch: CSRBatch, features: Int32 | Int64) -> tuple[Float32, Bool]:
    """See `operators.lookup`."""
    ordered = batch.sorted()
    if not (batch.nnz and features.size):
        return np.zeros(features.shape, np.float32), np.zeros(features.shape, np.bool_)
    held = ordered.row_ids() * batch.n_features + ordered.indices
    asked = np.arange(batch.n_rows, dtype=np.int64)[:, None] * batch.n_features + features
    found = np.minimum(np.searchsorted(held, asked), held.size - 1)
    stored = (held[found] == asked) & (features >= 0)
    return np.where(stored, ordered.values[found], np.float32(0)), stored


def _row_totals(batch: CSRBatch) -> Float64:
    return _sums(batch.row_ids(), batch.values, batch.n_rows)


def _sums(groups: Int32 | Int64, values: Float32 | Float64, n_groups: int) -> Float64:
    # NumPy counts nothing as integers, so an empty batch needs the cast.
    return np.bincount(groups, values, n_groups).astype(np.float64, copy=False)
