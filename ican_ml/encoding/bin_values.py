"""`bin_values`: a row's values as quantile bins, comparable between rows of any depth.

Binning within a row follows scGPT (Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0), made
deterministic: edges are order statistics, never interpolated, and equal values share a bin, never drawn at random.
"""

from __future__ import annotations

from ican_ml.encoding.backends import Backend, resolve
from ican_ml.encoding.csr import CSRBatch, Int32

_MOST_BINS = 1 << 20


def bin_values(batch: CSRBatch, n_bins: int, *, backend: Backend = "auto") -> Int32:
    """Bin of every entry: `ceil(n_bins * F(value))`, F the distribution of its row's non-zero entries.

    F(v) is the share of the row's entries, zeros and NaN left out, that are at most v; so bin b holds what lies above
    the order statistic number floor((b - 1) n / n_bins) of n, up to that number floor(b n / n_bins) or to the last
    value equal to it. All in whole numbers: equal bit for bit across backends. Any increasing change of a row, such
    as `normalize_log1p`, leaves its bins as they are. Reads 4 bytes an entry (2 in 16 bits) and writes 4; small counts
    need no sort.

    Parameters
    ----------
    batch
        Values of either sign; one row may hold a feature more than once.
    n_bins
        1 to 2^20.

    Returns
    -------
    int32 [nnz]
        1 to n_bins; 0 for an entry that is zero or NaN. Aligned with `batch.indices`.

    Raises
    ------
    ValueError
        When `n_bins` is another number.
    """
    if not 1 <= n_bins <= _MOST_BINS:
        raise ValueError(f"n_bins must lie in 1..{_MOST_BINS}, got {n_bins}")
    return resolve(backend, batch.values).bin_values(batch, int(n_bins))
