"""`pad_ragged`: ragged rows, omics entries or record events, as the rectangular arrays that a network takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import Bool, Int64
from ican_ml.encoding.cuda_device import stream_of

Padded = tuple[list[npt.NDArray[Any]], Bool]


def pad_ragged(
    offsets: Int64,
    columns: Sequence[npt.NDArray[Any]],
    width: int,
    fills: Sequence[Any] | None = None,
    *,
    out: Padded | None = None,
    backend: Backend = "auto",
) -> Padded:
    """The first `width` entries of every row, in their order, and a mask that says which are there.

    Reads each column once and writes every cell once: a column's item size, and one byte of mask, a cell.

    Parameters
    ----------
    offsets
        int64 [rows + 1]. Row r holds entries `offsets[r] - offsets[0]` to `offsets[r + 1] - offsets[0]`.
    columns
        Arrays [entries] of any dtypes.
    width
        Length of a padded row; longer rows are cut.
    fills
        One value a column for the cells without an entry; zeros where None.
    out
        A former result of the same shape and dtypes to write into; new arrays where None.

    Returns
    -------
    padded
        One array [rows, width] a column, of its dtype.
    mask
        bool [rows, width]. True where an entry is.

    Raises
    ------
    ValueError
        When offsets decrease or do not span the columns, or `fills` or `out` do not belong to the columns.
    """
    with stream_of(offsets):
        n_rows = offsets.size - 1
        if offsets.dtype != np.int64 or n_rows < 0 or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(
                f"offsets must be int64 [rows + 1] and never decrease, got {offsets.dtype} {offsets.shape}"
            )
        for column in columns:
            if column.shape != (offsets[-1] - offsets[0],):
                raise ValueError(
                    f"columns must have {offsets[-1] - offsets[0]} entries, as offsets span; got {column.shape}"
                )
        if width < 0:
            raise ValueError(f"width must be zero or more, got {width}")
        wanted = [0] * len(columns) if fills is None else fills
        if len(wanted) != len(columns):
            raise ValueError(f"fills must have one value a column, {len(columns)}; got {len(wanted)}")
        shape = (n_rows, width)
        padded, mask = out or (
            [np.empty_like(column, shape=shape) for column in columns],
            np.empty_like(offsets, np.bool_, shape=shape),
        )
        expected = [(shape, column.dtype) for column in columns] + [(shape, mask.dtype)]
        if mask.dtype != np.bool_ or [(array.shape, array.dtype) for array in (*padded, mask)] != expected:
            raise ValueError(f"out must be a result for {len(columns)} columns of these dtypes, each array {shape}")
        scalars = [column.dtype.type(fill) for column, fill in zip(columns, wanted, strict=True)]
        resolve(backend, offsets).pad_ragged(offsets, columns, scalars, padded, mask)
    return padded, mask
