"""Ragged rows into padded ones, a column at a time."""

from __future__ import annotations

from typing import Any

import numba

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.csr import Bool, Int64


@jit()
def pad(first: int, last: int, offsets: Int64, column: Any, fill: Any, out: Any) -> None:
    base, width = offsets[0], out.shape[1]
    for r in range(first, last):
        start = offsets[r] - base
        n = min(offsets[r + 1] - base - start, width)
        row = out[r]
        for i in range(n):
            row[i] = column[start + i]
        for i in range(n, width):
            row[i] = fill


@Driver
def pad_all(n: int, offsets: Int64, column: Any, fill: Any, out: Any) -> None:
    rows = offsets.size - 1
    for c in numba.prange(n):
        pad(rows * c // n, rows * (c + 1) // n, offsets, column, fill, out)


@jit()
def mask(first: int, last: int, offsets: Int64, out: Bool) -> None:
    width = out.shape[1]
    for r in range(first, last):
        n = min(offsets[r + 1] - offsets[r], width)
        out[r, :n] = True
        out[r, n:] = False


@Driver
def mask_all(n: int, offsets: Int64, out: Bool) -> None:
    rows = offsets.size - 1
    for c in numba.prange(n):
        mask(rows * c // n, rows * (c + 1) // n, offsets, out)
