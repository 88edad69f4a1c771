"""What was planted in a simulated cohort: ``truth.parquet`` and the best AUROC that it allows.

One long table; `kind` says what a row is, columns that do not apply are null:

| kind | columns |
|---|---|
| given | row, subject_id, prediction_time, response_probability, omics_probability, record_probability |
| response | row, subject_id, prediction_time, drug, response_probability: had this drug alone been given |
| target | drug, gene |
| resistance | drug, gene: a mutation of the gene takes most of the drug's effect |
| prognostic | gene, effect: log hazard of death (per mutation, per sd of log expression or per log2 ratio) |

`row` is the row of episodes.parquet. `omics_probability` is the expected probability of response when only the
tumour, the indication and the regimen are known, averaging over the records of other subjects of the indication;
`record_probability` averages over tumours instead. Their AUROC are the restricted oracles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from ican_ml.cohort import simulate_world as world_
from ican_ml.cohort.simulate_course import regimen_sensitivity, response_probability
from ican_ml.cohort.simulate_world import DRUGS, RESISTANCE

_DRAWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What was planted; E episodes in the order of episodes.parquet, D drugs.

    Attributes
    ----------
    response_probability : float64 [E], under the regimen that was given
    omics_probability, record_probability : float64 [E], the same, knowing one side only
    probability : float64 [E, D], under each drug alone
    drugs : names, [D]
    targets, resistance : genes by drug
    prognostic : log hazard by gene
    """

    response_probability: NDArray[np.float64]
    omics_probability: NDArray[np.float64]
    record_probability: NDArray[np.float64]
    probability: NDArray[np.float64]
    drugs: tuple[str, ...]
    targets: dict[str, tuple[str, ...]]
    resistance: dict[str, tuple[str, ...]]
    prognostic: dict[str, float]


def oracle_auroc(
    response: NDArray[np.bool_], probability: NDArray[np.float64], rows: NDArray[np.int64] | None = None
) -> float:
    """AUROC (Mann-Whitney, ties count half) of a planted probability [E] for the response [E], on `rows` or all."""
    chosen = np.arange(len(response)) if rows is None else rows
    positive, score = np.asarray(response, dtype=bool)[chosen], probability[chosen]
    n_positive, n = int(positive.sum()), len(positive)
    if n_positive in (0, n):
        raise ValueError(f"AUROC needs both outcomes: got {n_positive} responses among {n} episodes")
    rank = rankdata(score)[positive].sum()
    return float((rank - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive)))


def make_truth(
    *,
    sensitivity: NDArray[np.float64],
    regimen: NDArray[np.bool_],
    fitness: NDArray[np.float64],
    record_term: NDArray[np.float64],
    drug_effect: NDArray[np.float64],
    indication: NDArray[np.int64],
    rng: np.random.Generator,
) -> Truth:
    """Probabilities of response, by the equations of `ican_ml.cohort.simulate`.

    Parameters
    ----------
    sensitivity, regimen : [E, D]
    fitness, record_term, indication : [E]
    drug_effect : [D]
    rng : chooses the other subjects over whom the restricted oracles average
    """
    constant = (regimen * drug_effect).sum(axis=1) / regimen.sum(axis=1)
    given = regimen_sensitivity(sensitivity, regimen)
    omics, record = np.zeros(len(fitness)), np.zeros(len(fitness))
    groups = [np.flatnonzero(indication == i) for i in np.unique(indication)]
    other = np.empty(len(fitness), dtype=np.int64)
    for _ in range(_DRAWS):
        for group in groups:
            other[group] = rng.choice(group, len(group))
        omics += response_probability(given, fitness[other], record_term[other] + constant)
        record += response_probability(
            regimen_sensitivity(sensitivity[other], regimen), fitness, record_term + constant
        )
    return Truth(
        response_probability=response_probability(given, fitness, record_term + constant),
        omics_probability=omics / _DRAWS,
        record_probability=record / _DRAWS,
        probability=response_probability(sensitivity, fitness[:, None], record_term[:, None] + drug_effect),
        drugs=tuple(drug.name for drug in DRUGS),
        targets={drug.name: drug.targets for drug in DRUGS},
        resistance={drug.name: RESISTANCE[drug.atc] for drug in DRUGS},
        prognostic=dict(world_.PROGNOSTIC),
    )


def write_truth(path: Path, truth: Truth, episodes: pl.DataFrame) -> None:
    """Write the table described above."""
    keys = episodes.select("subject_id", "prediction_time").with_row_index("row").cast({"row": pl.Int64})
    n, width = truth.probability.shape
    given = keys.with_columns(
        pl.lit("given").alias("kind"),
        pl.Series("response_probability", truth.response_probability),
        pl.Series("omics_probability", truth.omics_probability),
        pl.Series("record_probability", truth.record_probability),
    )
    each = keys[np.repeat(np.arange(n), width)].with_columns(
        pl.lit("response").alias("kind"),
        pl.Series("drug", list(truth.drugs) * n),
        pl.Series("response_probability", truth.probability.ravel()),
    )
    pairs = [
        pl.DataFrame([{"kind": kind, "drug": drug, "gene": gene} for drug, genes in table.items() for gene in genes])
        for kind, table in (("target", truth.targets), ("resistance", truth.resistance))
    ]
    genes = list(truth.prognostic)
    prognostic = pl.DataFrame({"gene": genes, "effect": [truth.prognostic[gene] for gene in genes]})
    tables = [given, each, *pairs, prognostic.with_columns(pl.lit("prognostic").alias("kind"))]
    first = ["kind", "row", "subject_id", "prediction_time", "drug", "gene", "response_probability"]
    table = pl.concat(tables, how="diagonal")
    table.select(*first, pl.exclude(first)).write_parquet(path)


def read_truth(path: Path) -> Truth:
    """Read ``truth.parquet``; `path` is the file or the cohort's folder."""
    table = pl.read_parquet(path / "truth.parquet" if path.is_dir() else path)
    parts = {str(key[0]): part for key, part in table.partition_by("kind", as_dict=True).items()}
    given, each = parts["given"].sort("row"), parts["response"].sort("row", maintain_order=True)
    drugs = tuple(each["drug"].unique(maintain_order=True).to_list())
    genes: dict[str, dict[str, tuple[str, ...]]] = {
        kind: {drug: tuple(parts[kind].filter(pl.col("drug") == drug)["gene"].to_list()) for drug in drugs}
        for kind in ("target", "resistance")
    }
    return Truth(
        response_probability=given["response_probability"].to_numpy(),
        omics_probability=given["omics_probability"].to_numpy(),
        record_probability=given["record_probability"].to_numpy(),
        probability=each["response_probability"].to_numpy().reshape(-1, len(drugs)),
        drugs=drugs,
        targets=genes["target"],
        resistance=genes["resistance"],
        prognostic=dict(parts["prognostic"].select("gene", "effect").iter_rows()),
    )
