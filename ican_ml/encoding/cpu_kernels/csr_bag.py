"""The bag and its gradients: 32 columns at a time stay in vector registers while a row's entries pass by (`tiles`).

A table is read 128 bytes an entry and tile, and a tile of 20,000 features (2.5 MB) about fits a core's cache, so wide
tables are first laid out tile by tile ([tiles, features, 32], 64-byte aligned) where there are entries enough to pay
for it. Columns beyond the last whole tile use a part of a vector. The gradient of the table walks the entries in the
same order, each thread adding to tiles of its own: race-free, and always in row order.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.cpu_kernels.tiles import (
    TILE,
    address,
    gather_32,
    gather_64,
    gather_128,
    gather_part_16,
    gather_part_32,
    scatter_32,
    scatter_128,
    scatter_part_32,
)
from ican_ml.encoding.csr import Float32, Int64


@Driver
def pack_all(n: int, table: Float32, tiles: Float32) -> None:
    """[features, width] into [tiles, features, 32], whole tiles only."""
    for tile in numba.prange(tiles.shape[0]):
        tiles[tile] = table[:, tile * TILE : (tile + 1) * TILE]


@Driver
def unpack_all(n: int, tiles: Float32, table: Float32) -> None:
    """The reverse of `pack_all`."""
    for tile in numba.prange(tiles.shape[0]):
        table[:, tile * TILE : (tile + 1) * TILE] = tiles[tile]


@jit()
def gather_packed(
    first: int, last: int, tile: int, indptr: Int64, indices: Any, values: Any, tiles: Float32, out: Float32
) -> None:
    """One tile of some rows' bags, from the packed table."""
    base, width, flat, source = indptr[0], out.shape[1], out.reshape(-1), tiles[tile].reshape(-1)
    for r in range(first, last):
        start, stop, at = indptr[r] - base, indptr[r + 1] - base, r * width + tile * TILE
        gather_32(indices, values, start, stop, source, TILE, flat, at, TILE)


@jit()
def gather_plain(
    first: int, last: int, column: int, indptr: Int64, indices: Any, values: Any, table: Float32, out: Float32
) -> None:
    """The columns from `column` on of some rows' bags, from a table as it is: as many at once as registers hold."""
    base, width, flat, source, first_column = indptr[0], out.shape[1], out.reshape(-1), table.reshape(-1), column
    for r in range(first, last):
        start, stop, column = indptr[r] - base, indptr[r + 1] - base, first_column
        while column + 128 <= width:
            gather_128(indices, values, start, stop, source[column:], width, flat, r * width + column, 128)
            column += 128
        if column + 64 <= width:
            gather_64(indices, values, start, stop, source[column:], width, flat, r * width + column, 64)
            column += 64
        if column + 32 <= width:
            gather_32(indices, values, start, stop, source[column:], width, flat, r * width + column, 32)
            column += 32
        rest = width - column
        if rest > 16:
            gather_part_32(indices, values, start, stop, source[column:], width, flat, r * width + column, rest)
        elif rest > 0:
            gather_part_16(indices, values, start, stop, source[column:], width, flat, r * width + column, rest)


@Driver
def gather_all(n: int, indptr: Int64, indices: Any, values: Any, table: Float32, tiles: Float32, out: Float32) -> None:
    """All bags; from `tiles` where the table was packed, else (no tiles) from the table."""
    rows, whole, n_tiles = indptr.size - 1, out.shape[1] // TILE * TILE, tiles.shape[0]
    for unit in numba.prange(n * max(1, n_tiles)):
        tile, part = unit // n, unit % n
        first, last = rows * part // n, rows * (part + 1) // n
        if n_tiles == 0:
            gather_plain(first, last, 0, indptr, indices, values, table, out)
            continue
        gather_packed(first, last, tile, indptr, indices, values, tiles, out)
        if tile == 0 and whole < out.shape[1]:
            gather_plain(first, last, whole, indptr, indices, values, table, out)


