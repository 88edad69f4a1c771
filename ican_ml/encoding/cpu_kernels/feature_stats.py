"""Sums by feature. Parts of the entries are summed apart, then together: parts of the data, not of the threads."""

from __future__ import annotations

import numba
import numpy as np

from ican_ml.encoding.cpu_kernels.jit import Driver, jit
from ican_ml.encoding.csr import Float64, Ids, Values


@jit()
def stats(indices: Ids, values: Values, part: Float64) -> None:
    """Adds to `part` float64 [features, 3]: sum, sum of squares, non-zero entries."""
    for i in range(indices.size):
        value = np.float64(values[i])
        sums = part[indices[i]]
        sums[0] += value
        sums[1] += value * value
        sums[2] += value != 0


@Driver
def stats_all(n: int, indices: Ids, values: Values, parts: Float64) -> None:
    size, n_parts = indices.size, parts.shape[0]
    for p in numba.prange(n_parts):
        start, end = size * p // n_parts, size * (p + 1) // n_parts
        stats(indices[start:end], values[start:end], parts[p])
