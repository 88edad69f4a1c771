"""Are targets found, and told from chance? On a drug screen, on simulated cohorts, and where there is none to find.

    python benchmarks/targets.py                  two hours on two cores; goes on where it stopped
    python benchmarks/targets.py --check          exit code 1, and each figure that falls short by name

*gdsc*: of the drugs with a listed target in the panel, in how many is one of them among the first ten of 706 genes, and
the AUROC of targets against all other genes; by each line of evidence alone and together. No drug's own targets are
looked at; those of others are, and with ``same target hidden`` neither are those of drugs that share one with it.
Virtual inhibition is by networks that each never saw a fifth of the drugs, and are asked about these. *simulated*:
10,000 subjects, three seeds: area under the precision-recall curve, by drug; the false discovery proportion at nominal
10%, leads counted once; genes that resist a class of drugs told from prognostic ones. *left out*: the same cohorts, the
targets of drugs that the network never saw. *null*: responses shuffled 50 times; p-values must be uniform.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from record import ROOT, Record, composed

from ican_ml.cohort.cohort import Cohort, read_cohort
from ican_ml.cohort.simulate import simulate
from ican_ml.cohort.simulate_truth import read_truth
from ican_ml.config import RunConfig
from ican_ml.discovery import cross_fitted_inhibition, observations
from ican_ml.evaluation.metrics import auprc, auroc
from ican_ml.evaluation.outcome import Outcome
from ican_ml.fitting import fit_stage
from ican_ml.fold import Prepared, encode_fold
from ican_ml.prepare import prepare
from ican_ml.release import load_fitted
from ican_ml.run_folder import RunFolder
from ican_ml.targets.asking import as_batch, own_regimen
from ican_ml.targets.association import associate
from ican_ml.targets.attribution import attribute
from ican_ml.targets.discover import discover
from ican_ml.targets.observations import Observations
from ican_ml.targets.profiles import shared_target
from ican_ml.targets.ranking import combined, ranks
from ican_ml.training.outcomes import read_outcomes

SEEDS, SUBJECTS, NULLS, NULL_SUBJECTS, LEVEL = (7, 8, 9), 10_000, 50, 3_000, 0.1
FIRST, LEAST_FIRST, LEAST_AUROC, LEAST_AUPRC, MOST_FALSE, LEAST_P = 10, 0.4, 0.74, 0.8, 0.12, 0.01
LEAST_RESISTANCE, LEAST_UNSEEN = 0.9, 0.6
SAMPLES = 10
EPOCHS = "training.epochs=8"
FAMILIES = {
    "EGFR": ("AZD3759", "Erlotinib", "Gefitinib", "Osimertinib"),
    "EGFR or ERBB2": ("Afatinib",),
    "MAP2K1 or MAP2K2 or BRAF or KRAS or NRAS": ("PD0325901", "Selumetinib", "Trametinib"),
}


def main() -> None:
    """Measure what is not on file, print, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that falls short")
    arguments = parser.parse_args()
    record = Record("targets", libraries=("scipy", "polars"))
    parts: dict[str, Any] = {f"simulated {seed}": lambda seed=seed: simulated(seed) for seed in SEEDS}
    parts |= {f"left out {seed}": lambda seed=seed: left_out(seed) for seed in SEEDS}
    if os.environ.get("ICAN_COHORTS"):
        parts["gdsc"] = gdsc
    parts["null"] = null
    for name, measure in parts.items():
        if name not in record.parts:
            record.add(name, measure())
    print(json.dumps(record.parts, indent=1))
    short = faults(record.parts)
    print("\n".join(short) or "nothing falls short")
    sys.exit(int(arguments.check and bool(short)))


def faults(parts: dict[str, Any]) -> list[str]:
    """What falls short, in words."""
    short = []
    if (found := parts.get("gdsc")) is not None:
        first, area = found["together"]["first_ten"], found["together"]["auroc"]
        if first < LEAST_FIRST or area < LEAST_AUROC:
            short.append(
                f"gdsc: {first:.3f} among the first ten, AUROC {area:.3f}, expected {LEAST_FIRST}, {LEAST_AUROC}"
            )
        short += [
            f"gdsc: {drug} ranks {genes} at {rank}, expected among the first ten"
            for drug, genes, rank in found["missed"]
        ]
    each = [parts[f"simulated {seed}"] for seed in SEEDS]
    curve, false = (float(np.mean([found[name] for found in each])) for name in ("auprc", "false_discovery_proportion"))
    if curve < LEAST_AUPRC:
        short.append(f"simulated: AUPRC {curve:.3f}, expected at least {LEAST_AUPRC}")
    unseen = float(np.mean([parts[f"left out {seed}"]["auprc"]["together"] for seed in SEEDS]))
    if unseen < LEAST_UNSEEN:
        short.append(f"simulated: AUPRC of drugs left out {unseen:.3f}, expected at least {LEAST_UNSEEN}")
    resistance = float(np.mean([found["resistance_auroc"] for found in each]))
    if resistance < LEAST_RESISTANCE:
        short.append(f"simulated: resistance against prognosis AUROC {resistance:.3f}, least {LEAST_RESISTANCE}")
    if false > MOST_FALSE:
        short.append(f"simulated: false discovery proportion {false:.3f}, expected at most {MOST_FALSE}")
    if parts["null"]["uniform_p"] < LEAST_P:
        short.append(f"null: p-values not uniform (p {parts['null']['uniform_p']:.2g}), expected at least {LEAST_P}")
    return short


