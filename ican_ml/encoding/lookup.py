"""`lookup` and `row_sums`: values of named features, and the totals of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ican_ml.encoding import reference
from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import Bool, CSRBatch, Float32


def row_sums(batch: CSRBatch, *, backend: Backend = "auto") -> Float32:
    """Total of every row, float32 [rows]: the size factor that `normalize_log1p` divides by, rounded once."""
    return resolve(backend, batch.values).row_sums(batch)


def lookup(batch: CSRBatch, features: npt.ArrayLike, *, backend: Backend = "auto") -> tuple[Float32, Bool]:
    """Values of named features in every row.

    NumPy serves every backend: a few features of a row are a binary search each.

    Parameters
    ----------
    features
        Integers [q] or [rows, q]: the same features of every row, or each row's own. Repeats allowed; -1 names none.

    Returns
    -------
    values
        float32 [rows, q]. Zero where nothing is stored. Of duplicate entries, the first stored.
    stored
        bool [rows, q]. Whether the row holds an entry for the feature, a stored zero included.

    Raises
    ------
    ValueError
        When a feature id lies outside -1..features - 1, or the shape is another.
    """
    resolve(backend, batch.values)
    wanted = np.asarray(features)
    if wanted.ndim not in (1, 2) or wanted.shape[:-1] not in ((), (batch.n_rows,)):
        raise ValueError(f"features must be feature ids [q] or [{batch.n_rows}, q], got {wanted.dtype} {wanted.shape}")
    if wanted.size and wanted.dtype.kind not in "iu":
        raise ValueError(f"features must be whole numbers, got {wanted.dtype}")
    if wanted.size and not (wanted.min() >= -1 and wanted.max() < batch.n_features):
        raise ValueError(
            f"features must lie in 0..{batch.n_features - 1} (-1 for none), got {wanted.min()}..{wanted.max()}"
        )
    return reference.lookup(batch, np.broadcast_to(wanted, (batch.n_rows, wanted.shape[-1])))
