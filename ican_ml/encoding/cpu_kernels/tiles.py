"""Loops over a row's entries in LLVM's vector types: up to 128 columns stay in registers, where Numba has no array."""

from __future__ import annotations

from functools import reduce
from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TILE = 32
_LANES = 16
_CHAINS = 2  # sums side by side, so that additions need not wait for those before
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)
_MASK = ir.VectorType(ir.IntType(1), _LANES)
_ZEROS = [0.0] * _LANES
_INT64 = ir.IntType(64)


class _Entries:
    """Emits the loop over entries start..stop - 1 of a row, as LLVM instructions; `used` columns of a tile where given.

    Lanes beyond the used ones are neither read nor written.
    """

    def __init__(
        self, context: Any, builder: Any, indices: Any, values: Any, table: Any, columns: int, used: Any
    ) -> None:
        self.context, self.builder, self.columns = context, builder, columns
        (self.ids, self.id_type), (self.weights, self.weight_type), (self.table, _) = (
            (cgutils.create_struct_proxy(kind)(context, builder, array).data, kind.dtype)
            for kind, array in (indices, values, table)
        )
        self.fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{_LANES}f32"
        )
        self.masks: list[Any] = [None] * (columns // _LANES)
        if used is not None:
            lanes = ir.VectorType(_INT64, _LANES)
            count = self._in_every_lane(used, lanes)
            self.masks = [
                builder.icmp_signed("<", ir.Constant(lanes, [*range(first, first + _LANES)]), count)
                for first in range(0, columns, _LANES)
            ]

    def load(self, place: Any, mask: Any) -> Any:
        """A vector of a tile, zero in the lanes that are not used."""
        if mask is None:
            return self.builder.load(place, align=4)
        kinds = [place.type, ir.IntType(32), _MASK, _VECTOR]
        function = self._masked("load", ir.FunctionType(_VECTOR, kinds))
        return self.builder.call(function, [place, ir.Constant(kinds[1], 4), mask, ir.Constant(_VECTOR, _ZEROS)])

    def store(self, vector: Any, place: Any, mask: Any) -> None:
        """The used lanes of a vector into a tile."""
        if mask is None:
            self.builder.store(vector, place, align=4)
            return
        kinds = [_VECTOR, place.type, ir.IntType(32), _MASK]
        function = self._masked("store", ir.FunctionType(ir.VoidType(), kinds))
        self.builder.call(function, [vector, place, ir.Constant(kinds[2], 4), mask])

    def _masked(self, what: str, kind: Any) -> Any:
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.{what}.v{_LANES}f32.p0")

    def _in_every_lane(self, scalar: Any, vector: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        lane = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(
            lane, undefined, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        )

    def vectors(self, pointer: Any) -> list[Any]:
        """Pointers to the vectors of a tile that starts at a float's pointer."""
        step = [ir.Constant(_INT64, _LANES * i) for i in range(self.columns // _LANES)]
        return [self.builder.bitcast(self.builder.gep(pointer, [i]), _VECTOR.as_pointer()) for i in step]

    def entry(self, i: Any, stride: Any) -> tuple[Any, list[Any]]:
        """An entry's weight in every lane, and where its feature's tile lies."""
        builder, context = self.builder, self.context
        weight = builder.load(builder.gep(self.weights, [i]))
        weight = context.cast(builder, weight, self.weight_type, types.float32)
        feature = context.cast(builder, builder.load(builder.gep(self.ids, [i])), self.id_type, types.int64)
        place = builder.gep(self.table, [builder.mul(feature, stride)])
        return self._in_every_lane(weight, _VECTOR), self.vectors(place)


def _pointer_to(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [at])


def _gatherer(columns: int, partly: bool = False) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        i, v, start, stop, t, stride, o, at, used = arguments
        arrays = (kinds[0], i), (kinds[1], v), (kinds[4], t)
        loop = _Entries(context, builder, *arrays, columns, used if partly else None)
        slots = [[cgutils.alloca_once(builder, _VECTOR) for _ in loop.masks] for _ in range(_CHAINS)]
        for slot in chain(*slots):
            builder.store(ir.Constant(_VECTOR, _ZEROS), slot)

        def add(entry: Any, sums: list[Any]) -> None:
            weight, tile = loop.entry(entry, stride)
            for place, mask, slot in zip(tile, loop.masks, sums, strict=True):
                row = loop.load(place, mask)
                builder.store(builder.call(loop.fused, [weight, row, builder.load(slot)]), slot)

        one, step = ir.Constant(_INT64, 1), ir.Constant(_INT64, _CHAINS)
        whole = builder.add(start, builder.mul(builder.sdiv(builder.sub(stop, start), step), step))
        with cgutils.for_range_slice(builder, start, whole, step) as (entry, _):
            for n, sums in enumerate(slots):
                add(builder.add(entry, ir.Constant(_INT64, n)), sums)
        with cgutils.for_range_slice(builder, whole, stop, one) as (entry, _):
            add(entry, slots[0])
        places = loop.vectors(_pointer_to(context, builder, kinds[6], o, at))
        for *sums, place, mask in zip(*slots, places, loop.masks, strict=True):
            loop.store(reduce(builder.fadd, map(builder.load, sums)), place, mask)
        return context.get_dummy_value()

    def gather(
        typing: Any, indices: Any, values: Any, start: Any, stop: Any,
        table: Any, stride: Any, out: Any, at: Any, used: Any,
    ) -> Any:  # fmt: skip
        int64 = types.int64
        return types.void(indices, values, int64, int64, table, int64, out, int64, int64), emit

    return intrinsic(gather)


def _scatterer(columns: int, partly: bool = False) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        i, v, start, stop, row, at, t, stride, used = arguments
        arrays = (kinds[0], i), (kinds[1], v), (kinds[6], t)
        loop = _Entries(context, builder, *arrays, columns, used if partly else None)
        places = loop.vectors(_pointer_to(context, builder, kinds[4], row, at))
        added = [loop.load(place, mask) for place, mask in zip(places, loop.masks, strict=True)]
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(_INT64, 1)) as (entry, _):
            weight, tile = loop.entry(entry, stride)
            for place, each, mask in zip(tile, added, loop.masks, strict=True):
                loop.store(builder.call(loop.fused, [weight, each, loop.load(place, mask)]), place, mask)
        return context.get_dummy_value()

    def scatter(
        typing: Any, indices: Any, values: Any, start: Any, stop: Any,
        row: Any, at: Any, table: Any, stride: Any, used: Any,
    ) -> Any:  # fmt: skip
        int64 = types.int64
        return types.void(indices, values, int64, int64, row, int64, table, int64, int64), emit

    return intrinsic(scatter)


gather_32, gather_64, gather_128 = (_gatherer(columns) for columns in (32, 64, 128))
gather_part_16, gather_part_32 = (_gatherer(columns, partly=True) for columns in (16, 32))
"""`(indices, values, start, stop, table, stride, out, at, used)`, flat arrays, n columns (the first `used` of a part):
out[at : at + n] = sum of values[i] * table[indices[i] * stride : + n] over i in start..stop - 1, even and odd
entries in a sum each."""

scatter_32, scatter_128 = (_scatterer(columns) for columns in (32, 128))
scatter_part_32 = _scatterer(32, partly=True)
"""`(indices, values, start, stop, row, at, table, stride, used)`, flat arrays, n columns (the first `used` of a part):
table[indices[i] * stride : + n] += values[i] * row[at : at + n] for i in start..stop - 1, in that order."""


def _address(typing: Any, number: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), emit


address: Any = intrinsic(_address)
"""A whole number as the pointer that `numba.carray` takes."""
