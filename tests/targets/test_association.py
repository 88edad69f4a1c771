"""Associations are found where they were planted, neighbours follow their lead, and chance looks like chance."""

import numpy as np
import pytest
from scipy.stats import kstest

from ican_ml.cohort.cohort import Cohort
from ican_ml.cohort.omics import latest_samples
from ican_ml.targets.association import GeneValues, associate
from ican_ml.targets.elsewhere import Sums

N, GENES = 300, 40


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Benefit, values of two modalities (the second binary, half of it not measured), stratum."""
    values = rng.normal(size=(N, GENES, 2)).astype(np.float32)
    values[..., 1] = rng.random((N, GENES)) < 0.1
    values[: N // 2, GENES // 2 :, 1] = np.nan
    return rng.normal(size=N), values, rng.integers(0, 3, N)


def test_a_planted_gene_leads_and_its_neighbour_follows() -> None:
    rng = np.random.default_rng(0)
    benefit, values, stratum = drawn(rng)
    benefit += 0.5 * values[:, 7, 0] - 1.2 * values[:, 9, 1]
    values[:, 8, 0] = values[:, 7, 0] + 0.5 * rng.normal(size=N)
    found = associate(benefit, values.copy(), stratum, permutations=200, rng=rng)
    assert np.nanargmax(found.z) == 7
    assert np.nanargmin(found.z) == 9
    assert max(found.p[[7, 9]]) < 0.001
    assert found.lead[[7, 8, 9]].tolist() == [7, 7, 9]
    assert np.nanmedian(found.p) > 0.2


def test_evidence_of_several_modalities_adds_up() -> None:
    rng = np.random.default_rng(3)
    benefit, values, stratum = drawn(rng)
    benefit += 0.3 * values[:, 5, 0] + 0.8 * values[:, 5, 1]
    values[:, 6, 0] = values[:, 5, 0] + 0.1 * rng.normal(size=N)  # a neighbour shares one modality alone
    found = associate(benefit, values.copy(), stratum, permutations=200, rng=rng)
    assert found.lead[6] == 5
    assert found.z[5] > found.z[6] + 1
    assert found.z[5] > found.by_modality[5].max()


def test_what_a_stratum_explains_is_no_association() -> None:
    rng = np.random.default_rng(1)
    benefit, values, stratum = drawn(rng)
    benefit += 3.0 * stratum
    values[:, 4, 0] += 3.0 * stratum
    found = associate(benefit, values.copy(), stratum, permutations=200, rng=rng)
    assert found.p[4] > 0.01


@pytest.mark.parametrize("kind", ["normal", "binary"])
def test_p_values_of_nothing_are_uniform(kind: str) -> None:
    each = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        benefit, values, stratum = drawn(rng)
        if kind == "binary":
            benefit = (benefit > 1).astype(float)
        each.append(associate(benefit, values, stratum, permutations=100, rng=rng).p[seed % GENES])
    assert kstest(each, "uniform").pvalue > 0.01


def test_too_few_who_have_it_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    benefit, values, stratum = drawn(rng)
    values[:, 3] = 0
    values[:4, 3, 1] = 1
    found = associate(benefit, values.copy(), stratum, permutations=10, rng=rng)
    assert np.isnan(found.by_modality[3]).all()
    assert np.isnan(found.z[3])
    assert np.isnan(found.p[3])


def test_values_of_genes_are_those_of_the_cohort(sim_cohort: Cohort) -> None:
    modalities = sim_cohort.modalities
    genes = tuple(sorted({gene for m in modalities.values() for gene in m.genes})[::70])
    table = GeneValues(modalities, genes)
    subject = sim_cohort.episodes["subject_id"].to_numpy()[:40]
    moment = sim_cohort.episodes["prediction_time"].to_numpy()[:40]
    samples = np.stack([latest_samples(m, subject, moment) for m in table.modalities], axis=1)
    values = table.of(samples)
    for m, modality in enumerate(table.modalities):
        batch = modality.matrix.take(np.maximum(samples[:, m], 0))
        dense = np.zeros((len(samples), len(modality.genes)))
        dense[batch.row_ids(), batch.indices] = batch.values
        if modality.kind == "count":
            dense = np.log1p(dense * (1e4 / np.maximum(dense.sum(1, keepdims=True), 1e-6)))
        for g, gene in enumerate(genes):
            if gene not in modality.genes:
                assert np.isnan(values[:, g, m]).all()
                continue
            at = modality.genes.index(gene)
            known = np.array([s >= 0 and bool(modality.panels[str(modality.panel[s])][at]) for s in samples[:, m]])
            assert np.isnan(values[~known, g, m]).all()
            np.testing.assert_allclose(values[known, g, m], dense[known, at], rtol=1e-5)


def test_elsewhere_is_the_association_over_all_the_others(sim_cohort: Cohort) -> None:
    table = GeneValues(sim_cohort.modalities, ("KRAS", "EGFR", "BRAF"))
    episodes = sim_cohort.episodes
    subject, moment = episodes["subject_id"].to_numpy(), episodes["prediction_time"].to_numpy()
    samples = np.stack([latest_samples(m, subject, moment) for m in table.modalities], axis=1)
    rng = np.random.default_rng(0)
    benefit, stratum = rng.normal(size=len(episodes)), rng.integers(0, 3, len(episodes))
    rows, rest = np.arange(120), np.arange(120, len(episodes))
    overall, own = (
        Sums.over(benefit, table, samples, stratum, chosen, 3) for chosen in (np.arange(len(episodes)), rows)
    )
    expected = associate(benefit[rest], table.of(samples[rest]), stratum[rest], permutations=1, rng=rng).by_modality
    told = np.isfinite(expected)
    assert told.sum() > 3
    np.testing.assert_allclose(overall.without(own).z()[told], expected[told], rtol=0.05, atol=0.05)


def test_the_slope_and_its_interval_are_those_of_least_squares(sim_cohort: Cohort) -> None:
    table = GeneValues(sim_cohort.modalities, ("KRAS", "EGFR", "BRAF"))
    episodes = sim_cohort.episodes
    subject, moment = episodes["subject_id"].to_numpy(), episodes["prediction_time"].to_numpy()
    samples = np.stack([latest_samples(m, subject, moment) for m in table.modalities], axis=1)
    rng = np.random.default_rng(0)
    benefit, stratum = rng.normal(size=len(episodes)), rng.integers(0, 3, len(episodes))
    slope, error = Sums.over(benefit, table, samples, stratum, np.arange(len(episodes)), 3).slope()
    value = table.of(samples)[:, 0, 0].astype(np.float64)
    known = np.isfinite(value)
    x = np.column_stack([value[known], stratum[known][:, None] == np.arange(3)])
    beta, rest, *_ = np.linalg.lstsq(x, benefit[known], rcond=None)
    variance = rest[0] / (known.sum() - 4) * np.linalg.inv(x.T @ x)[0, 0]
    assert slope[0, 0] == pytest.approx(beta[0], rel=1e-6)
    assert error[0, 0] == pytest.approx(variance**0.5, rel=1e-6)


def test_halves_are_associations_of_half_the_episodes() -> None:
    rng = np.random.default_rng(4)
    benefit, values, stratum = drawn(rng)
    benefit += 0.8 * values[:, 7, 0]
    half = rng.random((20, N)) < 0.5
    found = associate(benefit, values, stratum, permutations=1, rng=rng, half=half)
    assert found.halves.shape == (20, GENES)
    assert (found.halves.argmax(1) == 7).mean() > 0.9
    every = associate(
        benefit, drawn(np.random.default_rng(4))[1], stratum, permutations=1, rng=rng, half=half[:1] | True
    )
    np.testing.assert_allclose(every.halves[0], every.z, rtol=1e-4, atol=1e-5)
