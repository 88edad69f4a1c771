"""The bag and its gradients: 32 columns at a time stay in vector registers while a row's entries pass by.

A table is read 128 bytes an entry and tile, and a tile of 20,000 features (2.5 MB) about fits a core's cache, so wide
tables are first laid out tile by tile ([tiles, features, 32], 64-byte aligned) where there are enough entries to pay for
it. The loops over entries are written in LLVM's vector types, since Numba keeps no array in registers. Columns beyond
the last whole tile take plain loops. The gradient of the table walks the entries in the same order, each thread adding
to tiles of its own: race-free, and always in row order.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.csr import Float32, Int64

TILE = 32
_LANES = 16
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)
_INT64 = ir.IntType(64)


class _Entries:
    """Emits the loop over entries start..stop - 1 of a row, as LLVM instructions."""

    def __init__(self, context: Any, builder: Any, indices: Any, values: Any, table: Any) -> None:
        self.context, self.builder = context, builder
        (self.ids, self.id_type), (self.weights, self.weight_type), (self.table, _) = (
            (cgutils.create_struct_proxy(kind)(context, builder, array).data, kind.dtype)
            for kind, array in (indices, values, table)
        )
        self.fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{_LANES}f32"
        )

    def vectors(self, pointer: Any) -> list[Any]:
        """Pointers to the vectors of a tile that starts at a float's pointer."""
        step = [ir.Constant(_INT64, _LANES * i) for i in range(TILE // _LANES)]
        return [self.builder.bitcast(self.builder.gep(pointer, [i]), _VECTOR.as_pointer()) for i in step]

    def entry(self, i: Any, stride: Any) -> tuple[Any, list[Any]]:
        """An entry's weight in every lane, and where its feature's tile lies."""
        builder, context = self.builder, self.context
        weight = builder.load(builder.gep(self.weights, [i]))
        weight = context.cast(builder, weight, self.weight_type, types.float32)
        feature = context.cast(builder, builder.load(builder.gep(self.ids, [i])), self.id_type, types.int64)
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        lane = builder.insert_element(undefined, weight, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        place = builder.gep(self.table, [builder.mul(feature, stride)])
        return builder.shuffle_vector(lane, undefined, zeros), self.vectors(place)


def _pointer_to(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [at])


@intrinsic  # type: ignore[untyped-decorator]
def _gather_tile(typing: Any, indices: Any, values: Any, start: Any, stop: Any, table: Any, stride: Any, out: Any, at: Any) -> Any:  # fmt: skip  # noqa: E501
    """out[at : at + 32] = sum of values[i] * table[indices[i] * stride : + 32] over i in start..stop - 1; flat arrays."""
    int64 = types.int64
    signature = types.void(indices, values, int64, int64, table, int64, out, int64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        i, v, start, stop, t, stride, o, at = arguments
        loop = _Entries(context, builder, (kinds[0], i), (kinds[1], v), (kinds[4], t))
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * _LANES)) for _ in range(TILE // _LANES)]
        for each in sums:  # the slots are made once a function, the zeros belong to every call
            builder.store(ir.Constant(_VECTOR, [0.0] * _LANES), each)
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(_INT64, 1)) as (entry, _):
            weight, tile = loop.entry(entry, stride)
            for place, each in zip(tile, sums, strict=True):
                row = builder.load(place, align=4)
                builder.store(builder.call(loop.fused, [weight, row, builder.load(each)]), each)
        for place, each in zip(loop.vectors(_pointer_to(context, builder, kinds[6], o, at)), sums, strict=True):
            builder.store(builder.load(each), place, align=4)
        return context.get_dummy_value()

    return signature, emit


@intrinsic  # type: ignore[untyped-decorator]
def _scatter_tile(typing: Any, indices: Any, values: Any, start: Any, stop: Any, row: Any, at: Any, table: Any, stride: Any) -> Any:  # fmt: skip  # noqa: E501
    """table[indices[i] * stride : + 32] += values[i] * row[at : at + 32] for i in start..stop - 1; flat arrays."""
    int64 = types.int64
    signature = types.void(indices, values, int64, int64, row, int64, table, int64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        i, v, start, stop, row, at, t, stride = arguments
        loop = _Entries(context, builder, (kinds[0], i), (kinds[1], v), (kinds[6], t))
        places = loop.vectors(_pointer_to(context, builder, kinds[4], row, at))
        added = [builder.load(place, align=4) for place in places]
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(_INT64, 1)) as (entry, _):
            weight, tile = loop.entry(entry, stride)
            for place, each in zip(tile, added, strict=True):
                builder.store(builder.call(loop.fused, [weight, each, builder.load(place, align=4)]), place, align=4)
        return context.get_dummy_value()

    return signature, emit


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
    first: int, last: int, tile: int, indptr: Int64, indices: Any, values: Any, source: Float32, stride: int, out: Float32
) -> None:
    """One tile of some rows' bags; `source` is that tile, flat, a feature's 32 columns `stride` apart."""
    base, width, flat = indptr[0], out.shape[1], out.reshape(-1)
    for r in range(first, last):
        _gather_tile(
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
def gather_all(
    n: int, indptr: Int64, indices: Any, values: Any, table: Float32, tiles: Float32, out: Float32
) -> None:
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
def scatter(
    tile: int, indptr: Int64, indices: Any, values: Any, grad: Float32, table: Float32, stride: int
) -> None:
    """Add every row's share to one tile of the table's gradient; `table` as `source` in `gather`."""
    base, width, flat = indptr[0], grad.shape[1], grad.reshape(-1)
    for r in range(indptr.size - 1):
        _scatter_tile(
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
