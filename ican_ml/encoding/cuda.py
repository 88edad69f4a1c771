"""The operators on an NVIDIA GPU: the sources in `kernels/`, compiled and launched by CuPy on torch's current stream.

In and out as the operators' own modules document. A batch in host memory is copied to the device and its results back;
one that lies on the device (`CSRBatch.to_device`) is read in place and its results stay there, as CuPy arrays that
`torch.from_dlpack` takes without a copy. Here memory is allocated and launches are shaped; each kernel's idea stands in
its source. Results depend neither on the device nor on how blocks are scheduled. Arguments are trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import Bool, CSRBatch, Float32, Float64, Int32, Int64, on_device
from ican_ml.encoding.cuda_device import device

THREADS = 256
_STATS_THREADS = 1024
_MOST_BLOCKS = 1 << 20
_BLOCKS_WITH_SCRATCH = 512
_MOST_STATS_PARTS = 128
_ENTRIES_PER_STATS_PART = 1 << 16
_STATS_BYTES = 20  # of shared memory, a feature
_STATIC_SHARED = 10 << 10  # bytes, more than any kernel declares
_LONG_ROW = 256  # entries on average, from which a row is worth a block
_TEAM = 64
_TILE = 2048  # items that a block sorts in registers
_SUFFIX = {"float32": "f32", "uint16": "u16", "int32": "i32"}


def to_device(batch: CSRBatch) -> tuple[Any, Any, Any]:
    """Arrays of a batch on the device; those that lie there are shared."""
    with device().current():
        return tuple(_put(batch.indptr, batch.indices, batch.values))


def on_tensors(function: Callable[..., Any], tensors: Sequence[Any], *numbers: int) -> Any:
    """A function of this module on torch's CUDA tensors, through DLPack and without copies; returns a tensor."""
    import torch

    with torch.cuda.device(tensors[0].device), device().current():
        arrays = map(device().xp.from_dlpack, tensors)
        return torch.utils.dlpack.from_dlpack(function(*arrays, *numbers))


def normalize_log1p(batch: CSRBatch, target_sum: float, out: Float32) -> int:
    """See `normalize_log1p.normalize_log1p`; returns how many entries are negative or NaN."""
    with device().current():
        indptr, values = _put(batch.indptr, batch.values)
        written, refused = _room_for(out), _zeros(1, np.int32)
        kernel, blocks = _by_row("normalize_log1p", batch)
        sizes = np.int64(batch.n_rows), np.float64(target_sum)
        _launch("normalize_log1p", kernel, blocks, indptr, values, *sizes, written, refused)
        _fetch_into(written, out)
        return int(refused[0])


def row_sums(batch: CSRBatch) -> Float32:
    """See `lookup.row_sums`."""
    with device().current():
        indptr, values = _put(batch.indptr, batch.values)
        out = _empty(batch.n_rows, np.float32)
        kernel, blocks = _by_row("row_sums", batch)
        _launch("normalize_log1p", kernel, blocks, indptr, values, np.int64(batch.n_rows), out)
        return _fetch(out, batch.values)


