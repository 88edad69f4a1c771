"""The operators in Numba, for all the cores of one machine.

In and out as `operators` documents; `bag` and its gradients serve `ican_ml.encoding.bag`. Here memory is allocated
and the number of threads chosen: little work runs on the caller's thread, since waking others costs more. The
arithmetic is in `cpu_kernels`. Results never depend on the number of threads. Arguments are trusted.
"""

from __future__ import annotations

import os

import numba
import numpy as np

from ican_ml.encoding import cpu_kernels as kernels
from ican_ml.encoding.csr import CSRBatch, FeatureStats, Float32, Int32, Int64

_WORK_WORTH_THREADS = 1 << 22  # operations, about a millisecond; a thread that must be woken may cost as much
_ENTRIES_PER_STATS_PART = 1 << 19
_LARGEST_STATS_SCRATCH = 1 << 24

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
    if work < _WORK_WORTH_THREADS or _fork_broke_threads:
        return 1
    return int(numba.get_num_threads())


def normalize_log1p(batch: CSRBatch, target_sum: float) -> CSRBatch:
    """See `operators.normalize_log1p`. The logarithm is a polynomial, within one unit in the last place."""
    out = np.empty_like(batch.values)
    threads = _threads(8 * batch.nnz)
    if threads == 1:
        kernels.normalize(0, batch.n_rows, batch.indptr, batch.values, target_sum, out)
    else:
        kernels.normalize_threads(4 * threads, batch.indptr, batch.values, target_sum, out)
    return batch.with_values(out)


def feature_stats(batch: CSRBatch) -> FeatureStats:
    """See `operators.feature_stats`. The parts that are summed depend on the batch, never on the machine."""
    most_parts = max(1, min(16, _LARGEST_STATS_SCRATCH // max(1, 3 * batch.n_features)))
    n_parts = min(most_parts, 1 + batch.nnz // _ENTRIES_PER_STATS_PART)
    parts = np.zeros((n_parts, batch.n_features, 3), np.float64)
    if n_parts == 1 or _threads(4 * batch.nnz) == 1:
        for part in range(n_parts):
            start, end = batch.nnz * part // n_parts, batch.nnz * (part + 1) // n_parts
            kernels.stats(batch.indices[start:end], batch.values[start:end], parts[part])
    else:
        kernels.stats_threads(batch.indices, batch.values, parts)
    total = parts.sum(axis=0)
    return FeatureStats(
        sum=np.ascontiguousarray(total[:, 0]),
        sum_of_squares=np.ascontiguousarray(total[:, 1]),
        count=total[:, 2].astype(np.int64),
    )


def rank_tokens(batch: CSRBatch, scale: Float32, k: int, by_magnitude: bool) -> tuple[Int32, Int32]:
    """See `operators.rank_tokens`."""
    tokens = np.full((batch.n_rows, k), -1, np.int32)
    lengths = np.zeros(batch.n_rows, np.int32)
    threads = _threads(32 * batch.nnz)
    arrays = (batch.indptr, batch.indices, batch.values, scale, by_magnitude, tokens, lengths)
    if k == 0:
        return tokens, lengths
    if threads == 1:
        kernels.rank(0, batch.n_rows, *arrays)
    else:
        kernels.rank_threads(4 * threads, *arrays)
    return tokens, lengths


def row_sums(batch: CSRBatch) -> Float32:
    """See `operators.row_sums`."""
    out = np.empty(batch.n_rows, np.float32)
    threads = _threads(batch.nnz)
    if threads == 1:
        kernels.sums(0, batch.n_rows, batch.indptr, batch.values, out)
    else:
        kernels.sums_threads(4 * threads, batch.indptr, batch.values, out)
    return out


def bag(indptr: Int64, indices: Int32 | Int64, values: Float32, table: Float32) -> Float32:
    """`out[r] = sum of values[i] * table[indices[i]]` over the entries i of row r, float32 [rows, width]."""
    n_rows = indptr.size - 1
    out = np.empty((n_rows, table.shape[1]), np.float32)
    threads = _threads(values.size * table.shape[1])
    if threads == 1:
        kernels.bag(0, n_rows, indptr, indices, values, table, out)
    else:
        kernels.bag_threads(4 * threads, indptr, indices, values, table, out)
    return out


def bag_grad_table(indptr: Int64, indices: Int32 | Int64, values: Float32, grad: Float32, n_features: int) -> Float32:
    """Gradient of `bag` for its table, float32 [features, width]: a bag of the transposed entries over `grad`.

    A thread owns whole features and adds their entries in row order, so the sum is race-free and always the same.
    """
    starts, rows, by_feature = np.zeros(n_features + 1, np.int64), np.empty_like(indices), np.empty_like(values)
    kernels.transpose(indptr, indices, values, starts, rows, by_feature)
    return bag(starts, rows, by_feature, grad)


def bag_grad_values(indptr: Int64, indices: Int32 | Int64, table: Float32, grad: Float32) -> Float32:
    """Gradient of `bag` for its values, float32 [nnz]: `grad[row] . table[feature]` of each entry."""
    out = np.empty(indices.size, np.float32)
    threads = _threads(indices.size * grad.shape[1])
    if threads == 1:
        kernels.bag_grad_values(0, indptr.size - 1, indptr, indices, table, grad, out)
    else:
        kernels.bag_grad_values_threads(4 * threads, indptr, indices, table, grad, out)
    return out
