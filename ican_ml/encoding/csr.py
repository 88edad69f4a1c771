"""The sparse batch that every encoding operator reads: three plain NumPy arrays and a width.

In: a SciPy, AnnData or torch matrix in compressed rows, or a dense array [rows, features] with NaN = not measured.
Out: `CSRBatch`, whose arrays any backend can take without a copy. Plain arrays rather than a sparse matrix class:
64-bit row pointers with ids of 32 or 16 bits neither wrap past 2^31 entries nor double the memory of the ids, and
counts fit 16 bits (`compact`), which halves what must be read, or sent to a device.

An entry is an entry: no operator merges duplicates. Two entries for one feature in one row are two terms of a
sum, two candidates for a token. `lookup` alone, which must answer with one number, takes the first stored.
An entry may be a stored zero; where a source was dense, that means "measured, and zero".

Row pointers need not start at 0: `rows(start, stop)` of a large matrix, on disk or in memory, keeps the pointers of the
whole and shares its arrays.
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
Ids = npt.NDArray[np.int32] | npt.NDArray[np.uint16]
Values = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

_LARGEST_FEATURE_COUNT = np.iinfo(np.int32).max
_DTYPES = {"indptr": ("int64",), "indices": ("int32", "uint16"), "values": ("float32", "uint16")}


@dataclass(frozen=True, slots=True, eq=False)
class CSRBatch:
    """Rows of a sparse matrix in compressed row form.

    Parameters
    ----------
    indptr
        int64 [rows + 1]. Row r holds entries `indptr[r] - indptr[0]` to `indptr[r + 1] - indptr[0]`.
    indices
        int32 or uint16 [nnz]. Feature ids, in any order within a row; `sorted()` orders them.
    values
        float32 or uint16 [nnz].
    n_features
        Width of the matrix.

    Raises
    ------
    ValueError
        When a dtype, a shape, a pointer or a feature id breaks the layout above.
    """

    indptr: Int64
    indices: Ids
    values: Values
    n_features: int

    def __post_init__(self) -> None:
        for name, array in (("indptr", self.indptr), ("indices", self.indices), ("values", self.values)):
            if array.dtype.name not in _DTYPES[name] or array.ndim != 1:
                raise ValueError(
                    f"CSRBatch.{name} must be a one-dimensional {' or '.join(_DTYPES[name])} array, got {array.dtype} "
                    f"{array.shape}; convert it, or build the batch with CSRBatch.from_scipy or CSRBatch.from_dense"
                )
            if not array.flags.c_contiguous:
                raise ValueError(f"CSRBatch.{name} must be contiguous; pass it through np.ascontiguousarray")
        if not 0 <= self.n_features <= _LARGEST_FEATURE_COUNT:
            raise ValueError(f"n_features must lie in 0..{_LARGEST_FEATURE_COUNT}, got {self.n_features}")
        if self.indptr.size == 0 or self.indptr[0] < 0:
            raise ValueError("indptr must hold rows + 1 pointers, none below 0")
        if (self.indptr[1:] < self.indptr[:-1]).any():
            raise ValueError("indptr must never decrease: a row ends where the next one starts")
        if not self.indptr[-1] - self.indptr[0] == self.indices.size == self.values.size:
            raise ValueError(
                f"indptr spans {self.indptr[-1] - self.indptr[0]} entries, but there are {self.indices.size} indices "
                f"and {self.values.size} values; the three must be equal"
            )
        # Read as unsigned, a negative id is larger than any width: one pass checks both bounds.
        if self.indices.size and self.indices.view(f"uint{8 * self.indices.itemsize}").max() >= self.n_features:
            raise ValueError(
                f"indices must lie in 0..{self.n_features - 1} for {self.n_features} features, got "
                f"{self.indices.min()}..{self.indices.max()}"
            )

    @classmethod
    def from_arrays(cls, indptr: Any, indices: Any, values: Any, n_features: int) -> CSRBatch:
        """Batch of arrays of any integer and number dtypes; NaN entries are dropped, stored zeros and duplicates kept.

        Arrays that already have a dtype of the layout are shared, not copied.

        Raises
        ------
        ValueError
            When there are more features than 32 bits can number, or the arrays break the layout.
        """
        if n_features > _LARGEST_FEATURE_COUNT:
            raise ValueError(f"n_features must lie in 0..{_LARGEST_FEATURE_COUNT}, got {n_features}")
        pointers = np.ascontiguousarray(indptr, np.int64)
        indices, values = (
            np.ascontiguousarray(array, None if array.dtype.name in _DTYPES[name] else _DTYPES[name][0])
            for name, array in (("indices", indices), ("values", values))
        )
        if values.dtype == np.float32 and np.isnan(values).any():
            kept = ~np.isnan(values)
            before = np.concatenate(([0], np.cumsum(kept, dtype=np.int64)))
            pointers, indices, values = before[pointers - pointers[0]], indices[kept], values[kept]
        return cls(pointers, indices, values, int(n_features))

    @classmethod
    def from_scipy(cls, matrix: Any) -> CSRBatch:
        """Batch of a SciPy sparse matrix or array, such as AnnData's X; see `from_arrays` for what is shared."""
        if matrix.ndim != 2:
            raise ValueError(f"expected a sparse matrix [rows, features], got {matrix.ndim} dimensions")
        matrix = matrix.tocsr()
        n_entries = int(matrix.indptr[-1])
        return cls.from_arrays(matrix.indptr, matrix.indices[:n_entries], matrix.data[:n_entries], matrix.shape[1])

    @classmethod
    def from_torch(cls, matrix: Any) -> CSRBatch:
        """Batch of a `torch.sparse_csr` tensor [rows, features] on the CPU; see `from_arrays` for what is shared."""
        indptr, indices = matrix.crow_indices().numpy(), matrix.col_indices().numpy()
        return cls.from_arrays(indptr, indices, matrix.values().detach().numpy(), matrix.shape[1])

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
        return cls(_pointers(stored.sum(axis=1)), columns.astype(np.int32), dense[stored], int(dense.shape[1]))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.indptr.size - 1

    @property
    def nnz(self) -> int:
        """Number of stored entries, stored zeros among them."""
        return self.indices.size

    @property
    def offsets(self) -> Int64:
        """Row pointers from 0, int64 [rows + 1]: positions in `indices` and `values`."""
        return self.indptr - self.indptr[0] if self.indptr[0] else self.indptr

    def row_ids(self) -> Int64:
        """Row of every entry, int64 [nnz]."""
        return np.repeat(np.arange(self.n_rows, dtype=np.int64), np.diff(self.indptr))

    def rows(self, start: int, stop: int) -> CSRBatch:
        """Rows start to stop - 1 as a view: every array is shared, row pointers stay those of the whole."""
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows must lie in 0..{self.n_rows}, got {start}..{stop}")
        part = slice(int(self.indptr[start] - self.indptr[0]), int(self.indptr[stop] - self.indptr[0]))
        return self._trusted(self.indptr[start : stop + 1], self.indices[part], self.values[part])

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
        wanted = row_numbers(rows, self.n_rows)
        present = wanted[wanted >= 0]
        starts, stops = self.indptr[present] - self.indptr[0], self.indptr[present + 1] - self.indptr[0]
        lengths = np.zeros(wanted.size, np.int64)
        lengths[wanted >= 0] = stops - starts
        parts = [slice(*bounds) for bounds in zip(starts.tolist(), stops.tolist(), strict=True)]
        indices, values = (
            np.concatenate([array[:0], *(array[part] for part in parts)]) for array in (self.indices, self.values)
        )
        return self._trusted(_pointers(lengths), indices, values)

    def to_device(self) -> CSRBatch:
        """The same rows on the current CUDA device, where operators then read them in place and leave their results.

        Raises
        ------
        BackendUnavailable
            When there is no such device, or CuPy is not installed.
        """
        from ican_ml.encoding.backends import resolve

        cuda: Any = resolve("cuda")
        return self._trusted(*cuda.to_device(self))

    def sorted(self) -> CSRBatch:
        """The same rows with feature ids ascending; entries of one feature keep their order."""
        position = self.row_ids() * self.n_features + self.indices
        if not (position[1:] < position[:-1]).any():
            return self
        order = np.argsort(position, kind="stable")
        return self._trusted(self.indptr, self.indices[order], self.values[order])

    def compact(self) -> CSRBatch:
        """The same entries in 16 bits where nothing is lost: ids below 2^16, whole values in 0..65535."""
        indices, values = self.indices, self.values
        if self.n_features <= 1 << 16:
            indices = indices.astype(np.uint16, copy=False)
        if values.dtype != np.uint16 and (not values.size or (values.min() >= 0 and values.max() < 1 << 16)):
            narrow = values.astype(np.uint16)
            values = narrow if (narrow == values).all() else values
        return self._trusted(self.indptr, indices, values)

    def with_values(self, values: Values) -> CSRBatch:
        """The same entries with other values, float32 or uint16 [nnz]; `indptr` and `indices` are shared."""
        if values.dtype.name not in _DTYPES["values"] or values.shape != self.values.shape:
            raise ValueError(f"expected float32 or uint16 {self.values.shape}, got {values.dtype} {values.shape}")
        contiguous = values if values.flags.c_contiguous else values.copy()
        return self._trusted(self.indptr, self.indices, contiguous)

    def to_scipy(self) -> Any:
        """The batch as `scipy.sparse.csr_array` [rows, features], sharing memory where dtypes allow."""
        from scipy.sparse import csr_array

        indices = self.indices.astype(np.int32, copy=False)
        return csr_array((self.values, indices, self.offsets), shape=(self.n_rows, self.n_features))

    def _trusted(self, indptr: Int64, indices: Ids, values: Values) -> CSRBatch:
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