def feature_stats(batch: CSRBatch) -> tuple[Float64, Float64, Int64]:
    """See `feature_stats.feature_stats`. The parts that are summed depend on the batch, never on the device."""
    with device().current():
        n_features, parts = batch.n_features, min(_MOST_STATS_PARTS, 1 + batch.nnz // _ENTRIES_PER_STATS_PART)
        sums, squares, counts = (_empty(n_features, kind) for kind in (np.float64, np.float64, np.int64))
        if n_features:
            tiles = -(-n_features * _STATS_BYTES // (device().largest_shared - _STATIC_SHARED))
            tile = -(-n_features // tiles)
            found = [_empty(parts * n_features, kind) for kind in (np.float64, np.float64, np.int32)]
            device().launch(
                "feature_stats", f"feature_stats_{_layout(batch)}", parts * tiles, _STATS_THREADS, tile * _STATS_BYTES,
                *_put(batch.indptr, batch.indices, batch.values), np.int64(batch.n_rows),
                np.int32(n_features), np.int32(tile), np.int32(parts), *found,
            )  # fmt: skip
            _launch(
                "feature_stats", "feature_stats_total", -(-n_features // THREADS),
                *found, np.int32(n_features), np.int32(parts), sums, squares, counts,
            )  # fmt: skip
        return tuple(_fetch(array, batch.values) for array in (sums, squares, counts))


def rank_tokens(
    batch: CSRBatch, rows: Int64, scale: Float32, k: int, by_magnitude: bool, target_sum: float | None
) -> tuple[Int32, Float32, Int32, int]:
    """See `rank_tokens.row_tokens`; `target_sum` None: no values, 0: raw ones. Last: entries that are no counts."""
    with device().current():
        tokens, lengths, refused = _empty((rows.size, k), np.int32), _empty(rows.size, np.int32), _zeros(1, np.int32)
        token_values = _empty((0, 0) if target_sum is None else tokens.shape, np.float32)
        blocks, room, shared, scratch = _sort_room(rows.size, k, np.uint64)
        device().launch(
            "rank_tokens", f"rank_tokens_{_layout(batch)}", blocks, THREADS, shared,
            *_put(batch.indptr, batch.indices, batch.values, rows), np.int64(rows.size), *_put(scale), np.int32(k),
            np.int32(room), np.bool_(by_magnitude), np.float64(-1 if target_sum is None else target_sum),
            tokens, token_values, lengths, refused, scratch,
        )  # fmt: skip
        found = int(refused[0]) if target_sum else 0
        return *(_fetch(array, batch.values) for array in (tokens, token_values, lengths)), found


def bin_values(batch: CSRBatch, n_bins: int) -> Int32:
    """See `bin_values.bin_values`."""
    with device().current():
        indptr, values = _put(batch.indptr, batch.values)
        out = _empty(batch.nnz, np.int32)
        longest = int((batch.indptr[1:] - batch.indptr[:-1]).max()) if batch.n_rows else 0
        blocks, room, shared, scratch = _sort_room(batch.n_rows, longest, np.uint32)
        device().launch(
            "bin_values", f"bin_values_{_suffix(values)}", blocks, THREADS, shared,
            indptr, values, np.int64(batch.n_rows), np.int32(n_bins), np.int32(room), out, scratch,
        )  # fmt: skip
        return _fetch(out, batch.values)


def pad_ragged(
    offsets: Int64, columns: Sequence[Any], fills: Sequence[Any], padded: Sequence[npt.NDArray[Any]], mask: Bool
) -> None:
    """See `pad_ragged.pad_ragged`; writes into `padded` and `mask`."""
    with device().current():
        rows, width = mask.shape
        (starts,), sizes, blocks = _put(offsets), (np.int64(rows), np.int64(width)), -(-rows * 32 // THREADS)
        written = _room_for(mask)
        _launch("pad_ragged", "pad_ragged_mask", blocks, starts, *sizes, written.view(np.uint8))
        _fetch_into(written, mask)
        for column, fill, out in zip(columns, fills, padded, strict=True):
            if column.itemsize not in (1, 2, 4, 8):
                raise ValueError(f"on a GPU columns need items of 1, 2, 4 or 8 bytes, got {column.dtype}")
            bits = np.dtype(f"uint{8 * column.itemsize}")
            written = _room_for(out)
            _launch(
                "pad_ragged", f"pad_ragged_{8 * column.itemsize}", blocks, starts, *_put(column.view(bits)),
                *sizes, np.uint64(np.asarray(fill, column.dtype).view(bits)), written.view(bits),
            )  # fmt: skip
            _fetch_into(written, out)


def bag(indptr: Int64, indices: Any, values: Any, table: Float32) -> Float32:
    """See `bag.bag`, with the batch's arrays: float32 [rows, width]."""
    with device().current():
        rows, (n_features, width) = indptr.size - 1, table.shape
        out, (on_gpu,) = _empty((rows, width), np.float32), _put(table)
        columns, team, stretches = _columns(width, on_gpu)
        pointers, weights, ids = *_put(indptr, values), _put_ids(indices)
        _launch(
            "csr_bag", f"bag_{columns}_{_suffix(weights)}_{_suffix(ids)}", stretches * _fitting(rows, stretches),
            pointers, ids, weights, np.int64(rows), np.int64(ids.size), on_gpu, np.int64(n_features), np.int32(width),
            np.int32(team), out,
        )  # fmt: skip
        return _fetch(out, table)


def bag_transposed(indptr: Int64, indices: Any, values: Any, rows_table: Float32, n_features: int) -> Float32:
    """See `bag.bag_transposed`, with the batch's arrays: float32 [features, width]."""
    with device().current():
        xp, rows, width = device().xp, indptr.size - 1, rows_table.shape[1]
        pointers, weights, table, ids = *_put(indptr, values, rows_table), _put_ids(indices)
        row_of = _empty(indices.size, np.int64)
        _launch("csr_bag", "row_ids", rows, pointers, np.int64(rows), row_of)
        order = xp.argsort(ids, kind="stable")
        starts = xp.searchsorted(ids[order], xp.arange(n_features + 1))
        out = _empty((n_features, width), np.float32)
        columns, team, stretches = _columns(width, table)
        blocks = stretches * _fitting(-(-n_features * team // THREADS), stretches)
        _launch(
            "csr_bag", f"bag_transposed_{columns}_{_suffix(weights)}", blocks, starts, order, row_of, weights,
            np.int32(n_features), table, np.int32(width), np.int32(team), out,
        )  # fmt: skip
        return _fetch(out, rows_table)


def bag_grad_values(indptr: Int64, indices: Any, table: Float32, grad: Float32) -> Float32:
    """Gradient of `bag` for its values, float32 [nnz]: `grad[row] . table[feature]` of each entry."""
    with device().current():
        pointers, embeddings, gradient, ids = *_put(indptr, table, grad), _put_ids(indices)
        rows, out = indptr.size - 1, _empty(indices.size, np.float32)
        _launch(
            "csr_bag", f"bag_grad_values_{_suffix(ids)}", rows, pointers, ids, np.int64(rows),
            embeddings, gradient, np.int32(table.shape[1]), out,
        )  # fmt: skip
        return _fetch(out, table)


def _launch(source: str, kernel: str, blocks: int, *arguments: Any) -> None:
    if blocks:
        device().launch(source, kernel, min(blocks, _MOST_BLOCKS), THREADS, 0, *arguments)


def _by_row(name: str, batch: CSRBatch) -> tuple[str, int]:
    """Kernel and blocks where a row belongs to a block if rows are long, else to a warp."""
    long = batch.nnz > _LONG_ROW * batch.n_rows
    blocks = batch.n_rows if long else -(-batch.n_rows * 32 // THREADS)
    return f"{name}_{'block' if long else 'warp'}_{_suffix(batch.values)}", blocks


def _sort_room(rows: int, items: int, kind: Any) -> tuple[int, int, int, Any]:
    """Blocks, items that `block_sort` has room for, their bytes of shared memory, scratch where they do not fit."""
    room = max(_TILE // THREADS, 1 << (items - 1).bit_length()) if 0 < items <= _TILE else -(-items // _TILE) * _TILE
    size = room * np.dtype(kind).itemsize
    if size <= device().largest_shared - _STATIC_SHARED:
        return min(max(rows, 1), _MOST_BLOCKS), room, size, None
    blocks = min(max(rows, 1), _BLOCKS_WITH_SCRATCH)
    return blocks, room, 0, _empty(blocks * room, kind)


def _columns(width: int, table: Any) -> tuple[int, int, int]:
    """Columns a thread, threads a team, and stretches of a team's columns that make up the width."""
    address = table.data.ptr if on_device(table) else table.ctypes.data
    columns = 1 if width % 4 or address % 16 else 4
    team = min(_TEAM, 1 << max(0, -(-width // columns) - 1).bit_length())
    return columns, team, -(-width // (team * columns))


def _fitting(blocks: int, stretches: int) -> int:
    return min(blocks, _MOST_BLOCKS // max(1, stretches))


def _layout(batch: CSRBatch) -> str:
    return f"{_suffix(batch.values)}_{_suffix(batch.indices)}"


def _suffix(array: Any) -> str:
    return _SUFFIX[array.dtype.name]


def _put(*arrays: Any) -> list[Any]:
    return [device().to_device(array) for array in arrays]


def _put_ids(indices: Any) -> Any:
    """Ids of 32 or 16 bits; what does not fit becomes one that no table has."""
    ids = device().to_device(indices)
    return ids.clip(-1, np.iinfo(np.int32).max).astype(np.int32) if ids.dtype == np.int64 else ids


def _empty(shape: Any, kind: Any) -> Any:
    return device().xp.empty(shape, kind)


def _zeros(shape: Any, kind: Any) -> Any:
    return device().xp.zeros(shape, kind)


def _room_for(out: Any) -> Any:
    """An array on the device for results that `out` shall hold: itself where it lies there."""
    return out if on_device(out) and out.flags.c_contiguous else _empty(out.shape, out.dtype)


def _fetch(array: Any, like: Any) -> Any:
    """Results where an array of the input lies."""
    return array if on_device(like) else device().to_host(array)


def _fetch_into(array: Any, out: Any) -> None:
    if on_device(out) and array is not out:
        out[...] = array
    elif array is not out:
        device().to_host(array, out)
