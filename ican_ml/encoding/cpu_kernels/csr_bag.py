"""The bag and its gradients: 32 columns at a time stay in vector registers while a row's entries pass by (`tiles`).

A table is read 128 bytes an entry and tile, and a tile of 20,000 features (2.5 MB) about fits a core's cache, so wide
tables are first laid out tile by tile ([tiles, features, 32], 64-byte aligned) where there are entries enough to pay
for it. Columns beyond the last whole tile take plain loops. The gradient of the table walks the entries in the same
order, each thread adding to tiles of its own: race-free, and always in row order.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.cpu_kernels.tiles import TILE, gather_tile, scatter_tile
from ican_ml.encoding.csr import Float32, Int64


@Driver
def pack_all(n: int, table: Float32, tiles: Float32) -> None:
    """[features, width] into [tiles, features, 32], whole tiles only."""
    for tile in numba.prange(tiles.shape[0]):
        tiles[tile] = table[:, tile * TILE : (tile + 1) * TILE]


@Driver
def unpack_all(n: int, tiles: Float32, table: Float32) -> None:
    """The reverse of `pack`."""
    for tile in numba.prange(tiles.shape[0]):
        table[:, tile * TILE : (tile + 1) * TILE] = tiles[tile]


@jit()
def gather(
    first: int,
    last: int,
    tile: int,
    indptr: Int64,
    indices: Any,
    values: Any,
    source: Float32,
    stride: int,
    out: Float32,
) -> None:
    """One tile of some rows' bags; `source` is that tile, flat, a feature's 32 columns `stride` apart."""
    base, width, flat = indptr[0], out.shape[1], out.reshape(-1)
    for r in range(first, last):
        gather_tile(
            indices, values, indptr[r] - base, indptr[r + 1] - base, source, stride, flat, r * width + tile * TILE
        )


@jit()
def gather_columns(
    first: int, last: int, column: int, indptr: Int64, indices: Any, values: Any, table: Float32, out: Float32
) -> None:
    """The columns from `column` on of some rows' bags."""
    base, width = indptr[0], table.shape[1]
    for r in range(first, last):
        out[r, column:] = 0
        for i in range(indptr[r] - base, indptr[r + 1] - base):
            weight, feature = np.float32(values[i]), indices[i]
            for j in range(column, width):
                out[r, j] += weight * table[feature, j]


@Driver
def gather_all(n: int, indptr: Int64, indices: Any, values: Any, table: Float32, tiles: Float32, out: Float32) -> None:
    """All bags; from `tiles` where the table was packed, else (no tiles) from the table."""
    rows, whole, packed = indptr.size - 1, out.shape[1] // TILE, tiles.shape[0] > 0
    for unit in numba.prange(n * (whole + 1)):
        tile, part = unit // n, unit % n
        first, last = rows * part // n, rows * (part + 1) // n
        if tile == whole:
            gather_columns(first, last, tile * TILE, indptr, indices, values, table, out)
        elif packed:
            gather(first, last, tile, indptr, indices, values, tiles[tile].reshape(-1), TILE, out)
        else:
            source = table.reshape(-1)[tile * TILE :]
            gather(first, last, tile, indptr, indices, values, source, table.shape[1], out)


@jit()
def scatter(tile: int, indptr: Int64, indices: Any, values: Any, grad: Float32, table: Float32, stride: int) -> None:
    """Add every row's share to one tile of the table's gradient; `table` as `source` in `gather`."""
    base, width, flat = indptr[0], grad.shape[1], grad.reshape(-1)
    for r in range(indptr.size - 1):
        scatter_tile(
            indices, values, indptr[r] - base, indptr[r + 1] - base, flat, r * width + tile * TILE, table, stride
        )


@jit()
def scatter_columns(column: int, indptr: Int64, indices: Any, values: Any, grad: Float32, table: Float32) -> None:
    """Add every row's share to the columns from `column` on of the table's gradient."""
    base = indptr[0]
    for r in range(indptr.size - 1):
        for i in range(indptr[r] - base, indptr[r + 1] - base):
            weight, feature = np.float32(values[i]), indices[i]
            for j in range(column, grad.shape[1]):
                table[feature, j] += weight * grad[r, j]


@Driver
def scatter_all(
    n: int, indptr: Int64, indices: Any, values: Any, grad: Float32, tiles: Float32, table: Float32
) -> None:
    """The table's gradient, from zeros: into `tiles`, to be unpacked, or (no tiles) into the table."""
    whole, packed = grad.shape[1] // TILE, tiles.shape[0] > 0
    for tile in numba.prange(whole + 1):
        if tile == whole:
            scatter_columns(tile * TILE, indptr, indices, values, grad, table)
        elif packed:
            scatter(tile, indptr, indices, values, grad, tiles[tile].reshape(-1), TILE)
        else:
            scatter(tile, indptr, indices, values, grad, table.reshape(-1)[tile * TILE :], grad.shape[1])


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
