"""Rank every gene for every drug, or class of drugs, of a cohort: residual benefits -> lines of evidence -> one table.

Columns of the table, one row a drug (or class) and gene, none of which names a subject:

    drug or class, gene, episodes
    rank            of the gene as the drug's target, by all lines together; 1 = first
    stability       share of random halves of the patients in which it is among the first ten
    z               association of the gene with benefit: above 0, those in whom it is higher or altered do better;
                    below 0 they do worse, as with resistance
    modality        that tells most of it
    effect, effect_low, effect_high
                    by how much benefit rises with one unit of that modality (altered or not, copies, log1p of counts),
                    with a 95% interval
    indication      that tells most of it
    p, q            two-sided; false discovery rate over the table, of leads
    lead            the gene itself, or the stronger one that it goes with: a neighbour on an amplicon
    elsewhere       z over all other drugs' episodes: what the gene says of anybody
    interaction, interaction_q
                    z and false discovery rate of the difference between this drug and the others: with q, predictive
    prognosis, prognosis_q
                    z and false discovery rate of the association with the patient's level in all episodes: prognostic
    likeness, like  to the most alike other drug with this target, and its name
    known           the gene is listed as a target
    inhibition, inhibition_p
                    z and p of the virtual inhibitor's predicted benefit with that under the drug; where there is a
                    network
    z:<modality>, elsewhere:<modality>
                    what each modality tells by itself
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from ican_ml.targets.association import Association, associate
from ican_ml.targets.elsewhere import Sums, interaction
from ican_ml.targets.inhibition import Inhibition
from ican_ml.targets.observations import Observations
from ican_ml.targets.profiles import shared_target
from ican_ml.targets.ranking import benjamini_hochberg, combined, in_spreads, ranks

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
COLUMNS = (
    *("gene", "episodes", "rank", "stability", "z", "modality", "effect", "effect_low", "effect_high", "indication"),
    *(
        "p",
        "lead",
        "q",
        "elsewhere",
        "interaction",
        "interaction_q",
        "prognosis",
        "prognosis_q",
        "likeness",
        "like",
        "known",
    ),
)
NETWORK_COLUMNS = ("inhibition", "inhibition_p")
FIRST = 10
_HALVES = 50


def discover(
    observed: Observations, *, permutations: int = 1000, seed: int = 7, inhibition: Inhibition | None = None
) -> pl.DataFrame:
    """See the module docstring.

    Parameters
    ----------
    permutations
        Of the benefits of each drug.
    inhibition
        What virtual inhibitors of all genes are predicted to do, by a network that never saw the drug in question.

    Raises
    ------
    ValueError
        If no drug (class) has enough episodes.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    observed.check()
    rng = np.random.default_rng(seed)
    n_genes, n_strata = len(observed.genes), len(observed.indications)
    half_of = np.random.default_rng([seed, 1]).random((_HALVES, int(observed.patient.max()) + 1)) < 0.5

    def sums(of: Float64, rows: Int64) -> Sums:
        return Sums.over(of, observed.values, observed.samples, observed.stratum, rows, n_strata)

    overall, levels = (sums(of, np.flatnonzero(np.isfinite(of))) for of in (observed.benefit, observed.level))
    shared, nearest = shared_target(observed.likeness(), observed.listed, n_genes)
    parts = []
    for d in tqdm(observed.often, disable=None, unit=observed.by, desc="targets"):
        rows = observed.rows(d)
        benefit, stratum, own = observed.benefit[rows], observed.strata(rows), sums(observed.benefit, rows)
        half = half_of[:, observed.patient[rows]]
        values = observed.values.of(observed.samples[rows])
        found = associate(benefit, values, stratum, permutations=permutations, rng=rng, half=half)
        lines, halves = [found.z, shared[d]], in_spreads(found.halves) + in_spreads(shared[d][None])
        virtual: list[pl.Series] = []
        if inhibition is not None:
            asked = inhibition.of(observed.names[d], rows)[:, :, None]
            line = associate(benefit, asked, stratum, permutations=permutations, rng=rng, half=half)
            lines.append(line.z)
            halves += in_spreads(line.halves)
            virtual = [pl.Series("inhibition", line.z), pl.Series("inhibition_p", line.p)]
        first = ranks(halves) <= FIRST
        parts.append(
            pl.DataFrame({observed.by: [observed.names[d]] * n_genes, "gene": observed.genes}).with_columns(
                pl.lit(len(rows)).alias("episodes"),
                pl.Series("rank", ranks(combined(np.stack(lines)))),
                pl.Series("stability", first.mean(0)),
                *_columns(found, own, overall.without(own), observed),
                pl.Series("likeness", shared[d]),
                pl.Series("like", [observed.names[k] if k >= 0 else None for k in nearest[d].tolist()], pl.String),
                pl.Series("known", np.isin(np.arange(n_genes), observed.listed[d])),
                *virtual,
            )
        )
    return _with_rates(pl.concat(parts), levels.z(), observed)


