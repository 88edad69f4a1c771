"""Shared profiles: a gene that drugs with the same pattern of benefit target is likely this drug's target too.

Drugs of one target help the same samples (Rees et al. 2016, doi:10.1038/nchembio.1986). Two drugs' likeness is the
correlation of their residual benefits over the samples that met both; a gene's score is that of the most alike drug
which targets it. The drug's own targets are never looked at. Only samples that met several drugs count, since of few a
benefit is what the others lack; in clinical cohorts the line says nothing.

Shapes: P patients, D drugs, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
MIN_SHARED, _MIN_DRUGS = 20, 8


def likeness(benefit: Float64, patient: Int64, drug: Int64, n_drugs: int) -> Float64:
    """[D, D]: correlations over shared patients; NaN on the diagonal and where fewer than `MIN_SHARED` are shared.

    Parameters
    ----------
    benefit, patient, drug
        [K]: residual benefit, patient and drug of every (episode, drug), without NaN.
    """
    rows = np.unique(patient, return_inverse=True)[1]
    cell, n_rows = rows * n_drugs + drug, int(rows.max(initial=-1)) + 1
    count = np.bincount(cell, minlength=n_rows * n_drugs).reshape(n_rows, n_drugs)
    total = np.bincount(cell, benefit, n_rows * n_drugs).reshape(n_rows, n_drugs)
    known = ((count > 0) & ((count > 0).sum(1) >= _MIN_DRUGS)[:, None]).astype(np.float64)
    value = known * total / np.maximum(count, 1)
    shared = known.T @ known
    n = np.maximum(shared, 1)
    mean = value.T @ known / n  # [d, e]: of d, over the patients who had e too
    product = value.T @ value / n - mean * mean.T
    variance = np.square(value).T @ known / n - np.square(mean)
    spread = np.sqrt(np.maximum(variance * variance.T, 0))
    enough = (shared >= MIN_SHARED) & (spread > 1e-12) & ~np.eye(n_drugs, dtype=bool)
    return np.where(enough, product / np.where(enough, spread, 1.0), np.nan)


def shared_target(alike: Float64, targets: Sequence[Sequence[int]], n_genes: int) -> tuple[Float64, Int64]:
    """[D, G] twice: likeness to the most alike other drug with this target (NaN = none), and which it is (-1).

    Parameters
    ----------
    alike
        See :func:`likeness`.
    targets
        Of each drug, positions of its target genes.
    """
    score = np.full((len(alike), n_genes), np.nan)
    by = np.full((len(alike), n_genes), -1, np.int64)
    for other, genes in enumerate(targets):
        for gene in genes:
            closer = alike[:, other] > np.nan_to_num(score[:, gene], nan=-np.inf)
            score[closer, gene] = alike[closer, other]
            by[closer, gene] = other
    return score, by
