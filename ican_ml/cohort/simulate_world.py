"""The fixed world of the simulated cohort, version 1: genes, assays, indications, drugs and effect sizes.

Nothing here depends on the seed of a cohort. The tables stand for what biology and practice decide (which gene a drug
hits, which mutation makes a tumour resist a drug class, which tumours carry which drivers); a seed only decides who
the subjects are. Drugs are invented, and their names look like development codes so that nobody takes them for real
ones. Gene symbols of drivers are real, for readability: their frequencies and effects here are NOT facts about those
genes. All other genes are called ``SIM0001`` and so on.

Every number in this file belongs to `SIMULATOR_VERSION`: changing one changes the signal, which is a new version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIMULATOR_VERSION = 1
N_EXPRESSION, N_MUTATION, N_CNV, N_CHROMOSOMES, N_MODULES = 2000, 300, 400, 22, 20

INDICATIONS = ("LUNG", "BREAST", "COLORECTAL", "MELANOMA", "BLADDER")
INDICATION_WEIGHT = (0.28, 0.26, 0.20, 0.14, 0.12)
INDICATION_ICD10 = ("C34.1", "C50.4", "C18.7", "C43.5", "C67.9")
INDICATION_MARKER = (
    ("LAB//CEA", "ug/L"), ("LAB//CA15-3", "kU/L"), ("LAB//CEA", "ug/L"), ("LAB//S100B", "ug/L"), ("LAB//NMP22", "kU/L"),
)  # fmt: skip
INDICATION_EFFECT = (0.05, 0.10, -0.05, 0.0, -0.10)

SITES = ("north", "south", "east", "west", "central")
SITE_WEIGHT = (0.30, 0.25, 0.20, 0.15, 0.10)
SITE_PANEL = ("wide", "wide", "focused", "wide", "focused")
SITE_HGB_G_PER_DL = (False, True, False, False, True)
SITE_CRP_MG_PER_DL = (False, False, False, True, False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drug:
    """A drug: its name, ATC class (level 4) and the symbols of the genes that it inhibits."""

    name: str
    atc: str
    targets: tuple[str, ...]


def _drugs(atc: str, stem: str, *targets: str) -> tuple[Drug, ...]:
    return tuple(
        Drug(name=f"{stem}-{101 + i}", atc=atc, targets=tuple(genes.split())) for i, genes in enumerate(targets)
    )


DRUGS: tuple[Drug, ...] = (
    *_drugs("L01EB", "EGF", "EGFR", "EGFR ERBB2", "EGFR"),
    *_drugs("L01EH", "HER", "ERBB2", "ERBB2 ERBB3", "ERBB3"),
    *_drugs("L01EC", "RAF", "BRAF", "BRAF RAF1", "RAF1"),
    *_drugs("L01EE", "MEK", "MAP2K1", "MAP2K1 MAP2K2", "MAP2K2"),
    *_drugs("L01EF", "CDK", "CDK4", "CDK6", "CDK4 CDK6"),
    *_drugs("L01EM", "PIK", "PIK3CA", "PIK3CA AKT1", "MTOR"),
    *_drugs("L01EN", "FGR", "FGFR1", "FGFR2", "FGFR2 FGFR3"),
    *_drugs("L01EX", "MTK", "MET", "MET KDR", "ALK"),
)
CLASSES: tuple[str, ...] = tuple(dict.fromkeys(drug.atc for drug in DRUGS))
CLASS_NAME = dict(
    zip(CLASSES, ("EGFR", "HER2", "BRAF", "MEK", "CDK4/6", "PI3K-AKT-mTOR", "FGFR", "other kinase"), strict=True)
)
TARGET_GENES: tuple[str, ...] = tuple(dict.fromkeys(gene for drug in DRUGS for gene in drug.targets))

RESISTANCE: dict[str, tuple[str, ...]] = {
    "L01EB": ("KRAS",),
    "L01EH": ("KRAS",),
    "L01EC": ("NRAS",),
    "L01EE": ("NRAS",),
    "L01EF": ("RB1",),
    "L01EM": ("PTEN",),
    "L01EN": ("PTEN", "CBL"),
    "L01EX": ("KRAS", "CBL"),
}
RESISTANCE_GENES: tuple[str, ...] = tuple(dict.fromkeys(g for genes in RESISTANCE.values() for g in genes))

PROGNOSTIC_MUTATION = {"TP53": 0.45, "STK11": 0.55, "KEAP1": 0.45, "SMAD4": 0.40}  # log hazard when mutated
PROGNOSTIC_EXPRESSION = {"MKI67": 0.35}  # log hazard per sd of log expression
PROGNOSTIC_CNV = {"CDKN2A": -0.40}  # log hazard per unit of log2 ratio: a loss is unfavourable
PROGNOSTIC: dict[str, float] = {**PROGNOSTIC_MUTATION, **PROGNOSTIC_EXPRESSION, **PROGNOSTIC_CNV}

# Genes whose mutations come together (+) or exclude each other (+ against -), by pathway.
PATHWAYS: tuple[tuple[tuple[str, int], ...], ...] = (
    (("EGFR", 1), ("KRAS", -1), ("ERBB2", 1), ("NRAS", -1)),
    (("BRAF", 1), ("MAP2K2", -1), ("RAF1", 1), ("MAP2K1", -1)),
    (("PIK3CA", 1), ("PTEN", -1), ("AKT1", -1), ("MTOR", 1)),
    (("FGFR1", 1), ("FGFR2", -1), ("FGFR3", 1), ("KDR", -1)),
    (("CDK4", 1), ("CDK6", 1), ("RB1", -1), ("ALK", -1)),
    (("TP53", 1), ("STK11", -1), ("KEAP1", -1), ("SMAD4", 1)),
)
PATHWAY_LOADING = 0.55

# Intended mean and spread of the mechanism; the equations stand in `ican_ml.cohort.simulate`.
INTERCEPT = -1.4
SENSITIVITY_EFFECT = 3.8
GATE_SLOPE, GATE_SHIFT = 2.0, 1.5
FITNESS_EFFECT = 0.45
RESISTANCE_LOSS = 0.6
PRIOR_EFFECT, LINE_EFFECT = -0.08, -0.10
AMPLIFICATION_SLOPE, AMPLIFICATION_CUT = 10.0, 0.55
EXPRESSION_SLOPE, EXPRESSION_SHIFT = 2.0, 2.2


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Derived tables. Shapes: G = 2,000 genes in genome order, I = 5 indications, D = 24 drugs.

    Attributes
    ----------
    genes : symbols, [G]
    chromosome : chromosome number of each gene, [G], ascending
    mutation, cnv : positions in `genes` of the genes that these modalities measure, ascending
    mutation_rate : share of tumours with a mutation, [I, mutation genes]
    amplification_rate : share of tumours with a focal amplification of a target gene, [I, target genes]
    expression_base : log of the expected count, [I, G]
    module, module_loading : co-expression module of each gene (-1 none) and its loading, [G]
    dispersion : variance of the gamma factor of each gene's abundance (mean 1), [G]
    panels : mutation genes that each assay measures, bool
    drug_weight : log preference of a drug in an indication, [I, D]
    drug_frailty : change of that log preference per unit of frailty, [D]
    drug_effect : intercept of a drug on the logit of response, [D]
    """

    genes: tuple[str, ...]
    chromosome: NDArray[np.int64]
    mutation: NDArray[np.int64]
    cnv: NDArray[np.int64]
    mutation_rate: NDArray[np.float64]
    amplification_rate: NDArray[np.float64]
    expression_base: NDArray[np.float64]
    module: NDArray[np.int64]
    module_loading: NDArray[np.float64]
    dispersion: NDArray[np.float64]
    panels: dict[str, NDArray[np.bool_]]
    drug_weight: NDArray[np.float64]
    drug_frailty: NDArray[np.float64]
    drug_effect: NDArray[np.float64]

    def positions(self, symbols: tuple[str, ...], modality: str = "expression") -> NDArray[np.int64]:
        """Columns of `symbols` among the features of a modality."""
        genes = np.asarray(self.genes)
        if modality != "expression":
            genes = genes[getattr(self, modality)]
        order = {gene: i for i, gene in enumerate(genes.tolist())}
        return np.array([order[symbol] for symbol in symbols], dtype=np.int64)


