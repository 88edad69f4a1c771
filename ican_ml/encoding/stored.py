"""Sparse matrices on disk: read in pieces or by rows, or mapped into memory, for those that do not fit.

In: the CSR matrix of an h5ad file or zarr folder (https://anndata.readthedocs.io/en/latest/fileformat-prose.html), or a
folder that `save_csr` wrote: `indptr.bin`, `indices.bin`, `values.bin` and `csr.json` (format `ican-csr/1`). Out:
`StoredCSR`, whose rows come as `CSRBatch` pieces of a bounded number of entries; or, from such a folder, one `CSRBatch`
whose arrays stay on disk and are paged in as they are read, by any number of processes at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.csr import CSRBatch, Int64, row_numbers, row_pieces

_FORMAT = "ican-csr/1"
_ENTRIES = 1 << 22
_ARRAYS = ("indptr", "indices", "values")


@dataclass(frozen=True, slots=True, eq=False)
class StoredCSR:
    """A matrix in compressed rows of which only the row pointers are in memory.

    Parameters
    ----------
    indptr
        int64 [rows + 1], from 0.
    indices, values
        [nnz], of any integer and number dtypes; anything that gives a NumPy array for a slice.
    n_features
        Width of the matrix.
    """

    indptr: Int64
    indices: Any
    values: Any
    n_features: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.indptr.size - 1

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return int(self.indptr[-1])

    def rows(self, start: int, stop: int) -> CSRBatch:
        """Rows start to stop - 1, read from disk; NaN entries are dropped."""
        part = slice(int(self.indptr[start]), int(self.indptr[stop]))
        return CSRBatch.from_arrays(
            self.indptr[start : stop + 1], self.indices[part], self.values[part], self.n_features
        )

    def pieces(self, entries: int = _ENTRIES) -> Iterator[CSRBatch]:
        """All rows in order, in pieces of about `entries` entries (a longer row is a piece of its own).

        `feature_stats(stored.pieces())` needs memory for two pieces, whatever the size of the matrix.
        """
        for start, stop in row_pieces(self.indptr, entries):
            yield self.rows(start, stop)

    def take(self, rows: npt.ArrayLike) -> CSRBatch:
        """Gather rows in the given order, repeats allowed, -1 for an empty row; reads runs of neighbours at once."""
        wanted = row_numbers(rows, self.n_rows)
        needed, place = np.unique(wanted[wanted >= 0], return_inverse=True)
        runs = np.split(needed, np.flatnonzero(np.diff(needed) > 1) + 1) if needed.size else []
        read = _joined([self.rows(int(run[0]), int(run[-1]) + 1) for run in runs], self.n_features)
        order = np.full(wanted.size, -1, np.int64)
        order[wanted >= 0] = place
        return read.take(order)


@contextmanager
def open_csr(path: Path, element: str = "X") -> Iterator[StoredCSR]:
    """Open a CSR element of an h5ad file or a zarr folder; it can be read while the context lasts.

    Parameters
    ----------
    path
        `<name>.h5ad` or `<name>.zarr`.
    element
        Where the matrix lies: `X`, `layers/counts`, ...

    Raises
    ------
    ValueError
        When the file holds no such element, or one that is not a CSR matrix.
    OSError
        When the file cannot be read.
    """
    if Path(path).is_dir():
        import zarr

        yield _described(zarr.open_group(path, mode="r"), path, element)
        return
    import h5py

    with h5py.File(path, "r") as file:
        yield _described(file, path, element)


def save_csr(rows: CSRBatch | Iterable[CSRBatch], folder: Path) -> None:
    """Write rows, at once or in pieces of one width and the same dtypes, as a folder for `map_csr`.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Raises
    ------
    ValueError
        When there is no piece, pieces differ in width or dtypes, or the folder exists.
    """
    if folder.exists():
        raise ValueError(f"expected a new folder, got {folder.name}, which exists; remove it first")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    pieces = iter([rows] if isinstance(rows, CSRBatch) else rows)
    first = next(pieces, None)
    if first is None:
        raise ValueError("save_csr needs at least one batch of rows, got none")
    layout = (first.n_features, first.indices.dtype.str, first.values.dtype.str)
    pointers = [np.zeros(1, np.int64)]
    with open(part / "indices.bin", "wb") as indices, open(part / "values.bin", "wb") as values:
        for batch in chain([first], pieces):
            found = (batch.n_features, batch.indices.dtype.str, batch.values.dtype.str)
            if found != layout:
                raise ValueError(f"pieces must share width and dtypes, got {layout} and {found}")
            batch.indices.tofile(indices)
            batch.values.tofile(values)
            pointers.append(batch.offsets[1:] + pointers[-1][-1])
    np.concatenate(pointers).tofile(part / "indptr.bin")
    dtypes = dict(zip(_ARRAYS, ("<i8", *layout[1:]), strict=True))
    document = {"format": _FORMAT, "n_features": first.n_features, "dtypes": dtypes}
    (part / "csr.json").write_text(json.dumps(document) + "\n")
    part.rename(folder)


def map_csr(folder: Path) -> CSRBatch:
    """Map a folder that `save_csr` wrote: nothing is loaded, pages are read as they are used.

    Raises
    ------
    ValueError
        When the folder holds something else, or arrays that do not belong together.
    """
    try:
        document = json.loads((folder / "csr.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a folder written by save_csr, got {folder.name} without a csr.json") from error
    if document.get("format") != _FORMAT:
        raise ValueError(f"expected format {_FORMAT}, got {document.get('format')!r} in {folder.name}")
    indptr, indices, values = (_mapped(folder / f"{name}.bin", document["dtypes"][name]) for name in _ARRAYS)
    return CSRBatch(indptr, indices, values, document["n_features"])


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))


def _described(root: Any, path: Path, element: str) -> StoredCSR:
    expected = f"expected a CSR matrix {element} in {Path(path).name}"
    if element not in root:
        raise ValueError(f"{expected}, got no such element; it has {sorted(root)}")
    stored = root[element]
    encoding = stored.attrs.get("encoding-type", "array")
    if encoding != "csr_matrix":
        raise ValueError(f"{expected}, got {encoding}; write it as a CSR matrix: X = scipy.sparse.csr_matrix(X)")
    n_rows, n_features = (int(n) for n in stored.attrs["shape"])
    indptr = np.asarray(stored["indptr"][:], np.int64)
    whole = indptr.shape == (n_rows + 1,) and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
    if not whole or not indptr[-1] == stored["indices"].shape[0] == stored["data"].shape[0]:
        raise ValueError(f"{expected}, got indptr, indices and data that do not belong together; write it again")
    return StoredCSR(indptr, stored["indices"], stored["data"], n_features)


def _joined(batches: list[CSRBatch], n_features: int) -> CSRBatch:
    if not batches:
        return CSRBatch(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), n_features)
    if len(batches) == 1:
        return batches[0]
    lengths = np.concatenate([np.diff(batch.indptr) for batch in batches])
    return CSRBatch(
        np.append(0, np.cumsum(lengths)),
        np.concatenate([batch.indices for batch in batches]),
        np.concatenate([batch.values for batch in batches]),
        n_features,
    )
