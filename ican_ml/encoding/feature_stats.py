"""`feature_stats`: what means and variances of features are made of, in one pass over any number of rows.

A matrix that does not fit into memory comes in pieces (`ican_ml.encoding.stored`), which are summed as they come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import CSRBatch, Float64, Int64
from ican_ml.encoding.cuda_device import stream_of


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

    def __add__(self, other: FeatureStats) -> FeatureStats:
        """The sums over the rows of both."""
        return FeatureStats(
            sum=self.sum + other.sum,
            sum_of_squares=self.sum_of_squares + other.sum_of_squares,
            count=self.count + other.count,
        )


def feature_stats(batches: CSRBatch | Iterable[CSRBatch], *, backend: Backend = "auto") -> FeatureStats:
    """Sum, sum of squares (float64) and number of non-zero entries of every feature.

    Entries that are not stored add nothing: the caller knows how many rows measured a feature, and so what to
    divide by. A stored NaN makes its feature's sums NaN. Reads every entry once (8 bytes; 4 in 16 bits); scratch is
    24 bytes a feature for every 2^19 entries, at most 16 times.

    Parameters
    ----------
    batches
        Rows, at once or in pieces of one width. Where the rows are cut decides the order of additions, and so the last
        bits; the number of threads does not.

    Raises
    ------
    ValueError
        When there is no piece at all, or pieces differ in width.
    """
    total: FeatureStats | None = None
    for batch in [batches] if isinstance(batches, CSRBatch) else batches:
        sums, squares, count = resolve(backend, batch.values).feature_stats(batch)
        if total is not None and total.sum.size != sums.size:
            raise ValueError(f"batches must have one width, got {total.sum.size} and {sums.size} features")
        part = FeatureStats(sum=sums, sum_of_squares=squares, count=count)
        with stream_of(part.sum):
            total = part if total is None else total + part
    if total is None:
        raise ValueError("feature_stats needs at least one batch of rows, got none")
    return total
