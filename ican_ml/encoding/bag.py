"""`bag` and `bag_transposed`: products of sparse rows with a table, in NumPy. `csr_bag` is the same for torch.

A weighted embedding bag (torch's `F.embedding_bag(mode="sum", per_sample_weights=values)`) is the product of the sparse
matrix [rows, features] with a table [features, width]; its gradient for the table is that of the transposed matrix.
"""

from __future__ import annotations

import numpy as np

from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import CSRBatch, Float32


def bag(batch: CSRBatch, table: Float32, *, backend: Backend = "auto") -> Float32:
    """Sum of `value * table[feature]` over each row's entries.

    Duplicate features add up; an empty row is zero. The order of additions is that of the row alone, so its sum does
    not depend on other rows or on threads. Reads 8 bytes an entry and, from the cache where it fits, a row of the
    table.

    Parameters
    ----------
    table
        float32 [features, width].

    Returns
    -------
    float32 [rows, width]

    Raises
    ------
    ValueError
        When the table has another dtype or shape.
    """
    _check("table", table, batch.n_features)
    return resolve(backend, batch.values).bag(batch.indptr, batch.indices, batch.values, table)


def bag_transposed(batch: CSRBatch, rows_table: Float32, *, backend: Backend = "auto") -> Float32:
    """Sum of `value * rows_table[row]` over each feature's entries, added in the order of rows.

    Parameters
    ----------
    rows_table
        float32 [rows, width].

    Returns
    -------
    float32 [features, width]

    Raises
    ------
    ValueError
        When the table has another dtype or shape.
    """
    _check("rows_table", rows_table, batch.n_rows)
    return resolve(backend, batch.values).bag_transposed(
        batch.indptr, batch.indices, batch.values, rows_table, batch.n_features
    )


def _check(name: str, table: Float32, n_rows: int) -> None:
    if table.dtype != np.float32 or table.ndim != 2 or len(table) != n_rows or not table.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous float32 ({n_rows}, width), got {table.dtype} {table.shape}")
