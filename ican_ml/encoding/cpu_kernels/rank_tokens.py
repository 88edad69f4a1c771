"""The k first features of a row: keys and positions packed into one integer each, preselected, then radix sorted."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.cpu_kernels.normalize_log1p import scale_log1p, total
from ican_ml.encoding.cpu_kernels.radix import sort_by_key
from ican_ml.encoding.csr import Float32, Ids, Int32, Int64, Values

_HIGH = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_BUCKET_SHIFT = np.uint64(53)  # sign, exponent and two bits of mantissa choose among 2048 buckets
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_SIGN_BIT = np.uint32(0x80000000)


@jit()
def _in_order_of_features(features: Ids, items: Any, spare: Any, counts: Int32) -> Any:
    """Items whose lower halves are a row's positions by ascending feature, those of one feature as stored."""
    for i in range(features.size):
        items[i] = (np.uint64(features[i]) << _HIGH) | np.uint64(i)
    return sort_by_key(items[: features.size], spare[: features.size], counts)


@jit()
def _preselect(items: Any, n: int, k: int, buckets: Int32) -> Any:
    """Move the items that can be among the k smallest to the front, in their order; returns how many those are."""
    buckets[:] = 0
    for i in range(n):
        buckets[np.int64(items[i] >> _BUCKET_SHIFT)] += 1
    last_bucket, reached = np.int64(0), np.int64(buckets[0])
    while reached < k:
        last_bucket += 1
        reached += buckets[last_bucket]
    kept = np.int64(0)
    for i in range(n):
        items[kept] = items[i]
        kept += np.int64(items[i] >> _BUCKET_SHIFT) <= last_bucket
    return kept


@jit()
def rank(
    first: int, last: int, indptr: Int64, indices: Ids, values: Values, rows: Int64, scale: Float32,
    by_magnitude: bool, target_sum: float, tokens: Int32, token_values: Float32, lengths: Int32,
) -> int:  # fmt: skip
    """Places first..last - 1 of `rows`. Values are written where `token_values` has room: raw if `target_sum` is 0.

    Returns how many entries are no counts, where they are normalised.
    """
    k, base, refused = tokens.shape[1], indptr[0], 0
    with_values = token_values.shape[0] > 0
    longest = np.int64(1)
    for place in range(first, last):
        if rows[place] >= 0:
            longest = max(longest, indptr[rows[place] + 1] - indptr[rows[place]])
    items, spare, third = (np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(longest, np.uint64))
    counts, buckets = np.empty((4, 256), np.int32), np.empty(2048, np.int32)
    for place in range(first, last):
        r = rows[place]
        start = indptr[max(r, 0)] - base
        size = indptr[r + 1] - base - start if r >= 0 else np.int64(0)
        features, row = indices[start : start + size], values[start : start + size]
        ascending = True
        for i in range(1, size):
            ascending &= features[i - 1] <= features[i]
        order = third if ascending else _in_order_of_features(features, spare, third, counts)
        n = np.int64(0)
        for i in range(size):
            at = np.uint64(i) if ascending else order[i] & _LOW_HALF
            feature = features[at]
            key = np.float32(row[at]) * scale[feature]
            if by_magnitude:
                key = abs(key)
            if key != 0 and key == key:
                bits = np.float32(key).view(np.uint32)
                if bits < _SIGN_BIT:
                    bits ^= _MAGNITUDE_BITS
                items[n] = (np.uint64(bits) << _HIGH) | at
                n += 1
        if n > k:
            n = _preselect(items, n, k, buckets)
        ranked = sort_by_key(items[:n], spare[:n], counts)
        n = min(n, k)
        lengths[place] = n
        for i in range(n):
            tokens[place, i] = features[ranked[i] & _LOW_HALF]
        tokens[place, n:] = -1
        if with_values:
            for i in range(n):
                token_values[place, i] = row[ranked[i] & _LOW_HALF]
            token_values[place, n:] = 0
            if target_sum > 0:
                sum_, bad = total(row)
                refused += bad
                scale_log1p(token_values[place, :n], target_sum / sum_ if sum_ != 0 else 0.0)
    return refused


@Driver
def rank_all(
    n: int, indptr: Int64, indices: Ids, values: Values, rows: Int64, scale: Float32,
    by_magnitude: bool, target_sum: float, tokens: Int32, token_values: Float32, lengths: Int32,
) -> int:  # fmt: skip
    size, refused = rows.size, 0
    for c in numba.prange(n):
        refused += rank(
            size * c // n, size * (c + 1) // n, indptr, indices, values, rows, scale,
            by_magnitude, target_sum, tokens, token_values, lengths,
        )  # fmt: skip
    return refused