def build_world() -> World:
    """Lay out the world of `SIMULATOR_VERSION`; the same for every cohort."""
    rng = np.random.default_rng([20261123, SIMULATOR_VERSION])
    named = tuple(dict.fromkeys((*TARGET_GENES, *RESISTANCE_GENES, *PROGNOSTIC)))
    genes = np.array([*named, *(f"SIM{i:04d}" for i in range(1, N_EXPRESSION - len(named) + 1))], dtype=object)
    order = rng.permutation(N_EXPRESSION)
    genes, is_named = genes[order], (np.arange(N_EXPRESSION) < len(named))[order]
    chromosome = np.sort(rng.integers(1, N_CHROMOSOMES + 1, N_EXPRESSION))
    others = np.flatnonzero(~is_named)
    mutation, cnv = (
        np.sort(np.concatenate([np.flatnonzero(is_named), rng.choice(others, size - len(named), replace=False)]))
        for size in (N_MUTATION, N_CNV)
    )
    base = rng.normal(0.4, 1.5, N_EXPRESSION).clip(-3.0, 4.5)
    base[is_named] = rng.normal(4.8, 0.3, len(named))
    shifted = (rng.random((len(INDICATIONS), N_EXPRESSION)) < 0.15) & ~is_named
    expression_base = base + np.where(shifted, rng.normal(0.0, 0.9, shifted.shape), 0.0)
    module = np.where(rng.random(N_EXPRESSION) < 0.5, rng.integers(0, N_MODULES, N_EXPRESSION), -1)
    module_loading = np.where(is_named, 0.25, rng.normal(0.0, 0.6, N_EXPRESSION))
    dispersion = np.where(is_named, 0.35, rng.uniform(0.15, 0.6, N_EXPRESSION))
    drug_weight, driver = _preferences(rng)
    mutation_rate, amplification_rate = _alteration_rates(rng, genes[mutation].tolist(), driver)
    return World(
        genes=tuple(genes.tolist()),
        chromosome=chromosome,
        mutation=mutation,
        cnv=cnv,
        mutation_rate=mutation_rate,
        amplification_rate=amplification_rate,
        expression_base=expression_base,
        module=module,
        module_loading=module_loading,
        dispersion=dispersion,
        panels=_panels(rng, genes[mutation].tolist()),
        drug_weight=drug_weight,
        drug_frailty=np.repeat(rng.normal(0.0, 0.5, len(CLASSES)), 3),
        drug_effect=rng.normal(0.0, 0.1, len(DRUGS)),
    )


