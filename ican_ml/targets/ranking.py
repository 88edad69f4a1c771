"""Lines of evidence -> one order of the genes, and false discovery rates.

A line's scores of a drug's genes are divided by their spread over the genes, whatever its scale, and added up (as
Stouffer et al. 1949 add z-scores). A line that says nothing of a gene counts as no evidence: 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def in_spreads(score: npt.NDArray[np.floating]) -> Float64:
    """[D, G]: each row divided by the root mean square of what is known of it; NaN becomes 0."""
    known = np.isfinite(score)
    found = np.where(known, score, 0.0).astype(np.float64)
    spread = np.sqrt(np.square(found).sum(1) / np.maximum(known.sum(1), 1))
    return found / np.where(spread > 0, spread, 1.0)[:, None]


def combined(lines: npt.NDArray[np.floating]) -> Float64:
    """[G]: of one drug, the lines [L, G] together."""
    found: Float64 = in_spreads(lines).sum(0)
    return found


def ranks(score: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """Along the last axis, 1 for the highest score; ties in order."""
    return (np.argsort(np.argsort(-score, axis=-1, kind="stable"), axis=-1) + 1).astype(np.int32)


def benjamini_hochberg(p: Float64, counted: npt.NDArray[np.bool_] | None = None) -> Float64:
    """q-values of the p-values that are counted as discoveries (all), of as many tests as there are p-values; else NaN.

    Those not counted say again what another says: counting them would make every discovery look less likely false.
    Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    known = np.flatnonzero(np.isfinite(p) if counted is None else np.isfinite(p) & counted)
    order = known[np.argsort(p[known], kind="stable")]
    q = np.full(p.shape, np.nan)
    scaled = p[order] * np.isfinite(p).sum() / np.arange(1, len(order) + 1)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return q
