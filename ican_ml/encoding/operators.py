"""The encoding operators, NumPy in and NumPy out: each docstring fixes a meaning that every backend keeps.

In: a `CSRBatch` of raw measurements [rows, features]. Out: normalised values, statistics of features, the tokens a
transformer reads, values of named features. A row's result depends on that row alone, so a patient gets the same
answer alone as in a batch, on any number of threads.

Across backends integer outputs are equal bit for bit: whatever decides an order is one float32 product, rounded once
and never fused. Float outputs lie within twice the error that a plain float32 implementation has against float64.
Normalisation follows Scanpy's `normalize_total` and `log1p` (Wolf et al., Genome Biology 2018); tokens ranked by
value over a feature's typical value follow Geneformer (Theodoris et al., Nature 2023).

`backend`: "auto" takes the fastest that runs here; naming one that cannot run raises `BackendUnavailable`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ican_ml.encoding import reference
from ican_ml.encoding.backends import Backend, BackendUnavailable, resolve
from ican_ml.encoding.csr import Bool, CSRBatch, FeatureStats, Float32, Int32

__all__ = [
    "Backend",
    "BackendUnavailable",
    "feature_stats",
    "lookup",
    "normalize_log1p",
    "rank_tokens",
    "row_sums",
]


def normalize_log1p(batch: CSRBatch, target_sum: float = 1e4, *, backend: Backend = "auto") -> CSRBatch:
    """Scale every row to one total and take log(1 + x): `log1p(value * target_sum / row_sum)`.

    The row sum is taken in float64. Rows that sum to zero stay zero. Stored zeros stay stored.

    Parameters
    ----------
    batch
        Counts or other values that are not negative.
    target_sum
        Total of every row before the logarithm; positive.

    Raises
    ------
    ValueError
        When a value is negative or NaN, or `target_sum` is not a positive number.
    """
    if not 0 < target_sum < 1e38:
        raise ValueError(f"target_sum must be a positive number that fits float32, got {target_sum}")
    if batch.nnz and not batch.values.min() >= 0:
        raise ValueError(
            "normalize_log1p reads counts: every value must be zero or more, but the batch holds a negative value or "
            "NaN; was it normalised or centred before?"
        )
    return resolve(backend).normalize_log1p(batch, float(target_sum))


def feature_stats(batch: CSRBatch, *, backend: Backend = "auto") -> FeatureStats:
    """Sum, sum of squares (float64) and number of non-zero entries of every feature.

    Entries that are not stored add nothing: the caller knows how many rows measured a feature, and so what to
    divide by. A stored NaN makes its feature's sums NaN.
    """
    return resolve(backend).feature_stats(batch)


def rank_tokens(
    batch: CSRBatch, scale: Float32, k: int, by_magnitude: bool = False, *, backend: Backend = "auto"
) -> tuple[Int32, Int32]:
    """The k most telling features of every row, most telling first.

    An entry's key is the float32 product `value * scale[feature]`, its absolute value where `by_magnitude`. Keys
    are ranked in descending order, ties by ascending feature id. An entry whose key is zero (of either sign) or NaN
    is no token. Negative keys are ordinary: they come last. Each entry is a candidate, duplicates included.
    Dividing a row by its total would not change its order, so raw values serve.

    Parameters
    ----------
    batch
        Values, features in any order within a row.
    scale
        float32 [features], for example one over a feature's typical value.
    k
        Most tokens a row may have.
    by_magnitude
        True for signed modalities, where far below zero tells as much as far above.

    Returns
    -------
    tokens
        int32 [rows, k]. Feature ids, -1 beyond a row's last token.
    lengths
        int32 [rows]. Tokens in each row.

    Raises
    ------
    ValueError
        When `scale` is not float32 [features], or k is negative.
    """
    if scale.dtype != np.float32 or scale.shape != (batch.n_features,):
        raise ValueError(f"scale must be float32 ({batch.n_features},), got {scale.dtype} {scale.shape}")
    if k < 0:
        raise ValueError(f"k must be zero or more, got {k}")
    return resolve(backend).rank_tokens(batch, np.ascontiguousarray(scale), int(k), bool(by_magnitude))


def row_sums(batch: CSRBatch, *, backend: Backend = "auto") -> Float32:
    """Total of every row, float32 [rows]: the size factor that `normalize_log1p` divides by, rounded once."""
    return resolve(backend).row_sums(batch)


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
    resolve(backend)
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