def simulated_cohort(subjects: int, seed: int) -> Cohort:
    """As :mod:`ican_ml.cohort.simulate` makes it, in ``cohorts/``."""
    path = ROOT / "cohorts" / f"simulated-{subjects}-{seed}"
    if not path.exists():
        simulate(path, subjects=subjects, seed=seed)
    return read_cohort(path)


def outcome_of(cohort: Cohort, name: str, kind: str) -> Outcome:
    """Of the cohort's episodes."""
    return read_outcomes(cohort.episodes, {name: kind})[name]


def simulated(seed: int) -> dict[str, Any]:
    """How well planted targets are found by association."""
    cohort = simulated_cohort(SUBJECTS, seed)
    outcome = outcome_of(cohort, "response", "binary")
    table = discover(Observations.of(cohort, outcome))
    each = [
        auprc(part["known"].to_numpy(), part["z"].fill_null(-99.0).to_numpy()) for part in table.partition_by("drug")
    ]
    by_class = discover(Observations.of(cohort, outcome, by="class"), permutations=1)
    found = table.filter((pl.col("q") <= LEVEL) & (pl.col("z") > 0))
    return {
        "auprc": float(np.mean(each)),
        "discoveries": len(found),
        "false_discovery_proportion": float(1 - found["known"].mean()) if len(found) else 0.0,
        "power": float(found["known"].sum() / table["known"].sum()),
        "resistance_auroc": _resistance(by_class, cohort),
    }


def run_on(cohort: str, *overrides: str) -> tuple[RunConfig, Prepared, Observations, RunFolder]:
    """What discovery needs of a run that is not begun."""
    config = composed(*overrides, f"cohort.path={cohort}", "discover=true")
    config = replace(config, runs=str(ROOT / "runs"))
    prepared = prepare(config)
    return config, prepared, observations(config, prepared), RunFolder(Path(config.runs) / config.name)


def left_out(seed: int) -> dict[str, Any]:
    """Virtual inhibition, by a network that never saw a fifth of the drugs, of the targets of these; eight epochs."""
    path = simulated_cohort(SUBJECTS, seed).path
    config, prepared, observed, folder = run_on(str(path), "experiment=demo", EPOCHS, f"name=targets-simulated-{seed}")
    inhibition = cross_fitted_inhibition(config, prepared, observed, folder, (0,))
    rng = np.random.default_rng(seed)
    scores: dict[str, list[float]] = {"association": [], "virtual inhibition": [], "together": []}
    for d in observed.often:
        name, rows = observed.names[d], observed.rows(d)
        if inhibition.network_of[name] != 0:
            continue
        values = (observed.values.of(observed.samples[rows]), inhibition.of(name, rows)[:, :, None])
        z = [
            np.nan_to_num(associate(observed.benefit[rows], x, observed.strata(rows), permutations=1, rng=rng).z)
            for x in values
        ]
        known = np.isin(np.arange(len(observed.genes)), observed.listed[d])
        for line, score in zip(scores, (*z, combined(np.stack(z))), strict=True):
            scores[line].append(auprc(known, score))
    return {"drugs": len(scores["together"]), "auprc": {line: float(np.mean(each)) for line, each in scores.items()}}


def _resistance(table: pl.DataFrame, cohort: Cohort) -> float:
    """Genes that resist a class against prognostic ones, by the most harm that a modality tells of."""
    truth = read_truth(cohort.path)
    resists = {(cohort.classes[drug], gene) for drug, genes in truth.resistance.items() for gene in genes}
    worst = pl.min_horizontal([pl.col(f"z:{name}") for name in cohort.modalities])
    table = table.filter(~pl.col("known")).with_columns((-worst).alias("harm"))
    rows = [
        (pair in resists, harm)
        for *pair_, harm in table.select("class", "gene", pl.col("harm").fill_null(-99.0)).iter_rows()
        if (pair := tuple(pair_)) in resists or pair[1] in truth.prognostic
    ]
    return auroc(*zip(*rows, strict=True))