def _columns(found: Association, own: Sums, others: Sums, observed: Observations) -> list[pl.Series]:
    names = [m.name for m in observed.values.modalities]
    towards = np.nan_to_num(found.by_modality * np.sign(np.nan_to_num(found.z))[:, None], nan=-np.inf)
    most, at = towards.argmax(1), np.arange(len(found.z))
    told = np.isfinite(found.z)
    slope, error = (np.where(told, each[at, most], np.nan) for each in own.slope())
    elsewhere = others.z()
    where = own.by_stratum()[:, at, most] * np.sign(np.nan_to_num(found.z))
    modality = [names[m] if known else None for m, known in zip(most.tolist(), told.tolist(), strict=True)]
    indication = [
        observed.indications[s] if share > 0 else None
        for s, share in zip(where.argmax(0).tolist(), (where.max(0) * told).tolist(), strict=True)
    ]
    return [
        pl.Series("z", found.z),
        pl.Series("modality", modality, pl.String),
        pl.Series("effect", slope),
        pl.Series("effect_low", slope - 1.96 * error),
        pl.Series("effect_high", slope + 1.96 * error),
        pl.Series("indication", indication, pl.String),
        pl.Series("p", found.p),
        pl.Series("lead", [observed.genes[g] for g in found.lead.tolist()]),
        pl.Series("elsewhere", np.nan_to_num(elsewhere).sum(1) / found.spread),
        pl.Series("interaction", np.nan_to_num(interaction(own, others)).sum(1) / found.spread),
        *(pl.Series(f"z:{name}", found.by_modality[:, m]) for m, name in enumerate(names)),
        *(pl.Series(f"elsewhere:{name}", elsewhere[:, m]) for m, name in enumerate(names)),
    ]


def _with_rates(table: pl.DataFrame, prognosis: Float64, observed: Observations) -> pl.DataFrame:
    """With false discovery rates; the best of every drug first."""
    leads = (table["lead"] == table["gene"]).to_numpy()
    prognosis = np.nan_to_num(prognosis)
    strongest = prognosis[np.arange(len(prognosis)), np.abs(prognosis).argmax(1)]
    prognosis_q = benjamini_hochberg(np.minimum(_two_sided(strongest) * prognosis.shape[1], 1.0))
    copies = len(table) // len(prognosis)
    table = table.with_columns(
        pl.Series("q", benjamini_hochberg(table["p"].to_numpy(), leads)),
        pl.Series("interaction_q", benjamini_hochberg(_two_sided(table["interaction"].to_numpy()), leads)),
        pl.Series("prognosis", np.tile(strongest, copies)),
        pl.Series("prognosis_q", np.tile(prognosis_q, copies)),
    )
    virtual = [name for name in NETWORK_COLUMNS if name in table.columns]
    by_modality = [name for name in table.columns if ":" in name]
    return table.select(observed.by, *COLUMNS, *virtual, *by_modality).sort(observed.by, "rank").fill_nan(None)


def _two_sided(z: Float64) -> Float64:
    from scipy.stats import norm

    found: Float64 = 2 * norm.sf(np.abs(z))
    return found
