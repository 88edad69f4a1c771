"""The sparse batch that every encoding operator reads: three plain NumPy arrays and a width.

In: a SciPy sparse matrix or a dense array [rows, features], NaN = not measured. Out: `CSRBatch`, whose arrays any
backend can take without a copy. Plain arrays rather than a sparse matrix class, because 64-bit row offsets with
32-bit feature ids is the layout that neither wraps past 2^31 entries nor doubles the memory of the ids.

An entry is an entry: no operator merges duplicates. Two entries for one feature in one row are two terms of a
sum, two candidates for a token. `lookup` alone, which must answer with one number, takes the first stored.
An entry may be a stored zero; where a source was dense, that means "measured, and zero".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_LARGEST_FEATURE_COUNT = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, eq=False)
class CSRBatch:
    """Rows of a sparse matrix in compressed row form.

    Parameters
    ----------
    indptr
        int64 [rows + 1]. Row r holds entries `indptr[r]` to `indptr[r + 1]`.
    indices
        int32 [nnz]. Feature ids, in any order within a row; `sorted()` orders them.
    values
        float32 [nnz].
    n_features
        Width of the matrix.

    Raises
    ------
    ValueError
        When a dtype, a shape, an offset or a feature id breaks the layout above.
    """

    indptr: Int64
    indices: Int32
    values: Float32
    n_features: int

    def __post_init__(self) -> None:
        for name, array, dtype in (
            ("indptr", self.indptr, np.int64),
            ("indices", self.indices, np.int32),
            ("values", self.values, np.float32),
        ):
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(
                    f"CSRBatch.{name} must be a one-dimensional {np.dtype(dtype).name} array, got {array.dtype} "
                    f"{array.shape}; convert it, or build the batch with CSRBatch.from_scipy or CSRBatch.from_dense"
                )
            if not array.flags.c_contiguous:
                raise ValueError(f"CSRBatch.{name} must be contiguous; pass it through np.ascontiguousarray")
        if not 0 <= self.n_features <= _LARGEST_FEATURE_COUNT:
            raise ValueError(f"n_features must lie in 0..{_LARGEST_FEATURE_COUNT}, got {self.n_features}")
        if self.indptr.size == 0 or self.indptr[0] != 0:
            raise ValueError("indptr must hold rows + 1 offsets and start at 0")
        if (self.indptr[1:] < self.indptr[:-1]).any():
            raise ValueError("indptr must never decrease: a row ends where the next one starts")
        if not self.indptr[-1] == self.indices.size == self.values.size:
            raise ValueError(
                f"indptr ends at {self.indptr[-1]}, but there are {self.indices.size} indices and "
                f"{self.values.size} values; the three must be equal"
            )
        # Read as unsigned, a negative id is larger than any width: one pass checks both bounds.
        if self.indices.size and self.indices.view(np.uint32).max() >= self.n_features:
            raise ValueError(
                f"indices must lie in 0..{self.n_features - 1} for {self.n_features} features, got "
                f"{self.indices.min()}..{self.indices.max()}"
            )

    @classmethod
    def from_scipy(cls, matrix: Any) -> CSRBatch:
        """Batch of a SciPy sparse matrix or array; NaN entries are dropped, stored zeros and duplicates kept.

        Arrays that already have the right dtype are shared, not copied.
        """
        if matrix.ndim != 2:
            raise ValueError(f"expected a sparse matrix [rows, features], got {matrix.ndim} dimensions")
        matrix = matrix.tocsr()
        n_features = int(matrix.shape[1])
        if n_features > _LARGEST_FEATURE_COUNT:
            raise ValueError(f"n_features must lie in 0..{_LARGEST_FEATURE_COUNT}, got {n_features}")
        indptr = np.ascontiguousarray(matrix.indptr, np.int64)
        n_entries = int(indptr[-1])
        indices = np.ascontiguousarray(matrix.indices[:n_entries], np.int32)
        values = np.ascontiguousarray(matrix.data[:n_entries], np.float32)
        missing = np.isnan(values)
        if missing.any():
            kept_before = np.concatenate(([0], np.cumsum(~missing, dtype=np.int64)))
            indptr, indices, values = kept_before[indptr], indices[~missing], values[~missing]
        return cls(indptr, indices, values, n_features)

    @classmethod
    def from_dense(cls, array: npt.ArrayLike, keep_zeros: bool) -> CSRBatch:
        """Batch of a dense array [rows, features]; NaN means "not measured" and is never stored.

        Parameters
        ----------
        array
            Numbers [rows, features].
        keep_zeros
            True stores every entry that is not NaN, so that a measured zero can be told from a missing value.
            False stores the non-zero entries only.
        """
        dense = np.asarray(array, dtype=np.float32)
        if dense.ndim != 2:
            raise ValueError(f"expected an array [rows, features], got {dense.ndim} dimensions")
        stored = ~np.isnan(dense)
        if not keep_zeros:
            stored &= dense != 0
        _, columns = np.nonzero(stored)
        return cls(_offsets(stored.sum(axis=1)), columns.astype(np.int32), dense[stored], int(dense.shape[1]))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.indptr.size - 1

    @property
    def nnz(self) -> int:
        """Number of stored entries, stored zeros among them."""
        return self.indices.size

    def row_ids(self) -> Int64:
        """Row of every entry, int64 [nnz]."""
        return np.repeat(np.arange(self.n_rows, dtype=np.int64), np.diff(self.indptr))

    def take(self, rows: npt.ArrayLike) -> CSRBatch:
        """Gather rows in the given order, repeats allowed.

        Parameters
        ----------
        rows
            Integers [n]; -1 gives an empty row, so that "no sample" needs no special case.

        Raises
        ------
        ValueError
            When a row number lies outside -1..n_rows - 1, or `rows` is not a list of integers.
        """
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise ValueError(f"rows must be a list of row numbers, got {wanted.dtype} {wanted.shape}")
        wanted = wanted.astype(np.int64, copy=False)
        if wanted.size and not (wanted.min() >= -1 and wanted.max() < self.n_rows):
            raise ValueError(
                f"rows must lie in 0..{self.n_rows - 1} (-1 for an empty row), got {wanted.min()}..{wanted.max()}"
            )
        if self.n_rows == 0:
            return self._trusted(np.zeros(wanted.size + 1, np.int64), self.indices, self.values)
        starts = self.indptr[wanted]
        lengths = np.where(wanted < 0, 0, self.indptr[wanted + 1] - starts)
        indptr = _offsets(lengths)
        source = np.repeat(starts - indptr[:-1], lengths)
        source += np.arange(source.size, dtype=np.int64)
        return self._trusted(indptr, self.indices[source], self.values[source])

    def sorted(self) -> CSRBatch:
        """The same rows with feature ids ascending; entries of one feature keep their order."""
        rows = self.row_ids()
        position = rows * self.n_features + self.indices
        if not (position[1:] < position[:-1]).any():
            return self
        order = np.argsort(position, kind="stable")
        return self._trusted(self.indptr, self.indices[order], self.values[order])

    def with_values(self, values: Float32) -> CSRBatch:
        """The same entries with other values, float32 [nnz]; `indptr` and `indices` are shared."""
        if values.dtype != np.float32 or values.shape != self.values.shape:
            raise ValueError(f"expected float32 {self.values.shape}, got {values.dtype} {values.shape}")
        return self._trusted(self.indptr, self.indices, np.ascontiguousarray(values))

    def to_scipy(self) -> Any:
        """The batch as `scipy.sparse.csr_array` [rows, features], sharing memory where dtypes allow."""
        from scipy.sparse import csr_array

        shape = (self.n_rows, self.n_features)
        return csr_array((self.values, self.indices, self.indptr), shape=shape)

    def _trusted(self, indptr: Int64, indices: Int32, values: Float32) -> CSRBatch:
        """A batch of this width made from checked arrays, without checking them again."""
        batch = object.__new__(CSRBatch)
        for name, value in (
            ("indptr", indptr),
            ("indices", indices),
            ("values", values),
            ("n_features", self.n_features),
        ):
            object.__setattr__(batch, name, value)
        return batch


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FeatureStats:
    """Sums over the stored entries of each feature, from which means and variances follow.

    Parameters
    ----------
    sum, sum_of_squares
        float64 [features].
    count
        int64 [features]. Stored entries whose value is not zero.
    """

    sum: Float64
    sum_of_squares: Float64
    count: Int64


def _offsets(lengths: npt.NDArray[Any]) -> Int64:
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
