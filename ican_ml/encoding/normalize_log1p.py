"""`normalize_log1p`: every row scaled to one total, then log(1 + x): two of Scanpy's passes in one.

Source: Wolf, Angerer, Theis, Genome Biology 2018, doi:10.1186/s13059-017-1382-0.
"""

from __future__ import annotations

import numpy as np

from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import CSRBatch, Float32
from ican_ml.encoding.cuda_device import stream_of

NOT_COUNTS = (
    "normalize_log1p reads counts: every value must be zero or more, but the batch holds a negative value or NaN; "
    "was it normalised or centred before?"
)


def normalize_log1p(
    batch: CSRBatch, target_sum: float = 1e4, *, out: Float32 | None = None, backend: Backend = "auto"
) -> CSRBatch:
    """`log1p(value * target_sum / row_sum)` of every entry.

    The row sum is taken in float64. Rows that sum to zero stay zero. Stored zeros stay stored. Within twice the error
    of the formula in float32. Reads the values once and writes as many: 8 bytes an entry (float32), 6 (uint16).

    Parameters
    ----------
    batch
        Counts or other values that are not negative.
    target_sum
        Total of every row before the logarithm; positive.
    out
        float32 [nnz] to write into, `batch.values` itself among others; a new array where None.

    Returns
    -------
    CSRBatch
        The same entries with float32 values.

    Raises
    ------
    ValueError
        When a value is negative or NaN (`out` may then be written in part), `target_sum` is not a positive number, or
        `out` has another dtype or shape.
    """
    check_target_sum(target_sum)
    if out is None:
        with stream_of(batch.values):
            out = np.empty_like(batch.values, np.float32)
    elif out.dtype != np.float32 or out.shape != (batch.nnz,) or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous float32 ({batch.nnz},), got {out.dtype} {out.shape}")
    if resolve(backend, batch.values).normalize_log1p(batch, float(target_sum), out):
        raise ValueError(NOT_COUNTS)
    return batch.with_values(out)


def check_target_sum(target_sum: float) -> None:
    """Refuse a total that is not a positive number of float32."""
    if not 0 < target_sum < 1e38:
        raise ValueError(f"target_sum must be a positive number that fits float32, got {target_sum}")