def _preferences(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Drug preferences [I, D], and which target genes are drivers of which indication [I, target genes]."""
    favoured = np.stack([np.isin(np.arange(len(CLASSES)), rng.permutation(len(CLASSES))[:4]) for _ in INDICATIONS])
    weight = np.repeat(np.where(favoured, 0.9, 0.0), 3, axis=1) + rng.normal(0.0, 0.25, (len(INDICATIONS), len(DRUGS)))
    hit = np.array([[gene in drug.targets for gene in TARGET_GENES] for drug in DRUGS])
    return weight, (np.repeat(favoured, 3, axis=1).astype(int) @ hit.astype(int)) > 0


def _alteration_rates(
    rng: np.random.Generator, genes: list[str], driver: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shape = (len(INDICATIONS), len(genes))
    rate = np.repeat(rng.beta(1.0, 30.0, len(genes))[None] + 0.004, len(INDICATIONS), axis=0)
    column = {gene: i for i, gene in enumerate(genes)}
    targets = [column[gene] for gene in TARGET_GENES]
    rate[:, targets] = np.where(driver, rng.uniform(0.22, 0.34, driver.shape), rng.uniform(0.14, 0.24, driver.shape))
    for gene in RESISTANCE_GENES:
        rate[:, column[gene]] = rng.uniform(0.08, 0.11, shape[0])
    for gene in PROGNOSTIC_MUTATION:
        rate[:, column[gene]] = rng.uniform(0.12, 0.45, shape[0])
    amplification = np.where(driver, rng.uniform(0.14, 0.22, driver.shape), rng.uniform(0.06, 0.14, driver.shape))
    return rate, amplification


def _panels(rng: np.random.Generator, genes: list[str]) -> dict[str, NDArray[np.bool_]]:
    """Two assays. Both read every drug target; the focused one lacks a resistance gene and most passengers."""
    named = np.isin(genes, [*TARGET_GENES, *RESISTANCE_GENES, *PROGNOSTIC])
    draw = rng.random(len(genes))
    focused = named | (draw < 0.40)
    focused &= ~np.isin(genes, ["CBL"])
    return {"wide": named | (draw > 0.12), "focused": focused}
