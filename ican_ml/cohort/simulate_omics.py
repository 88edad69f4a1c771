"""Tumours of the simulated cohort: mutations, copy-number segments and expression counts.

In: the indication of each of N subjects and one `numpy.random.SeedSequence` child per process.
Out: `Tumours`, the true state of every tumour. Counts are drawn from it by `draw_counts`, once for every sample.

- *Mutations* are binary. A Gaussian copula with one factor for each pathway makes them come together or exclude
  each other, and a factor for the subject's mutational burden moves all passengers.
- *Copy number* is a log2 ratio, constant over segments of the ordered genes and zero in most of the genome, with
  focal amplifications of target genes that take their neighbours along; clipped to [-2, 2], steps of 0.01.
- *Expression*: abundance = exp(indication mean + co-expression module + 0.45 x copy number) x gamma factor, a count is
  Poisson(depth x abundance): negative binomial (Robinson & Smyth 2008). The gamma factor is biology, so it is part
  of the true state; only depth and the Poisson step are measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ican_ml.cohort.simulate_world import (
    N_CNV,
    N_EXPRESSION,
    N_MODULES,
    PATHWAY_LOADING,
    PATHWAYS,
    RESISTANCE_GENES,
    TARGET_GENES,
    World,
)

_BREAKPOINT_RATE, _ALTERED_SEGMENT_RATE, _SEGMENT_SD = 0.05, 0.35, 0.45
_DEPTH_SD, _CNV_ON_EXPRESSION = 0.35, 0.45


@dataclass(frozen=True, kw_only=True, slots=True)
class Tumours:
    """True state of N tumours.

    Attributes
    ----------
    mutation : bool [N, 300]
    cnv : float32 [N, 400], log2 ratio
    abundance : float64 [N, 2000], expected count at depth 1
    expression_z : float64 [N, 2000], log share of the total abundance, standardised by gene over the cohort
    """

    mutation: NDArray[np.bool_]
    cnv: NDArray[np.float32]
    abundance: NDArray[np.float64]
    expression_z: NDArray[np.float64]


def simulate_tumours(world: World, indication: NDArray[np.int64], seeds: list[np.random.SeedSequence]) -> Tumours:
    """Draw one tumour for each subject; `indication` [N] indexes INDICATIONS; `seeds` has three children."""
    mutation_rng, cnv_rng, expression_rng = (np.random.default_rng(seed) for seed in seeds)
    cnv = _copy_number(world, indication, cnv_rng)
    abundance, z = _abundance(world, indication, cnv, expression_rng)
    return Tumours(mutation=_mutations(world, indication, mutation_rng), cnv=cnv, abundance=abundance, expression_z=z)


def draw_counts(abundance: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Sequence samples: counts [samples, 2000] at a log-normal depth for each sample."""
    depth = np.exp(rng.normal(0.0, _DEPTH_SD, (len(abundance), 1)))
    return rng.poisson(abundance * depth).astype(np.float32)


def _mutations(world: World, indication: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    n, width = len(indication), len(world.mutation)
    loading = np.zeros((len(PATHWAYS), width))
    for row, pathway in enumerate(PATHWAYS):
        columns = world.positions(tuple(gene for gene, _ in pathway), "mutation")
        loading[row, columns] = [PATHWAY_LOADING * sign for _, sign in pathway]
    burden_loading = np.full(width, 0.35)
    burden_loading[world.positions((*TARGET_GENES, *RESISTANCE_GENES), "mutation")] = 0.0
    factors, burden = rng.normal(size=(n, len(PATHWAYS))), rng.normal(size=(n, 1))
    unique = np.sqrt(1.0 - (loading**2).sum(axis=0) - burden_loading**2)
    score = factors @ loading + burden * burden_loading + unique * rng.normal(size=(n, width))
    return np.asarray(score > -ndtri(world.mutation_rate)[indication])


def _copy_number(world: World, indication: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    n = len(indication)
    chromosome = world.chromosome[world.cnv]
    breaks = rng.random((n, N_CNV)) < _BREAKPOINT_RATE
    breaks |= np.concatenate([[True], np.diff(chromosome) > 0])
    segment = np.cumsum(breaks.ravel()) - 1
    count = int(segment[-1]) + 1
    level = np.where(rng.random(count) < _ALTERED_SEGMENT_RATE, rng.normal(0.0, _SEGMENT_SD, count), 0.0)
    ratio = level[segment].reshape(n, N_CNV)
    columns = world.positions(TARGET_GENES, "cnv")
    focal = rng.random((n, len(columns))) < world.amplification_rate[indication]
    height = rng.uniform(0.8, 1.9, focal.shape)
    for offset in (-1, 1, 0):
        neighbour = (columns + offset).clip(0, N_CNV - 1)
        use = focal & (chromosome[neighbour] == chromosome[columns])
        row, gene = np.nonzero(use)
        ratio[row, neighbour[gene]] = height[row, gene]
    return np.asarray(np.round(ratio.clip(-2.0, 2.0), 2), dtype=np.float32)


def _abundance(
    world: World, indication: NDArray[np.int64], cnv: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = len(indication)
    activity = rng.normal(size=(n, N_MODULES))
    log_mean = world.expression_base[indication]
    in_module = world.module >= 0
    log_mean[:, in_module] += activity[:, world.module[in_module]] * world.module_loading[in_module]
    log_mean[:, world.cnv] += _CNV_ON_EXPRESSION * cnv
    shape = 1.0 / world.dispersion
    biology = rng.standard_gamma(shape, (n, N_EXPRESSION)) / shape
    log_abundance = log_mean + np.log(biology + 1e-12)
    abundance = np.exp(log_abundance)
    log_share = log_abundance - np.log(abundance.sum(axis=1, keepdims=True))
    return abundance, (log_share - log_share.mean(axis=0)) / log_share.std(axis=0)
