"""The operators in NumPy: the oracle of the other backends, and the path that serves a single patient.

In and out as the operators' own modules document. Written for certainty, then speed: arithmetic in float64 rounded
once, sorting by `numpy.lexsort`. It needs NumPy alone and shares no code with the other backends, so that agreement
means something. Arguments are trusted; the operators check them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import Bool, CSRBatch, Float32, Float64, Int32, Int64


def normalize_log1p(batch: CSRBatch, target_sum: float, out: Float32) -> int:
    """See `normalize_log1p.normalize_log1p`; returns how many entries are negative or NaN."""
    refused = int(np.count_nonzero(~(batch.values >= 0)))
    if not refused:
        totals = _row_totals(batch)
        factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals != 0)
        scaled = np.repeat(factors, np.diff(batch.indptr))
        scaled *= batch.values
        out[...] = np.log1p(scaled, out=scaled)
    return refused


def row_sums(batch: CSRBatch) -> Float32:
    """See `lookup.row_sums`."""
    with np.errstate(over="ignore"):  # a total beyond float32 is infinite
        return _row_totals(batch).astype(np.float32)


def feature_stats(batch: CSRBatch) -> tuple[Float64, Float64, Int64]:
    """See `feature_stats.feature_stats`."""
    values = batch.values.astype(np.float64)
    return (
        _sums(batch.indices, values, batch.n_features),
        _sums(batch.indices, values * values, batch.n_features),
        np.bincount(batch.indices[batch.values != 0], minlength=batch.n_features).astype(np.int64),
    )


def rank_tokens(
    batch: CSRBatch, rows: Int64, scale: Float32, k: int, by_magnitude: bool, target_sum: float | None
) -> tuple[Int32, Float32, Int32, int]:
    """See `rank_tokens.row_tokens`; `target_sum` None: no values, 0: raw ones. Last: entries that are no counts."""
    chosen = batch.take(rows)
    tokens, lengths = np.full((chosen.n_rows, k), -1, np.int32), np.zeros(chosen.n_rows, np.int32)
    token_values = np.zeros((0, 0) if target_sum is None else tokens.shape, np.float32)
    with np.errstate(all="ignore"):  # an overflowing key is infinite and ranks first; an underflowing one is zero
        keys = chosen.values.astype(np.float32) * scale[chosen.indices]
    if by_magnitude:
        keys = np.abs(keys)
    is_token = (keys != 0) & ~np.isnan(keys)
    values, refused = chosen.values.astype(np.float32), 0
    if target_sum:
        refused = normalize_log1p(chosen, target_sum, values)
    for row in range(chosen.n_rows if k else 0):
        start, end = chosen.indptr[row], chosen.indptr[row + 1]
        kept = start + np.flatnonzero(is_token[start:end])
        if kept.size > k:
            kept = kept[keys[kept] >= np.partition(keys[kept], -k)[-k]]
        ranked = kept[np.lexsort((chosen.indices[kept], -keys[kept]))[:k]]
        tokens[row, : ranked.size] = chosen.indices[ranked]
        lengths[row] = ranked.size
        if target_sum is not None:
            token_values[row, : ranked.size] = values[ranked]
    return tokens, token_values, lengths, refused


def bin_values(batch: CSRBatch, n_bins: int) -> Int32:
    """See `bin_values.bin_values`."""
    out = np.zeros(batch.nnz, np.int32)
    for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        row = batch.values[start:end]
        binned = (row != 0) & ~np.isnan(row)
        upto = np.searchsorted(np.sort(row[binned]), row[binned], side="right")
        out[start:end][binned] = -(-upto * n_bins // max(1, upto.size))
    return out


def pad_ragged(
    offsets: Int64, columns: Sequence[Any], fills: Sequence[Any], padded: Sequence[npt.NDArray[Any]], mask: Bool
) -> None:
    """See `pad_ragged.pad_ragged`; writes into `padded` and `mask`."""
    slot = np.arange(mask.shape[1])
    mask[...] = slot < np.diff(offsets)[:, None]
    source = ((offsets[:-1] - offsets[0])[:, None] + slot)[mask]
    for column, fill, out in zip(columns, fills, padded, strict=True):
        out[...] = fill
        out[mask] = column[source]


def lookup(batch: CSRBatch, features: Int32 | Int64) -> tuple[Float32, Bool]:
    """See `lookup.lookup`."""
    ordered = batch.sorted()
    if not (batch.nnz and features.size):
        return np.zeros(features.shape, np.float32), np.zeros(features.shape, np.bool_)
    held = ordered.row_ids() * batch.n_features + ordered.indices
    asked = np.arange(batch.n_rows, dtype=np.int64)[:, None] * batch.n_features + features
    found = np.minimum(np.searchsorted(held, asked), held.size - 1)
    stored = (held[found] == asked) & (features >= 0)
    return np.where(stored, ordered.values[found], np.float32(0)).astype(np.float32), stored


def bag(indptr: Int64, indices: Any, values: Any, table: Float32) -> Float32:
    """See `bag.bag`, with the batch's arrays: float32 [rows, width]."""
    rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    return _weighted_sums(rows, indices, values, table, indptr.size - 1)


def bag_transposed(indptr: Int64, indices: Any, values: Any, rows_table: Float32, n_features: int) -> Float32:
    """See `bag.bag_transposed`, with the batch's arrays: float32 [features, width]."""
    rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    return _weighted_sums(indices, rows, values, rows_table, n_features)


def _weighted_sums(groups: Any, sources: Any, values: Any, table: Float32, n_groups: int) -> Float32:
    weights = values.astype(np.float64)
    columns = [_sums(groups, weights * column[sources], n_groups) for column in table.T.astype(np.float64)]
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((n_groups, 0), np.float32)


def _row_totals(batch: CSRBatch) -> Float64:
    return _sums(batch.row_ids(), batch.values, batch.n_rows)


def _sums(groups: Any, values: Any, n_groups: int) -> Float64:
    # NumPy counts nothing as integers, so an empty batch needs the cast.
    return np.bincount(groups, values, n_groups).astype(np.float64, copy=False)