def null() -> dict[str, Any]:
    """P-values, one of each shuffled cohort, against the uniform distribution; and how often anything is found."""
    from scipy.stats import kstest

    cohort = simulated_cohort(NULL_SUBJECTS, SEEDS[0])
    outcome = outcome_of(cohort, "response", "binary")
    p, any_found = [], 0
    for seed in range(NULLS):
        rng = np.random.default_rng(seed)
        shuffled = replace(outcome, value=rng.permutation(outcome.value))
        table = discover(Observations.of(cohort, shuffled), permutations=100, seed=seed)
        p.append(float(rng.choice(table["p"].drop_nulls().to_numpy())))
        any_found += int((table["q"] <= LEVEL).any())
    return {"cohorts": NULLS, "uniform_p": float(kstest(p, "uniform").pvalue), "with_a_discovery": any_found}


def gdsc() -> dict[str, Any]:
    """Ranks of listed targets on the drug screen, of each drug by networks that never saw it."""
    path = Path(os.environ["ICAN_COHORTS"]) / "gdsc"
    config, prepared, observed, folder = run_on(str(path), "experiment=gdsc", "name=targets-gdsc")
    table = discover(observed, inhibition=cross_fitted_inhibition(config, prepared, observed, folder))
    table = table.join(_attributed(config, prepared, observed, folder), on=["drug", "gene"], how="left")
    lines = {
        "association": "z",
        "shared profile": "likeness",
        "virtual inhibition": "inhibition",
        "attribution": "attribution",
        "together": "rank",
    }
    found: dict[str, Any] = {name: _ranks(table, column) for name, column in lines.items()}
    found["together, same target hidden"] = _ranks(_hidden(observed, table), "rank")
    missed = []
    for genes, drugs in FAMILIES.items():
        wanted = genes.split(" or ")
        for drug in drugs:
            best = int(table.filter((pl.col("drug") == drug) & pl.col("gene").is_in(wanted))["rank"].min())
            if best > FIRST:
                missed.append([drug, genes, best])
    return {**found, "missed": missed}


def _attributed(config: RunConfig, prepared: Prepared, observed: Observations, folder: RunFolder) -> pl.DataFrame:
    """Mean absolute integrated gradient by gene of held-out samples under drugs with a listed target.

    The network knows these drugs from other samples, by name alone: their targets take no part in what it answers.
    """
    name, split = next(iter(prepared.splits.items()))
    network, schema = load_fitted(fit_stage(config, replace(prepared, splits={name: split}), folder, name).folder)
    fold = encode_fold(config, prepared, schema)
    at = {gene: schema.gene_id[gene] for gene in observed.genes if gene in schema.gene_id}
    parts = []
    for d in observed.often:
        if not observed.listed[d]:
            continue
        rows = np.intersect1d(observed.rows(d), split.held_out)[:SAMPLES]
        arrays = own_regimen(fold.encoded, fold.states.patient[rows], fold.states.slot[rows])
        found = attribute(network, schema, [as_batch(arrays)])
        mean = np.abs(found.gene).mean(0)
        parts.append(
            pl.DataFrame(
                {"drug": [observed.names[d]] * len(at), "gene": list(at), "attribution": mean[list(at.values())]}
            )
        )
    return pl.concat(parts)


def _hidden(observed: Observations, table: pl.DataFrame) -> pl.DataFrame:
    """The table with each drug's rank made anew without what drugs that share a target with it tell."""
    alike = observed.likeness()
    parts = []
    for part in table.sort("gene").partition_by("drug"):
        d = observed.names.index(part["drug"][0])
        own = set(observed.listed[d])
        shared = shared_target(alike, [() if own & set(each) else each for each in observed.listed], len(part))[0][d]
        together = combined(np.stack([part["z"].to_numpy(), shared]))
        parts.append(part.with_columns(pl.Series("rank", ranks(together))))
    return pl.concat(parts)


def _ranks(table: pl.DataFrame, column: str) -> dict[str, float]:
    from scipy.stats import rankdata

    best, areas = [], []
    for part in table.partition_by("drug"):
        known = part["known"].to_numpy()
        if not known.any():
            continue
        score = part[column].cast(pl.Float64).fill_null(0.0).to_numpy() * (-1 if column == "rank" else 1)
        best.append(float(rankdata(-score)[known].min()))
        areas.append(auroc(known, score))
    return {
        "drugs": len(best),
        "first_ten": float(np.mean(np.array(best) <= FIRST)),
        "median_rank": float(np.median(best)),
        "auroc": float(np.mean(areas)),
    }


if __name__ == "__main__":
    main()
