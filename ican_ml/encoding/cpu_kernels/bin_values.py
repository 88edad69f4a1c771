"""Quantile bins of a row: small counts by histogram, everything else by a radix sort of its values."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.cpu_kernels.radix import longest_row, sort_by_key
from ican_ml.encoding.csr import Int32, Int64, Values

_HIGH = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_SIGN_BIT = np.uint32(0x80000000)
_SMALL = 256


@jit()
def _small_counts(row: Values, histogram: Int32) -> bool:
    """Count the values of a row, if all are whole numbers below 256."""
    histogram[:] = 0
    for i in range(row.size):
        value = row[i]
        if not (value >= 0 and value < _SMALL):
            return False
        whole = np.int64(value)
        if whole != value:
            return False
        histogram[whole] += 1
    return True


@jit()
def _bins_of_counts(row: Values, histogram: Int32, n_bins: int, out: Int32) -> None:
    n = row.size - np.int64(histogram[0])
    upto = np.int64(0)
    histogram[0] = 0
    for value in range(1, _SMALL):
        count = histogram[value]
        if count > 0:
            upto += count
            histogram[value] = (upto * n_bins + n - 1) // n
    for i in range(row.size):
        out[i] = histogram[np.int64(row[i])]


@jit()
def _bins_by_sorting(row: Values, n_bins: int, out: Int32, items: Any, spare: Any, counts: Int32) -> None:
    n = np.int64(0)
    for i in range(row.size):
        value = np.float32(row[i])
        out[i] = 0
        if value != 0 and value == value:
            bits = value.view(np.uint32)
            bits = ~bits if bits >= _SIGN_BIT else bits | _SIGN_BIT
            items[n] = (np.uint64(bits) << _HIGH) | np.uint64(i)
            n += 1
    ordered = sort_by_key(items[:n], spare[:n], counts)
    start = np.int64(0)
    while start < n:
        end = start + 1
        while end < n and (ordered[end] >> _HIGH) == (ordered[start] >> _HIGH):
            end += 1
        bin_ = (end * n_bins + n - 1) // n
        for i in range(start, end):
            out[ordered[i] & _LOW_HALF] = bin_
        start = end


@jit()
def bins(first: int, last: int, indptr: Int64, values: Values, n_bins: int, out: Int32) -> None:
    base, longest = indptr[0], longest_row(first, last, indptr)
    items, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    counts, histogram = np.empty((4, 256), np.int32), np.empty(_SMALL, np.int32)
    for r in range(first, last):
        start, end = indptr[r] - base, indptr[r + 1] - base
        if _small_counts(values[start:end], histogram):
            _bins_of_counts(values[start:end], histogram, n_bins, out[start:end])
        else:
            _bins_by_sorting(values[start:end], n_bins, out[start:end], items, spare, counts)


@Driver
def bins_all(n: int, indptr: Int64, values: Values, n_bins: int, out: Int32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        bins(rows * c // n, rows * (c + 1) // n, indptr, values, n_bins, out)
