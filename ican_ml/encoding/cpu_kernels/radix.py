"""Stable sorting of one row: 64-bit items, a 32-bit key above a 32-bit payload (a position in the row)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ican_ml.encoding.cpu_kernels.jit import jit
from ican_ml.encoding.csr import Int32

_BYTE = np.uint64(8)
_LOW_BYTE = np.uint64(255)
_HIGH = np.uint64(32)
_FEW = 24


@jit()
def sort_by_key(items: Any, spare: Any, counts: Int32) -> Any:
    """Sort uint64 items by their upper half, stably; returns whichever of the two buffers holds the result.

    Radix sort, a byte at a time, all four counted in one pass; a byte that all share is passed by. `counts` is scratch,
    int32 [4, 256].
    """
    n = items.size
    if n <= _FEW:
        for i in range(1, n):
            item, j = items[i], i
            while j > 0 and (items[j - 1] >> _HIGH) > (item >> _HIGH):
                items[j] = items[j - 1]
                j -= 1
            items[j] = item
        return items
    counts[:] = 0
    for i in range(n):
        key = items[i] >> _HIGH
        counts[0, np.int64(key & _LOW_BYTE)] += 1
        counts[1, np.int64((key >> np.uint64(8)) & _LOW_BYTE)] += 1
        counts[2, np.int64((key >> np.uint64(16)) & _LOW_BYTE)] += 1
        counts[3, np.int64(key >> np.uint64(24))] += 1
    shift = _HIGH
    for digits in range(4):
        start = counts[digits]
        if start[np.int64((items[0] >> shift) & _LOW_BYTE)] < n:
            before = np.int32(0)
            for digit in range(256):
                count = start[digit]
                start[digit] = before
                before += count
            for i in range(n):
                to = np.int64((items[i] >> shift) & _LOW_BYTE)
                spare[start[to]] = items[i]
                start[to] += 1
            items, spare = spare, items
        shift += _BYTE
    return items


@jit()
def longest_row(first: int, last: int, indptr: Any) -> Any:
    """Length of the longest of some rows."""
    longest = np.int64(0)
    for r in range(first, last):
        longest = max(longest, indptr[r + 1] - indptr[r])
    return longest
