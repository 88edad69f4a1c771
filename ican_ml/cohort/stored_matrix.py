"""The matrix X of a modality as it lies on disk, read piece by piece.

In: the element ``X`` of an h5ad file (https://anndata.readthedocs.io/en/latest/fileformat-prose.html): a dense array
[samples, features], or CSR or CSC arrays. Out: :class:`StoredMatrix`, whose entries come in pieces of a bounded number,
so that a matrix larger than memory can be checked; :meth:`StoredMatrix.load` reads it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.checks import Problems, shown
from ican_ml.encoding.csr import CSRBatch, row_pieces

_ENTRIES = 1 << 18
Int64 = npt.NDArray[np.int64]
Entries = tuple[Int64, Int64, npt.NDArray[np.float32]]
_SPARSE = {"csr_matrix": "csr", "csc_matrix": "csc"}
_REWRITE = "write it with AnnData.write_h5ad"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredMatrix:
    """A matrix whose arrays are HDF5 datasets, or NumPy arrays once loaded.

    Attributes
    ----------
    layout
        ``dense``, ``csr`` or ``csc``.
    shape
        (samples, features).
    data
        [samples, features], or [nnz].
    indices, offsets
        Position within the row (CSR) or column (CSC) of each entry [nnz]; int64 [rows or columns + 1], in memory.
        Empty where dense.
    """

    layout: str
    shape: tuple[int, int]
    data: Any
    indices: Any
    offsets: Int64

    def load(self) -> StoredMatrix:
        """The same with all arrays in memory."""
        return replace(self, data=self.data[:], indices=self.indices[:])

    def entries(self) -> Iterator[Entries]:
        """Samples, features and float32 values in pieces; all entries of one row (CSR) or column (CSC) in one piece.

        NaN entries of a dense matrix are not measured, and left out.
        """
        if self.layout == "dense":
            yield from self._dense_entries()
            return
        for start, stop in row_pieces(self.offsets, _ENTRIES):
            part = slice(int(self.offsets[start]), int(self.offsets[stop]))
            major = np.repeat(np.arange(start, stop), np.diff(self.offsets[start : stop + 1]))
            minor, values = self.indices[part].astype(np.int64), self.data[part].astype(np.float32)
            yield (major, minor, values) if self.layout == "csr" else (minor, major, values)

    def _dense_entries(self) -> Iterator[Entries]:
        """Tiles of whole HDF5 chunks, each of which is unpacked once."""
        n_samples, n_features = self.shape
        high, wide = getattr(self.data, "chunks", None) or (1, max(n_features, 1))
        wide *= max(min(_ENTRIES // (high * wide), -(-n_features // wide)), 1)
        high *= max(_ENTRIES // (high * wide), 1)
        for top in range(0, n_samples, high):
            for left in range(0, n_features, wide):
                values = self.data[top : top + high, left : left + wide].astype(np.float32)
                row, column = np.nonzero(~np.isnan(values))
                yield row + top, column + left, values[row, column]

    def to_csr(self) -> CSRBatch:
        """Rows with ascending feature ids, of a loaded matrix whose entries were checked; a dense one keeps zeros."""
        if self.layout == "dense":
            return CSRBatch.from_dense(self.data, keep_zeros=True)
        from scipy.sparse import csc_matrix, csr_matrix

        kind = csr_matrix if self.layout == "csr" else csc_matrix
        return CSRBatch.from_scipy(kind((self.data, self.indices, self.offsets), shape=self.shape)).sorted()


def open_matrix(stored: Any, shape: tuple[int, int], file: str, problems: Problems) -> StoredMatrix | None:
    """Describe an element ``X``; ``None``, noted, where it is no matrix of numbers of this shape."""
    encoding = stored.attrs.get("encoding-type", "array")
    if encoding not in _SPARSE and (encoding != "array" or not hasattr(stored, "dtype")):
        expected = f"X as array, {shown(list(_SPARSE))}"
        problems.add("wrong-layout", file, column="X", expected=expected, got=str(encoding), fix=_REWRITE)
        return None
    sparse = encoding in _SPARSE
    data = stored["data"] if sparse else stored
    found = tuple(int(n) for n in (stored.attrs["shape"] if sparse else stored.shape))
    if found != shape:
        expected = f"X of shape {shape}, the rows of obs and var"
        problems.add("wrong-shape", file, column="X", expected=expected, got=str(found), fix=_REWRITE)
        return None
    if data.dtype != np.float32:
        number = data.dtype.kind in "fiub"
        problems.add(
            "inexact-dtype" if number else "wrong-dtype",
            file,
            column="X",
            severity="warning" if number else "error",
            expected="X of type float32",
            got=str(data.dtype),
            fix="convert it: X.astype(numpy.float32)",
        )
        if not number:
            return None
    if not sparse:
        return StoredMatrix(layout="dense", shape=shape, data=data, indices=np.zeros(0), offsets=np.zeros(1, np.int64))
    layout = _SPARSE[encoding]
    if layout == "csc":
        problems.add(
            "not-csr",
            file,
            column="X",
            severity="warning",
            expected="X in CSR form, rows together",
            got="CSC",
            fix="convert it: X.tocsr()",
        )
    indices, n_major = stored["indices"], shape[layout == "csc"]
    if indices.dtype.kind not in "iu" or stored["indptr"].shape != (n_major + 1,):
        offsets = None
    else:
        offsets = stored["indptr"][:].astype(np.int64)
        whole = offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] == len(data) == len(indices)
        offsets = offsets if whole else None
    if offsets is None:
        expected = "X whose indptr, indices and data belong together"
        problems.add("broken-matrix", file, column="X", expected=expected, got="others", fix=_REWRITE)
        return None
    return StoredMatrix(layout=layout, shape=shape, data=data, indices=indices, offsets=offsets)
