"""Rank every gene for every drug of a cohort: residual benefits -> lines of evidence -> one table.

Columns of the table, one row a drug and gene; effects are correlations within strata, of which none names a subject:

    drug, gene, episodes
    rank                      of the gene for the drug, by both lines together; 1 = first
    association, modality     highest z-score over modalities, and of which
    p                         of that association, one-sided
    lead                      the gene itself, or the stronger one that it goes with: a neighbour on an amplicon
    q                         of leads: false discovery rate over all pairs
    harm, p_harm, lead_harm, q_harm
                              the same of the lowest z-score: those who have it benefit less (resistance)
    elsewhere                 z-score of the same modality over the episodes of other drugs: what it says of anybody
    likeness, like            to the most alike other drug with this target, and its name
    known                     the gene is listed as the drug's target
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import latest_samples
from ican_ml.evaluation.outcome import Outcome
from ican_ml.targets.association import MIN_EPISODES, Association, GeneValues, associate
from ican_ml.targets.benefit import residual_benefit
from ican_ml.targets.elsewhere import Sums
from ican_ml.targets.profiles import likeness, shared_target
from ican_ml.targets.ranking import benjamini_hochberg, normal_scores

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
COLUMNS = (
    *("drug", "gene", "episodes", "rank", "association", "modality", "p", "lead", "q"),
    *("harm", "p_harm", "lead_harm", "q_harm", "elsewhere", "likeness", "like", "known"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Every labelled (episode, drug): rows of the episodes and ids of the drugs, [K] each."""

    row: Int64
    drug: Int64
    names: tuple[str, ...]

    @classmethod
    def of(cls, treatments: list[list[str]], labelled: npt.NDArray[np.bool_]) -> Pairs:
        names = sorted({drug for row in np.flatnonzero(labelled).tolist() for drug in treatments[row]})
        number = {name: i for i, name in enumerate(names)}
        found = [
            (row, number[drug]) for row in np.flatnonzero(labelled).tolist() for drug in dict.fromkeys(treatments[row])
        ]
        row, drug = np.array(found, np.int64).reshape(-1, 2).T
        return cls(row=row, drug=drug, names=tuple(names))


def discover(cohort: Cohort, outcome: Outcome, *, permutations: int = 1000, seed: int = 7) -> pl.DataFrame:
    """See the module docstring.

    Parameters
    ----------
    cohort
        With omics; episodes without a treatment take no part.
    outcome
        Of its episodes, row by row.
    permutations
        Of the benefits of each drug.

    Raises
    ------
    ValueError
        If there are no omics, or no drug has enough episodes.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    episodes = cohort.episodes
    if not cohort.modalities:
        raise ValueError("targets: expected a cohort with omics, got none")
    treatments = episodes["treatment"].to_list()
    subject = episodes["subject_id"].to_numpy()
    patient = np.unique(subject, return_inverse=True)[1].astype(np.int64)
    indication = episodes["indication"].to_list() if "indication" in episodes.columns else [""] * len(episodes)
    stratum = _numbered(indication)
    regimen = _numbered([tuple(sorted(treatment or ())) for treatment in treatments])
    benefit = residual_benefit(outcome, regimen=regimen, stratum=stratum, patient=patient)
    pairs = Pairs.of([list(treatment or ()) for treatment in treatments], np.isfinite(benefit))
    often = [d for d in range(len(pairs.names)) if (pairs.drug == d).sum() >= MIN_EPISODES]
    if not often:
        raise ValueError(f"targets: expected a drug with {MIN_EPISODES} labelled episodes, got none")
    genes = tuple(sorted({gene for m in cohort.modalities.values() for gene in m.genes if gene}))
    values = GeneValues(cohort.modalities, genes)
    moment = episodes["prediction_time"].cast(pl.Datetime("us")).to_numpy()
    samples = np.stack([latest_samples(m, subject, moment) for m in values.modalities], axis=1)
    rng = np.random.default_rng(seed)
    n_strata = int(stratum.max(initial=0)) + 1
    overall = Sums.over(benefit, values, samples, stratum, np.flatnonzero(np.isfinite(benefit)), n_strata)
    found, elsewhere = [], []
    for d in tqdm(often, disable=None, unit="drug", desc="targets"):
        rows = pairs.row[pairs.drug == d]
        elsewhere.append(overall.without(Sums.over(benefit, values, samples, stratum, rows, n_strata)))
        part = np.unique(stratum[rows], return_inverse=True)[1].astype(np.int64)
        found.append(associate(benefit[rows], values.of(samples[rows]), part, permutations=permutations, rng=rng))
    alike = likeness(benefit[pairs.row], patient[pairs.row], pairs.drug, len(pairs.names))
    place = {gene: i for i, gene in enumerate(genes)}
    listed = [[place[g] for g in cohort.targets.get(name, ()) if g in place] for name in pairs.names]
    shared, by = shared_target(alike, listed, len(genes))
    names = [m.name for m in values.modalities]
    parts = [
        pl.DataFrame({"drug": [pairs.names[d]] * len(genes), "gene": genes}).with_columns(
            pl.lit(int((pairs.drug == d).sum())).alias("episodes"),
            *_columns(one, rest, names, genes),
            pl.Series("likeness", shared[d]),
            pl.Series("like", [pairs.names[k] if k >= 0 else None for k in by[d].tolist()], pl.String),
            pl.Series("known", np.isin(np.arange(len(genes)), listed[d])),
        )
        for d, one, rest in zip(often, found, elsewhere, strict=True)
    ]
    return _ranked(pl.concat(parts), len(genes))


def _columns(found: Association, elsewhere: Float64, modalities: list[str], genes: tuple[str, ...]) -> list[pl.Series]:
    told = np.asarray(np.isfinite(found.z).any(axis=1))
    z = np.nan_to_num(found.z, nan=-np.inf)
    best = z.argmax(1)
    at = np.arange(len(z))
    return [
        pl.Series("association", np.where(told, z[at, best], np.nan)),
        pl.Series("modality", [modalities[m] if told[g] else None for g, m in enumerate(best.tolist())], pl.String),
        pl.Series("p", found.p_benefit),
        pl.Series("lead", [genes[g] for g in found.lead_benefit.tolist()]),
        pl.Series("harm", np.where(told, np.nan_to_num(found.z, nan=np.inf).min(1), np.nan)),
        pl.Series("p_harm", found.p_harm),
        pl.Series("lead_harm", [genes[g] for g in found.lead_harm.tolist()]),
        pl.Series("elsewhere", elsewhere[at, best]),
    ]


def _ranked(table: pl.DataFrame, n_genes: int) -> pl.DataFrame:
    """With rank and false discovery rates; the best of every drug first."""
    lines = [table[name].to_numpy().reshape(-1, n_genes) for name in ("association", "likeness")]
    together = sum(normal_scores(line) for line in lines)
    rank = np.argsort(np.argsort(-together, axis=1, kind="stable"), axis=1) + 1
    q, q_harm = (
        benjamini_hochberg(table[f"p{side}"].to_numpy(), (table[f"lead{side}"] == table["gene"]).to_numpy())
        for side in ("", "_harm")
    )
    table = table.with_columns(
        pl.Series("rank", rank.ravel().astype(np.int32)), pl.Series("q", q), pl.Series("q_harm", q_harm)
    )
    return table.select(*COLUMNS).sort("drug", "rank").fill_nan(None)


def _numbered(values: list[object]) -> Int64:
    """int64 [E]: equal values have one number, from 0; a missing one is a value too."""
    number: dict[object, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values], np.int64)
