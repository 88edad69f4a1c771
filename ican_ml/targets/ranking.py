"""Lines of evidence -> one order of the genes: sum of normal scores of their ranks, and false discovery rates.

Each line ranks the genes of a drug, whatever its scale; ranks become normal scores (van der Waerden 1952), which are
summed over the lines (Stouffer et al. 1949). A line that says nothing of a gene counts as no evidence: its zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def normal_scores(score: npt.NDArray[np.floating]) -> Float64:
    """[D, G]: of each row's ranks, ties sharing the mean one; NaN counts as 0."""
    from scipy.stats import norm, rankdata

    ranks = rankdata(np.nan_to_num(score, nan=0.0), axis=1)
    found: Float64 = norm.ppf((ranks - 0.5) / score.shape[1])
    return found


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