def on_device(array: Any) -> bool:
    """Whether an array lies in the memory of a CUDA device."""
    return hasattr(array, "__cuda_array_interface__")


def row_numbers(rows: Any, n_rows: int) -> Int64:
    """Check row numbers [n], -1 = none, and return them as int64; where they lie is where they stay."""
    wanted: Any = rows if on_device(rows) else np.asarray(rows)
    if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise ValueError(f"rows must be a list of row numbers, got {wanted.dtype} {wanted.shape}")
    if wanted.size and not (wanted.min() >= -1 and wanted.max() < n_rows):
        raise ValueError(f"rows must lie in 0..{n_rows - 1} (-1 for an empty row), got {wanted.min()}..{wanted.max()}")
    numbers: Int64 = wanted.astype(np.int64, order="C", copy=False)
    return numbers


def row_pieces(indptr: Int64, entries: int) -> list[tuple[int, int]]:
    """Cut rows into runs (start, stop) of at most `entries` entries each, never within a row: one may hold more."""
    pieces, start, n_rows = [], 0, indptr.size - 1
    while start < n_rows:
        stop = int(np.searchsorted(indptr, indptr[start] + entries, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows)
        pieces.append((start, stop))
        start = stop
    return pieces


def _pointers(lengths: npt.NDArray[Any]) -> Int64:
    pointers = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=pointers[1:])
    return pointers
