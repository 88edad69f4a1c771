"""Drugs that help the same samples share a target; a drug's own is never looked at."""

import numpy as np

from ican_ml.targets.profiles import likeness, shared_target


def profiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """50 samples under 10 drugs, of which 0 and 1 help the same ones."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=(50, 10))
    value[:, 1] = value[:, 0] + 0.3 * rng.normal(size=50)
    patient, drug = (part.ravel() for part in np.meshgrid(np.arange(50), np.arange(10), indexing="ij"))
    return value.ravel(), patient, drug


def test_likeness_is_the_correlation_over_shared_samples() -> None:
    benefit, patient, drug = profiles()
    kept = ~((drug == 3) & (patient < 20))
    alike = likeness(benefit[kept], patient[kept], drug[kept], 10)
    table = benefit.reshape(50, 10)
    np.testing.assert_allclose(alike[0, 1], np.corrcoef(table[:, 0], table[:, 1])[0, 1])
    np.testing.assert_allclose(alike[3, 4], np.corrcoef(table[20:, 3], table[20:, 4])[0, 1])
    assert np.isnan(np.diag(alike)).all()
    np.testing.assert_array_equal(alike, alike.T)


def test_samples_that_met_few_drugs_tell_nothing() -> None:
    benefit, patient, drug = profiles()
    assert np.isnan(likeness(benefit[drug < 7], patient[drug < 7], drug[drug < 7], 10)).all()


def test_the_target_of_an_alike_drug_is_likely_and_ones_own_is_not_used() -> None:
    benefit, patient, drug = profiles()
    alike = likeness(benefit, patient, drug, 10)
    targets = [[0], [4], [2], *[[]] * 7]
    score, by = shared_target(alike, targets, 6)
    assert np.nanargmax(score[0]) == 4
    assert by[0, 4] == 1
    assert np.isnan(score[0, [0, 1, 3, 5]]).all(), "nobody else targets these"
    hidden, _ = shared_target(alike, [[], *targets[1:]], 6)
    np.testing.assert_array_equal(hidden[0], score[0])
