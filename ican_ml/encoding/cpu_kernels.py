"""The Numba kernels of the cpu backend: serial work on a range, and drivers that give ranges to threads.

A kernel `name(first, last, ...)` handles rows first..last - 1; `name_threads(n, ...)`
cuts the whole into n ranges. No number is written by two threads and no order of addition depends on their number,
so every bit is the same however many share the work. There is no fast-math; `_dot` alone lets the compiler choose,
once, the order of its terms. Shapes: indptr int64 [rows + 1], indices int32 or int64 [nnz], values
float32 [nnz], tables and gradients float32 [features or rows, width]; `out` is written in place.

Compiled code is cached beside this file or in NUMBA_CACHE_DIR; where neither can be written, each process compiles
anew what it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np

from ican_ml.encoding.csr import Float32, Float64, Int32, Int64

_HIGH = np.uint64(32)
_BYTE = np.uint64(8)
_LOW_BYTE = np.uint64(255)
_BUCKET_SHIFT = np.uint64(53)  # sign, exponent and two bits of mantissa choose among 2048 buckets
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_SIGN_BIT = np.uint32(0x80000000)


def _compile(parallel: bool = False, reassociate: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(cache: bool) -> Callable[..., Any]:
            compiler = numba.njit(
                cache=cache,
                parallel=parallel,
                error_model="numpy",
                fastmath={"reassoc"} if reassociate else False,
            )
            return cast(Callable[..., Any], compiler(function))

        try:
            return compiled(cache=True)
        except RuntimeError:  # Numba found no folder for its cache that it may write
            return compiled(cache=False)

    return decorate


@_compile()
def _total(row: Float32) -> float:
    a = b = c = d = e = f = g = h = 0.0
    whole = row.size - row.size % 8
    for i in range(0, whole, 8):
        a += row[i]
        b += row[i + 1]
        c += row[i + 2]
        d += row[i + 3]
        e += row[i + 4]
        f += row[i + 5]
        g += row[i + 6]
        h += row[i + 7]
    for i in range(whole, row.size):
        a += row[i]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@_compile()
def _log1p(x: Any) -> Any:
    """log(1 + x) of a float32 x >= 0 without a branch: Cephes logf, with the rounding of 1 + x put back."""
    one = np.float32(1)
    u = one + x
    lost = (one - (u - x)) if x > one else (x - (u - one))
    bits = np.float32(u).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    f = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - one
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
    power = np.float32(exponent)
    small = p * f * square + power * np.float32(-2.12194440e-4) + lost / u - np.float32(0.5) * square
    return (small + f) + power * np.float32(0.693359375)


@_compile()
def normalize(first: int, last: int, indptr: Int64, values: Float32, target_sum: float, out: Float32) -> None:
    for r in range(first, last):
        row, normal = values[indptr[r] : indptr[r + 1]], out[indptr[r] : indptr[r + 1]]
        total = _total(row)
        factor = target_sum / total if total != 0 else 0.0
        for i in range(row.size):
            normal[i] = _log1p(np.float32(row[i] * factor))


@_compile(parallel=True)
def normalize_threads(n: int, indptr: Int64, values: Float32, target_sum: float, out: Float32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        normalize(rows * c // n, rows * (c + 1) // n, indptr, values, target_sum, out)


@_compile()
def sums(first: int, last: int, indptr: Int64, values: Float32, out: Float32) -> None:
    for r in range(first, last):
        out[r] = np.float32(_total(values[indptr[r] : indptr[r + 1]]))


@_compile(parallel=True)
def sums_threads(n: int, indptr: Int64, values: Float32, out: Float32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        sums(rows * c // n, rows * (c + 1) // n, indptr, values, out)


@_compile()
def stats(indices: Int32, values: Float32, part: Float64) -> None:
    for i in range(indices.size):
        value = np.float64(values[i])
        sums = part[indices[i]]
        sums[0] += value
        sums[1] += value * value
        sums[2] += value != 0


@_compile(parallel=True)
def stats_threads(indices: Int32, values: Float32, parts: Float64) -> None:
    n, size = parts.shape[0], indices.size
    for p in numba.prange(n):
        start, end = size * p // n, size * (p + 1) // n
        stats(indices[start:end], values[start:end], parts[p])


@_compile()
def _radix_sort(items: Any, spare: Any, low_bit: Any) -> Any:
    """Sort uint64 items by their bits from `low_bit` up, stably; returns whichever buffer holds the result."""
    counts = np.empty(256, np.int32)
    shift = low_bit
    while shift < np.uint64(64):
        counts[:] = 0
        for i in range(items.size):
            counts[np.int64((items[i] >> shift) & _LOW_BYTE)] += 1
        if counts[np.int64((items[0] >> shift) & _LOW_BYTE)] < items.size:
            start = np.int32(0)
            for each in range(256):
                count = counts[each]
                counts[each] = start
                start += count
            for i in range(items.size):
                digit = np.int64((items[i] >> shift) & _LOW_BYTE)
                spare[counts[digit]] = items[i]
                counts[digit] += 1
            items, spare = spare, items
        shift += _BYTE
    return items


@_compile()
def rank(
    first: int, last: int, indptr: Int64, indices: Int32, values: Float32, scale: Float32, by_magnitude: bool,
    tokens: Int32, lengths: Int32,
) -> None:  # fmt: skip
    """Pack key and feature into one integer whose ascending order is the order of tokens; keep k; sort them."""
    k = tokens.shape[1]
    longest = np.int64(0)
    for r in range(first, last):
        longest = max(longest, indptr[r + 1] - indptr[r])
    items, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    buckets = np.empty(2048, np.int32)
    for r in range(first, last):
        n, previous, ascending = np.int64(0), np.int32(-1), True
        for i in range(indptr[r], indptr[r + 1]):
            feature = indices[i]
            key = values[i] * scale[feature]
            if by_magnitude:
                key = abs(key)
            if key != 0 and key == key:
                bits = np.float32(key).view(np.uint32)
                if bits < _SIGN_BIT:
                    bits ^= _MAGNITUDE_BITS
                items[n] = (np.uint64(bits) << _HIGH) | np.uint64(feature)
                ascending &= previous <= feature
                previous = feature
                n += 1
        if n > k:
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
            n = kept
        if n > 0:
            ranked = _radix_sort(items[:n], spare[:n], _HIGH if ascending else np.uint64(0))
            n = min(n, k)
            for i in range(n):
                tokens[r, i] = np.int32(ranked[i] & np.uint64(0xFFFFFFFF))
            lengths[r] = n


@_compile(parallel=True)
def rank_threads(
    n: int, indptr: Int64, indices: Int32, values: Float32, scale: Float32, by_magnitude: bool,
    tokens: Int32, lengths: Int32,
) -> None:  # fmt: skip
    rows = indptr.size - 1
    for c in numba.prange(n):
        rank(rows * c // n, rows * (c + 1) // n, indptr, indices, values, scale, by_magnitude, tokens, lengths)


@_compile()
def bag(first: int, last: int, indptr: Int64, indices: Any, values: Float32, table: Float32, out: Float32) -> None:
    width = table.shape[1]
    for r in range(first, last):
        total = out[r]
        for j in range(width):
            total[j] = 0
        i, end = indptr[r], indptr[r + 1]
        while i + 4 <= end:
            a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
            p, q = table[indices[i]], table[indices[i + 1]]
            s, t = table[indices[i + 2]], table[indices[i + 3]]
            for j in range(width):
                total[j] += (a * p[j] + b * q[j]) + (c * s[j] + d * t[j])
            i += 4
        while i < end:
            a, p = values[i], table[indices[i]]
            for j in range(width):
                total[j] += a * p[j]
            i += 1


@_compile(parallel=True)
def bag_threads(n: int, indptr: Int64, indices: Any, values: Float32, table: Float32, out: Float32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        bag(rows * c // n, rows * (c + 1) // n, indptr, indices, values, table, out)


@_compile()
def transpose(indptr: Int64, indices: Any, values: Float32, starts: Int64, rows: Any, by_feature: Float32) -> None:
    """Entries by feature, those of one feature in row order: a stable counting sort. `starts` comes in as zeros."""
    for feature in indices:
        starts[feature + 1] += 1
    for f in range(1, starts.size):
        starts[f] += starts[f - 1]
    for r in range(indptr.size - 1):
        for i in range(indptr[r], indptr[r + 1]):
            to = starts[indices[i]]
            rows[to] = r
            by_feature[to] = values[i]
            starts[indices[i]] = to + 1
    for f in range(starts.size - 1, 0, -1):
        starts[f] = starts[f - 1]
    starts[0] = 0


@_compile(reassociate=True)
def _dot(x: Float32, y: Float32) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@_compile()
def bag_grad_values(
    first: int, last: int, indptr: Int64, indices: Any, table: Float32, grad: Float32, out: Float32
) -> None:
    for r in range(first, last):
        row_grad = grad[r]
        for i in range(indptr[r], indptr[r + 1]):
            out[i] = _dot(row_grad, table[indices[i]])


@_compile(parallel=True)
def bag_grad_values_threads(n: int, indptr: Int64, indices: Any, table: Float32, grad: Float32, out: Float32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        bag_grad_values(rows * c // n, rows * (c + 1) // n, indptr, indices, table, grad, out)