@jit()
def _bag_if_sound(indptr: Int64, indices: Any, values: Float32, table: Float32, out: Float32) -> Any:
    shortest, largest = np.int64(0), np.uint64(0)
    for r in range(indptr.size - 1):
        shortest = min(shortest, indptr[r + 1] - indptr[r])
    for i in range(indices.size):  # read as unsigned, a negative id is larger than any width
        largest = max(largest, np.uint64(np.int64(indices[i])))
    sound = indptr[-1] - indptr[0] == indices.size and shortest >= 0
    sound &= indices.size == 0 or largest < np.uint64(table.shape[0])
    if sound:
        gather_plain(0, out.shape[0], 0, indptr, indices, values, table, out)
    return sound


@jit()
def bag_at(
    indptr: int, indices: int, values: int, table: int, out: int,
    n_rows: int, n_entries: int, n_features: int, width: int, wide_ids: bool,
) -> Any:  # fmt: skip
    """All bags of contiguous arrays at these addresses, ids int64 where `wide_ids`, else int32; whether they are sound.

    Nothing is written where pointers or ids lead outside the arrays.
    """
    pointers = carray(address(indptr), n_rows + 1, np.int64)
    weights = carray(address(values), n_entries, np.float32)
    rows = carray(address(table), (n_features, width), np.float32)
    bags = carray(address(out), (n_rows, width), np.float32)
    if wide_ids:
        return _bag_if_sound(pointers, carray(address(indices), n_entries, np.int64), weights, rows, bags)
    return _bag_if_sound(pointers, carray(address(indices), n_entries, np.int32), weights, rows, bags)


@jit()
def scatter_packed(tile: int, indptr: Int64, indices: Any, values: Any, grad: Float32, tiles: Float32) -> None:
    """Add every row's share to one tile of the packed gradient."""
    base, width, flat, target = indptr[0], grad.shape[1], grad.reshape(-1), tiles[tile].reshape(-1)
    for r in range(indptr.size - 1):
        start, stop = indptr[r] - base, indptr[r + 1] - base
        scatter_32(indices, values, start, stop, flat, r * width + tile * TILE, target, TILE, TILE)


@jit()
def scatter_plain(
    first: int, last: int, indptr: Int64, indices: Any, values: Any, grad: Float32, table: Float32
) -> None:
    """Add every row's share to columns first..last - 1 of a gradient as it is; a part of a tile only at the end."""
    base, width, flat, target = indptr[0], grad.shape[1], grad.reshape(-1), table.reshape(-1)
    for r in range(indptr.size - 1):
        start, stop, column = indptr[r] - base, indptr[r + 1] - base, first
        while column + 128 <= last:
            scatter_128(indices, values, start, stop, flat, r * width + column, target[column:], width, 128)
            column += 128
        while column + TILE <= last:
            scatter_32(indices, values, start, stop, flat, r * width + column, target[column:], width, TILE)
            column += TILE
        if column < last:
            at, rest = r * width + column, last - column
            scatter_part_32(indices, values, start, stop, flat, at, target[column:], width, rest)


@Driver
def scatter_all(
    n: int, indptr: Int64, indices: Any, values: Any, grad: Float32, tiles: Float32, table: Float32
) -> None:
    """The table's gradient, from zeros: into `tiles`, to be unpacked, or (no tiles) into the table."""
    n_tiles, width, packed = grad.shape[1] // TILE, grad.shape[1], tiles.shape[0] > 0
    units = n_tiles if packed else min(n, n_tiles)
    for unit in numba.prange(units + 1):
        if unit == units:
            scatter_plain(n_tiles * TILE, width, indptr, indices, values, grad, table)
        elif packed:
            scatter_packed(unit, indptr, indices, values, grad, tiles)
        else:
            first, last = n_tiles * unit // units * TILE, n_tiles * (unit + 1) // units * TILE
            scatter_plain(first, last, indptr, indices, values, grad, table)


@jit(reassociate=True)
def _dot(x: Float32, y: Float32) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@jit()
def grad_values(
    first: int, last: int, indptr: Int64, indices: Any, table: Float32, grad: Float32, out: Float32
) -> None:
    base = indptr[0]
    for r in range(first, last):
        row_grad = grad[r]
        for i in range(indptr[r] - base, indptr[r + 1] - base):
            out[i] = _dot(row_grad, table[indices[i]])


@Driver
def grad_values_all(n: int, indptr: Int64, indices: Any, table: Float32, grad: Float32, out: Float32) -> None:
    rows = indptr.size - 1
    for c in numba.prange(n):
        grad_values(rows * c // n, rows * (c + 1) // n, indptr, indices, table, grad, out)
