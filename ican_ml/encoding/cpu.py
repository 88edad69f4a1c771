"""The operators in Numba, for all the cores of one machine.

In and out as the operators' own modules document. Here memory is allocated and the number of threads chosen: little
work runs on the caller's thread, since waking others costs more. The arithmetic is in `cpu_kernels`. Results never
depend on the number of threads. Arguments are trusted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from ican_ml.encoding.cpu_kernels import bin_values as bins
from ican_ml.encoding.cpu_kernels import csr_bag as bags
from ican_ml.encoding.cpu_kernels import feature_stats as stats
from ican_ml.encoding.cpu_kernels import normalize_log1p as normalise
from ican_ml.encoding.cpu_kernels import pad_ragged as padding
from ican_ml.encoding.cpu_kernels import rank_tokens as ranks
from ican_ml.encoding.cpu_kernels.tiles import TILE
from ican_ml.encoding.csr import Bool, CSRBatch, Float32, Float64, Int32, Int64

WORK_WORTH_THREADS = 1 << 22  # operations, about a millisecond; a thread that must be woken may cost as much
_ENTRIES_PER_STATS_PART = 1 << 19
_LARGEST_STATS_SCRATCH = 1 << 24
_USES_WORTH_PACKING = 4  # entries a feature
_CACHED_TABLE = 1 << 18  # numbers, 1 MB: a table this small stays in a core's cache as it is
_ALIGNMENT = 64  # bytes

_fork_broke_threads = False


def _after_fork_in_child() -> None:
    """GNU OpenMP aborts a forked child that uses threads started by its parent: stay serial there."""
    global _fork_broke_threads
    try:
        _fork_broke_threads = numba.threading_layer() == "omp"  # type: ignore[attr-defined]
    except ValueError:  # no thread was started yet
        _fork_broke_threads = False


os.register_at_fork(after_in_child=_after_fork_in_child)


def _threads(work: int) -> int:
    if work < WORK_WORTH_THREADS or _fork_broke_threads:
        return 1
    return int(numba.get_num_threads())


def normalize_log1p(batch: CSRBatch, target_sum: float, out: Float32) -> int:
    """See `normalize_log1p.normalize_log1p`; returns how many entries are negative or NaN."""
    return int(normalise.normalize_all(_threads(8 * batch.nnz), batch.indptr, batch.values, target_sum, out))


def row_sums(batch: CSRBatch) -> Float32:
    """See `lookup.row_sums`."""
    out = np.empty(batch.n_rows, np.float32)
    normalise.sums_all(_threads(batch.nnz), batch.indptr, batch.values, out)
    return out


def feature_stats(batch: CSRBatch) -> tuple[Float64, Float64, Int64]:
    """See `feature_stats.feature_stats`. The parts that are summed depend on the batch, never on the machine."""
    most_parts = max(1, min(16, _LARGEST_STATS_SCRATCH // max(1, 3 * batch.n_features)))
    parts = np.zeros((min(most_parts, 1 + batch.nnz // _ENTRIES_PER_STATS_PART), batch.n_features, 3), np.float64)
    stats.stats_all(_threads(4 * batch.nnz), batch.indices, batch.values, parts)
    total = parts.sum(axis=0)
    return np.ascontiguousarray(total[:, 0]), np.ascontiguousarray(total[:, 1]), total[:, 2].astype(np.int64)


def rank_tokens(
    batch: CSRBatch, rows: Int64, scale: Float32, k: int, by_magnitude: bool, target_sum: float | None
) -> tuple[Int32, Float32, Int32, int]:
    """See `rank_tokens.row_tokens`; `target_sum` None: no values, 0: raw ones. Last: entries that are no counts."""
    tokens, lengths = np.empty((rows.size, k), np.int32), np.empty(rows.size, np.int32)
    token_values = np.empty((0, 0) if target_sum is None else tokens.shape, np.float32)
    threads = _threads(32 * batch.nnz * rows.size // max(1, batch.n_rows))
    options = (scale, by_magnitude, float(target_sum or 0), tokens, token_values, lengths)
    refused = ranks.rank_all(threads, batch.indptr, batch.indices, batch.values, rows, *options)
    return tokens, token_values, lengths, int(refused)


def bin_values(batch: CSRBatch, n_bins: int) -> Int32:
    """See `bin_values.bin_values`."""
    out = np.empty(batch.nnz, np.int32)
    bins.bins_all(_threads(32 * batch.nnz), batch.indptr, batch.values, n_bins, out)
    return out


def pad_ragged(
    offsets: Int64, columns: Sequence[Any], fills: Sequence[Any], padded: Sequence[npt.NDArray[Any]], mask: Bool
) -> None:
    """See `pad_ragged.pad_ragged`; writes into `padded` and `mask`."""
    threads = _threads(mask.size)
    padding.mask_all(threads, offsets, mask)
    for column, fill, out in zip(columns, fills, padded, strict=True):
        padding.pad_all(threads, offsets, column, fill, out)


def bag(indptr: Int64, indices: Any, values: Any, table: Float32) -> Float32:
    """See `bag.bag`, with the batch's arrays: float32 [rows, width]."""
    threads = _threads(indices.size * table.shape[1])
    out, tiles = _aligned((indptr.size - 1, table.shape[1])), _tiles(indices.size, *table.shape)
    bags.pack_all(threads, table, tiles)
    bags.gather_all(threads, indptr, indices, values, table, tiles, out)
    return out


def bag_at(*addresses_and_sizes: int) -> bool:
    """`bag` of a small batch by the addresses of its arrays: see `cpu_kernels.csr_bag.bag_at`."""
    return bool(bags.bag_at(*addresses_and_sizes))


def bag_transposed(indptr: Int64, indices: Any, values: Any, rows_table: Float32, n_features: int) -> Float32:
    """See `bag.bag_transposed`, with the batch's arrays: float32 [features, width]."""
    width = rows_table.shape[1]
    threads = _threads(indices.size * width)
    out, tiles = _aligned((n_features, width)), _tiles(indices.size, n_features, width)
    out[...] = 0
    tiles[...] = 0
    bags.scatter_all(threads, indptr, indices, values, rows_table, tiles, out)
    bags.unpack_all(threads, tiles, out)
    return out


def bag_grad_values(indptr: Int64, indices: Any, table: Float32, grad: Float32) -> Float32:
    """Gradient of `bag` for its values, float32 [nnz]: `grad[row] . table[feature]` of each entry."""
    out = np.empty(indices.size, np.float32)
    bags.grad_values_all(_threads(indices.size * grad.shape[1]), indptr, indices, table, grad, out)
    return out


def _tiles(n_entries: int, n_features: int, width: int) -> Float32:
    """Room for a table in tiles, or for none where too few entries would use it."""
    worth_it = n_entries > _USES_WORTH_PACKING * n_features and n_features * width > _CACHED_TABLE
    return _aligned((width // TILE if worth_it else 0, n_features, TILE))


def _aligned(shape: tuple[int, ...]) -> Float32:
    """Uninitialised float32 array whose memory starts at a multiple of 64 bytes."""
    spare = _ALIGNMENT // 4
    size = math.prod(shape)
    memory = np.empty(size + spare, np.float32)
    start = -(memory.ctypes.data // 4) % spare
    return memory[start : start + size].reshape(shape)
