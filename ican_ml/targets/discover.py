"""Rank every gene for every drug, or class of drugs, of a cohort: residual benefits -> lines of evidence -> one table.

Columns of the table, one row a drug (or class) and gene, none of which names a subject:

    drug or class, gene, episodes
    rank            of the gene as the drug's target, by all lines together; 1 = first
    z               association of the gene with benefit: above 0, those in whom it is higher or altered do better;
                    below 0 they do worse, as with resistance
    modality        that tells most of it
    p, q            two-sided; false discovery rate over the table, of leads
    lead            the gene itself, or the stronger one that it goes with: a neighbour on an amplicon
    elsewhere       z over all other drugs' episodes: what the gene says of anybody
    likeness, like  to the most alike other drug with this target, and its name
    known           the gene is listed as a target
    z:<modality>, elsewhere:<modality>
                    what each modality tells by itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    *("gene", "episodes", "rank", "z", "modality", "p", "lead", "q", "elsewhere"),
    *("likeness", "like", "known"),
)
By = Literal["drug", "class"]


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


def discover(
    cohort: Cohort, outcome: Outcome, *, by: By = "drug", permutations: int = 1000, seed: int = 7
) -> pl.DataFrame:
    """See the module docstring.

    Parameters
    ----------
    cohort
        With omics; episodes without a treatment take no part.
    outcome
        Of its episodes, row by row.
    by
        ``class``: drugs of one ATC code together. What resists one resists the others, and few tell of each alone.
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
    groups = {drug: (drug if by == "drug" else cohort.classes.get(drug)) for drug in cohort.targets}
    given = [[group for drug in treatment or () if (group := groups.get(drug))] for treatment in treatments]
    pairs = Pairs.of(given, np.isfinite(benefit))
    often = [d for d in range(len(pairs.names)) if (pairs.drug == d).sum() >= MIN_EPISODES]
    if not often:
        raise ValueError(f"targets: expected a {by} with {MIN_EPISODES} labelled episodes, got none")
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
    members = [[drug for drug, group in groups.items() if group == name] for name in pairs.names]
    listed = [sorted({place[g] for drug in drugs for g in cohort.targets[drug] if g in place}) for drugs in members]
    shared, nearest = shared_target(alike, listed, len(genes))
    names = [m.name for m in values.modalities]
    parts = [
        pl.DataFrame({by: [pairs.names[d]] * len(genes), "gene": genes}).with_columns(
            pl.lit(int((pairs.drug == d).sum())).alias("episodes"),
            *_columns(one, rest, names, genes),
            pl.Series("likeness", shared[d]),
            pl.Series("like", [pairs.names[k] if k >= 0 else None for k in nearest[d].tolist()], pl.String),
            pl.Series("known", np.isin(np.arange(len(genes)), listed[d])),
        )
        for d, one, rest in zip(often, found, elsewhere, strict=True)
    ]
    return _ranked(pl.concat(parts), by, len(genes))


def _columns(found: Association, elsewhere: Float64, modalities: list[str], genes: tuple[str, ...]) -> list[pl.Series]:
    towards = np.nan_to_num(found.by_modality * np.sign(np.nan_to_num(found.z))[:, None], nan=-np.inf)
    most = towards.argmax(1).tolist()
    told = np.isfinite(found.z)
    return [
        pl.Series("z", found.z),
        pl.Series(
            "modality", [modalities[m] if known else None for m, known in zip(most, told, strict=True)], pl.String
        ),
        pl.Series("p", found.p),
        pl.Series("lead", [genes[g] for g in found.lead.tolist()]),
        pl.Series("elsewhere", np.nan_to_num(elsewhere).sum(1) / found.spread),
        *(pl.Series(f"z:{name}", found.by_modality[:, m]) for m, name in enumerate(modalities)),
        *(pl.Series(f"elsewhere:{name}", elsewhere[:, m]) for m, name in enumerate(modalities)),
    ]


def _ranked(table: pl.DataFrame, by: str, n_genes: int) -> pl.DataFrame:
    """With rank and false discovery rate; the best of every drug first."""
    lines = [table[name].to_numpy().reshape(-1, n_genes) for name in ("z", "likeness")]
    together = sum(normal_scores(line) for line in lines)
    rank = np.argsort(np.argsort(-together, axis=1, kind="stable"), axis=1) + 1
    q = benjamini_hochberg(table["p"].to_numpy(), (table["lead"] == table["gene"]).to_numpy())
    table = table.with_columns(pl.Series("rank", rank.ravel().astype(np.int32)), pl.Series("q", q))
    by_modality = [name for name in table.columns if ":" in name]
    return table.select(by, *COLUMNS, *by_modality).sort(by, "rank").fill_nan(None)


def _numbered(values: list[object]) -> Int64:
    """int64 [E]: equal values have one number, from 0; a missing one is a value too."""
    number: dict[object, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values], np.int64)
