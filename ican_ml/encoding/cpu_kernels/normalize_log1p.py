"""Row totals, and log(1 + x) without a branch, so that the compiler handles 8 or 16 entries at once."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from ican_ml.encoding.cpu_kernels.jit import Driver, ask, jit, wide_vectors
from ican_ml.encoding.csr import Float32, Int64, Values

_SMALLEST_FACTOR, _LARGEST_FACTOR = 1e-30, 1e30
_AHEAD, _LINE = 2048, 64  # entries; bytes


@jit(contract=True, reassociate=True)
def total(row: Values) -> Any:
    """Sum of a row in float64, and how many of its entries are negative or NaN."""
    sum_, signs, refused = 0.0, np.int32(0), 0
    for i in range(row.size):
        value = np.float32(row[i])
        sum_ += np.float64(value)
        signs |= value.view(np.int32)
    if signs < 0 or sum_ != sum_:
        for i in range(row.size):
            refused += not row[i] >= 0
    return sum_, refused


@jit(contract=True)
def log1p(x: Any) -> Any:
    """log(1 + x) of a float32 x in 0..1e38, within one unit in the last place; polynomial of Cephes' logf.

    With 2^e the power of two nearest to 1 + x, f = x 2^-e + (2^-e - 1) is 1 + x over 2^e, less one, rounded once:
    what the sum 1 + x would lose is never lost.
    """
    one = np.float32(1)
    e = (np.float32(one + x).view(np.int32) - np.int32(0x3F3504F3)) >> np.int32(23)
    scale = np.int32((np.int32(127) - e) << np.int32(23)).view(np.float32)
    f = x * scale + (scale - one)
    p = np.float32(7.0376836292e-2)
    p = p * f + np.float32(-1.1514610310e-1)
    p = p * f + np.float32(1.1676998740e-1)
    p = p * f + np.float32(-1.2420140846e-1)
    p = p * f + np.float32(1.4249322787e-1)
    p = p * f + np.float32(-1.6668057665e-1)
    p = p * f + np.float32(2.0000714765e-1)
    p = p * f + np.float32(-2.4999993993e-1)
    p = p * f + np.float32(3.3333331174e-1)
    square = f * f
    power = np.float32(e)
    small = p * f * square + (power * np.float32(-2.12194440e-4) - np.float32(0.5) * square)
    return (small + f) + power * np.float32(0.693359375)


@jit(contract=True)
def scale_log1p(row: Float32, factor: float) -> None:
    """log1p(factor * x) of a row, in place; a factor that float32 cannot hold well takes the slow way."""
    wide_vectors()
    if factor == 0 or _SMALLEST_FACTOR < factor < _LARGEST_FACTOR:
        narrow = np.float32(factor)
        for i in range(row.size):
            row[i] = log1p(row[i] * narrow)
    else:
        for i in range(row.size):
            row[i] = math.log1p(row[i] * factor)


@jit()
def normalize(first: int, last: int, indptr: Int64, values: Values, target_sum: float, out: Float32) -> int:
    """Returns how many entries are no counts. A row is copied into `out` first, unless it already lies there."""
    refused, base = 0, indptr[0]
    in_place = out.ctypes.data == values.ctypes.data
    for r in range(first, last):
        start, end = indptr[r] - base, indptr[r + 1] - base
        sum_, bad = total(values[start:end])
        refused += bad
        if not in_place:
            for i in range(start, end):
                out[i] = values[i]
        if r + 1 < last:  # the next row comes while this one is computed
            for i in range(end, min(end + _AHEAD, indptr[r + 2] - base), _LINE // values.itemsize):
                ask(values, i)
        scale_log1p(out[start:end], target_sum / sum_ if sum_ != 0 else 0.0)
    return refused


@Driver
def normalize_all(n: int, indptr: Int64, values: Values, target_sum: float, out: Float32) -> int:
    rows, refused = indptr.size - 1, 0
    for c in numba.prange(n):
        refused += normalize(rows * c // n, rows * (c + 1) // n, indptr, values, target_sum, out)
    return refused


@jit()
def sums(first: int, last: int, indptr: Int64, values: Values, out: Float32) -> None:
    base = indptr[0]
    for r in range(first, last):
        out[r] = total(values[indptr[r] - base : indptr[r + 1] - base])[0]


@Driver
def sums_all(n: int, indptr: Int64, values: Values, out: Float32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        sums(rows * c // n, rows * (c + 1) // n, indptr, values, out)
