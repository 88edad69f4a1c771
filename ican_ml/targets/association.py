"""Association: do patients whose gene is altered, amplified or highly expressed benefit more from a drug, or less?

The univariate line of evidence, always shown beside the others. By drug, gene and modality the correlation of the
residual benefit (:mod:`ican_ml.targets.benefit`) with the gene's value, within strata, as a z-score; a gene's own is
their sum over modalities (Stouffer et al. 1949) in units of its spread by chance: a target tells by mutation, copy
number and expression, its neighbours on an amplicon by copy number alone. Whether it is more than chance: benefits are
shuffled within strata, all genes sharing one null (Storey and Tibshirani 2003, doi:10.1073/pnas.1530509100).

Shapes: E episodes, P permutations, H halves, G genes, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ican_ml.cohort.omics import Modality
from ican_ml.encoding.normalize_log1p import normalize_log1p

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
MIN_EPISODES, _MIN_CARRIERS = 20, 5
_MOST_LEADS, _TOGETHER = 300, 0.5
_LEAST_SPREAD, _AT_ONCE = 0.1, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Association:
    """Of one drug, NaN where a gene is not measured or varies too little.

    Attributes
    ----------
    by_modality
        [G, M] z-scores, positive where the gene's value goes with benefit.
    z
        [G]: all modalities together.
    spread
        [G]: standard deviation of the sum of a gene's z-scores by chance.
    p
        [G]: two-sided.
    lead
        int64 [G]: the gene with the largest |z| among those that it goes with in these patients, as neighbours on one
        amplicon do; its own where that is itself.
    halves
        float32 [H, G]: z of each half of the episodes, up to a factor.
    """

    by_modality: Float64
    z: Float64
    spread: Float64
    p: Float64
    lead: Int64
    halves: Float32


class GeneValues:
    """Values of genes in the samples of every modality, some patients at a time; the first feature of each gene.

    Counts as log1p of the value in 10,000, others as they are.
    """

    def __init__(self, modalities: Mapping[str, Modality], genes: tuple[str, ...]) -> None:
        self.genes = genes
        self.modalities = tuple(modalities.values())
        place = {gene: i for i, gene in enumerate(genes)}
        self._column = []
        for modality in self.modalities:
            column = np.full(len(modality.features), -1, np.int64)
            taken: set[str] = set()
            for i, gene in enumerate(modality.genes):
                if gene in place and gene not in taken:
                    column[i] = place[gene]
                    taken.add(gene)
            self._column.append(column)

    def of(self, samples: Int64) -> Float32:
        """[E, G, M] of int64 [E, M] sample rows (-1 = none); NaN where it is not measured."""
        found = np.full((len(samples), len(self.genes), len(self.modalities)), np.nan, np.float32)
        for m, (modality, column) in enumerate(zip(self.modalities, self._column, strict=True)):
            rows = np.flatnonzero(samples[:, m] >= 0)
            batch = modality.matrix.take(samples[rows, m])
            if modality.kind == "count":
                batch = normalize_log1p(batch, backend="reference")
            if not modality.explicit:
                panel = [modality.panels[str(name)] for name in modality.panel[samples[rows, m]]]
                measured = np.stack(panel) if panel else np.zeros((0, len(column)), bool)
                row, feature = np.nonzero(measured[:, column >= 0])
                found[rows[row], column[column >= 0][feature], m] = 0.0
            inside = column[batch.indices] >= 0
            found[rows[batch.row_ids()[inside]], column[batch.indices[inside]], m] = batch.values[inside]
        return found


def associate(
    benefit: Float64,
    values: Float32,
    stratum: Int64,
    *,
    permutations: int,
    rng: np.random.Generator,
    half: npt.NDArray[np.bool_] | None = None,
) -> Association:
    """Associations of one drug.

    Parameters
    ----------
    benefit
        [E] residuals of the episodes with this drug, without NaN.
    values
        [E, G, M], see :meth:`GeneValues.of`; changed in place.
    stratum
        int64 [E].
    permutations
        At least 1.
    half
        [H, E]: which episodes each half holds; none where it is not given.
    """
    n_episodes, n_genes, n_modalities = values.shape
    measured = np.isfinite(values)
    carriers = (measured & (values != 0)).sum(0).ravel()
    _centre(values, stratum)
    left = benefit - _means(benefit, stratum)[stratum]
    flat = np.where(measured, values, np.float32(0)).reshape(n_episodes, -1)
    square = np.einsum("ek,ek->k", flat, flat, dtype=np.float64)
    usual = measured.reshape(n_episodes, -1).sum(0)
    told = (usual >= MIN_EPISODES) & (carriers >= _MIN_CARRIERS) & (square > 1e-9)
    spread = np.sqrt(np.where(told, square, np.inf) * max(float(np.square(left).mean()), 1e-12))
    by_modality = np.where(told, (left @ flat) / spread, np.nan).reshape(n_genes, n_modalities)
    null = np.empty((permutations, n_genes), np.float32)
    for start in range(0, permutations, _AT_ONCE):
        some = null[start : start + _AT_ONCE]
        shuffled = np.stack([_shuffled(left, stratum, rng) for _ in some]).astype(np.float32)
        some[:] = ((shuffled @ flat) / spread).reshape(len(some), n_genes, n_modalities).sum(2)
    weighted = np.where(half, left, 0.0) if half is not None else np.empty((0, n_episodes))
    halves = ((weighted.astype(np.float32) @ flat) / spread).reshape(-1, n_genes, n_modalities).sum(2)
    flat *= np.where(told, 1 / np.sqrt(np.where(told, square, 1.0)), 0.0).astype(np.float32)
    unit = flat.reshape(values.shape)
    chance = np.sqrt(np.square(unit.sum(2, dtype=np.float64)).sum(0))
    chance = np.where(chance > _LEAST_SPREAD, chance, np.nan)  # modalities that cancel out tell nothing
    z, halves = np.nan_to_num(by_modality).sum(1) / chance, (halves / chance).astype(np.float32)
    pool = np.sort(np.abs(null / chance)[:, np.isfinite(chance)], axis=None)
    p = (1 + len(pool) - np.searchsorted(pool, np.abs(z), side="left")) / (1 + len(pool))
    p = np.where(np.isfinite(z), p, np.nan)
    return Association(by_modality=by_modality, z=z, spread=chance, p=p, lead=_leads(z, unit), halves=halves)


def _leads(z: Float64, unit: Float32) -> Int64:
    """[G]: greedily from the largest |z|, each gene under the first that it correlates with in any modality."""
    order = np.argsort(-np.abs(np.nan_to_num(z)), kind="stable")[:_MOST_LEADS]
    first = unit[:, order]
    together = np.abs(np.einsum("egm,ehm->mgh", first, first)).max(0) > _TOGETHER
    lead = np.arange(len(z))
    free = np.ones(len(order), bool)
    for i, gene in enumerate(order):
        if free[i]:
            lead[order[free & together[i]]] = gene
            free &= ~together[i]
            free[i] = False
    return lead


def _means(values: Float64, stratum: Int64) -> Float64:
    found: Float64 = np.bincount(stratum, values) / np.maximum(np.bincount(stratum), 1)
    return found


def _centre(values: Float32, stratum: Int64) -> None:
    """Subtract each stratum's mean, of what is measured, in place."""
    for s in np.unique(stratum):
        rows = np.flatnonzero(stratum == s)
        part = values[rows]
        count = np.maximum(np.isfinite(part).sum(0), 1)
        values[rows] = part - np.nansum(part, axis=0) / count


def _shuffled(values: Float64, stratum: Int64, rng: np.random.Generator) -> Float64:
    """The same values, in another order within each stratum."""
    found = np.empty_like(values)
    shuffled = rng.permutation(len(values))
    found[np.argsort(stratum, kind="stable")] = values[shuffled[np.argsort(stratum[shuffled], kind="stable")]]
    return found
