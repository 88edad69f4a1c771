"""Loops over a row's entries in LLVM's vector types: 32 to 128 columns stay in registers, where Numba has no array."""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TILE = 32
_LANES = 16
_CHAINS = 2  # sums side by side, so that additions need not wait for those before
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)
_INT64 = ir.IntType(64)


class _Entries:
    """Emits the loop over entries start..stop - 1 of a row, as LLVM instructions."""

    def __init__(self, context: Any, builder: Any, indices: Any, values: Any, table: Any, columns: int) -> None:
        self.context, self.builder, self.columns = context, builder, columns
        (self.ids, self.id_type), (self.weights, self.weight_type), (self.table, _) = (
            (cgutils.create_struct_proxy(kind)(context, builder, array).data, kind.dtype)
            for kind, array in (indices, values, table)
        )
        self.fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{_LANES}f32"
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
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        lane = builder.insert_element(undefined, weight, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        place = builder.gep(self.table, [builder.mul(feature, stride)])
        return builder.shuffle_vector(lane, undefined, zeros), self.vectors(place)


def _pointer_to(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [at])


def _gatherer(columns: int) -> Any:
    def gather(
        typing: Any, indices: Any, values: Any, start: Any, stop: Any, table: Any, stride: Any, out: Any, at: Any
    ) -> Any:
        int64 = types.int64
        signature = types.void(indices, values, int64, int64, table, int64, out, int64)

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            i, v, start, stop, t, stride, o, at = arguments
            loop = _Entries(context, builder, (kinds[0], i), (kinds[1], v), (kinds[4], t), columns)
            zero = ir.Constant(_VECTOR, [0.0] * _LANES)
            slots = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(columns // _LANES)] for _ in range(_CHAINS)]
            for slot in chain(*slots):
                builder.store(zero, slot)

            def add(entry: Any, sums: list[Any]) -> None:
                weight, tile = loop.entry(entry, stride)
                for place, slot in zip(tile, sums, strict=True):
                    row = builder.load(place, align=4)
                    builder.store(builder.call(loop.fused, [weight, row, builder.load(slot)]), slot)

            one, step = ir.Constant(_INT64, 1), ir.Constant(_INT64, _CHAINS)
            whole = builder.add(start, builder.mul(builder.sdiv(builder.sub(stop, start), step), step))
            with cgutils.for_range_slice(builder, start, whole, step) as (entry, _):
                for n, sums in enumerate(slots):
                    add(builder.add(entry, ir.Constant(_INT64, n)), sums)
            with cgutils.for_range_slice(builder, whole, stop, one) as (entry, _):
                add(entry, slots[0])
            for n, place in enumerate(loop.vectors(_pointer_to(context, builder, kinds[6], o, at))):
                even, odd = (builder.load(sums[n]) for sums in slots)
                builder.store(builder.fadd(even, odd), place, align=4)
            return context.get_dummy_value()

        return signature, emit

    return intrinsic(gather)


def _scatterer(columns: int) -> Any:
    def scatter(
        typing: Any, indices: Any, values: Any, start: Any, stop: Any, row: Any, at: Any, table: Any, stride: Any
    ) -> Any:
        int64 = types.int64
        signature = types.void(indices, values, int64, int64, row, int64, table, int64)

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            i, v, start, stop, row, at, t, stride = arguments
            loop = _Entries(context, builder, (kinds[0], i), (kinds[1], v), (kinds[6], t), columns)
            places = loop.vectors(_pointer_to(context, builder, kinds[4], row, at))
            added = [builder.load(place, align=4) for place in places]
            with cgutils.for_range_slice(builder, start, stop, ir.Constant(_INT64, 1)) as (entry, _):
                weight, tile = loop.entry(entry, stride)
                for place, each in zip(tile, added, strict=True):
                    builder.store(
                        builder.call(loop.fused, [weight, each, builder.load(place, align=4)]), place, align=4
                    )
            return context.get_dummy_value()

        return signature, emit

    return intrinsic(scatter)


gather_32, gather_64, gather_128 = (_gatherer(columns) for columns in (32, 64, 128))
"""`(indices, values, start, stop, table, stride, out, at)`, flat arrays, n columns:
out[at : at + n] = sum of values[i] * table[indices[i] * stride : + n] over i in start..stop - 1, even and odd
entries in a sum each."""

scatter_32, scatter_128 = (_scatterer(columns) for columns in (32, 128))
"""`(indices, values, start, stop, row, at, table, stride)`, flat arrays, n columns:
table[indices[i] * stride : + n] += values[i] * row[at : at + n] for i in start..stop - 1, in that order."""


def _address(typing: Any, number: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), emit


address: Any = intrinsic(_address)
"""A whole number as the pointer that `numba.carray` takes."""
