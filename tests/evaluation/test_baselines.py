"""Baselines: they find planted signal, forget nothing of the seed, and cope with missing blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ican_ml.encoding.csr import CSRBatch
from ican_ml.evaluation.baselines import BaselineConfig, fit_baselines
from ican_ml.evaluation.boosting import BoostingConfig
from ican_ml.evaluation.design import Design, MatrixConfig, boosting_matrix, ridge_matrix
from ican_ml.evaluation.metrics import auroc, harrell_c, per_treatment_pearson, rmse
from ican_ml.evaluation.omics_block import OmicsBlock
from ican_ml.evaluation.outcome import Outcome

ROWS = 500
TRAIN, TUNING, TEST = np.arange(300), np.arange(300, 360), np.arange(360, ROWS)
CONFIG = BaselineConfig(
    matrix=MatrixConfig(components=10), boosting=BoostingConfig(trees=60, survival_trees=60, learning_rate=0.1)
)


def explicit_block(values: np.ndarray) -> OmicsBlock:
    """Values [patients, features], NaN = not measured, that need no scaling."""
    patients, features = values.shape
    return OmicsBlock(
        matrix=CSRBatch.from_dense(values, keep_zeros=True),
        mean=np.zeros(features, np.float32),
        inverse_sd=np.ones(features, np.float32),
        panel=np.ones(patients, np.int64),
        measured=np.array([[False], [True]]).repeat(features, axis=1),
        explicit=True,
    )


def planted(seed: int = 0) -> tuple[Design, np.ndarray]:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(ROWS, 2))
    expression = (factor @ rng.normal(size=(2, 300)) + rng.normal(size=(ROWS, 300))).astype(np.float32)
    expression[::7] = np.nan
    mutation = (rng.random((ROWS, 20)) < 0.2).astype(np.float32)
    regimen = (rng.random((ROWS, 6)) < 0.3).astype(np.float32)
    summary = rng.normal(size=(ROWS, 12)).astype(np.float32)
    signal = factor[:, 0] + mutation[:, 0] + regimen[:, 0] + summary[:, 0]
    summary[rng.random(summary.shape) < 0.3] = np.nan
    summary[:, 11] = np.nan
    design = Design(
        omics={"expression": explicit_block(expression), "mutation": explicit_block(mutation)},
        patient=np.arange(ROWS),
        regimen=regimen,
        summary=summary,
        groups=rng.choice(["lung", "breast"], ROWS),
    )
    return design, signal - signal.mean()


def test_both_baselines_learn_a_binary_outcome() -> None:
    design, signal = planted()
    y = (np.random.default_rng(1).random(ROWS) < 1 / (1 + np.exp(-2 * signal))).astype(float)
    y[5] = np.nan
    scores = fit_baselines(design, Outcome.binary(y), TRAIN, TUNING, TEST, threads=1, config=CONFIG)
    assert list(scores) == ["ridge", "boosting"]
    for score in scores.values():
        assert score.shape == TEST.shape
        assert 0 <= score.min() <= score.max() <= 1
        assert auroc(y[TEST], score) > 0.7


def test_both_baselines_learn_survival_with_delayed_entry() -> None:
    design, signal = planted()
    rng = np.random.default_rng(1)
    time, censoring = rng.exponential(100 * np.exp(-signal)), rng.exponential(200, ROWS)
    outcome = Outcome.survival(np.minimum(time, censoring), time <= censoring, rng.uniform(0, 5, ROWS))
    keep = np.flatnonzero(outcome.labelled)
    test = np.intersect1d(TEST, keep)
    for score in fit_baselines(design, outcome, TRAIN, TUNING, test, threads=1, config=CONFIG).values():
        assert harrell_c(outcome.value[test], outcome.event[test], score, strata=design.groups[test]) > 0.65


def test_ridge_learns_the_survival_of_each_indication_alone_where_there_are_events_enough() -> None:
    design, signal = planted()
    rng = np.random.default_rng(2)
    design = replace(design, groups=np.where(np.arange(ROWS) % 25 == 0, "rare", design.groups))
    time = rng.exponential(np.exp(np.where(design.groups == "lung", 2, -2) * signal))
    outcome = Outcome.survival(time, np.ones(ROWS, bool))
    config = replace(CONFIG, names=("ridge",))
    score = fit_baselines(design, outcome, TRAIN, TUNING, TEST, threads=1, config=config)["ridge"]
    assert np.isfinite(score).all()
    for group in ("lung", "breast"):
        rows = design.groups[TEST] == group
        assert harrell_c(outcome.value[TEST][rows], outcome.event[TEST][rows], score[rows]) > 0.7


def test_both_baselines_learn_a_screen_of_unseen_samples() -> None:
    rng = np.random.default_rng(0)
    samples, drugs = 120, 12
    factor = rng.normal(size=(samples, 3))
    expression = (factor @ rng.normal(size=(3, 300)) + rng.normal(size=(samples, 300))).astype(np.float32)
    sample, drug = (a.ravel() for a in np.meshgrid(np.arange(samples), np.arange(drugs), indexing="ij"))
    value = 5 * rng.normal(size=drugs)[drug] + (factor[sample] * rng.normal(size=(drugs, 3))[drug]).sum(axis=1)
    design = Design(
        omics={"expression": explicit_block(expression)},
        patient=sample,
        regimen=np.eye(drugs, dtype=np.float32)[drug],
        summary=np.zeros((len(sample), 0), np.float32),
        groups=np.full(len(sample), "line"),
    )
    rows = [np.flatnonzero(part) for part in (sample < 80, (sample >= 80) & (sample < 95), sample >= 95)]
    scores = fit_baselines(design, Outcome.regression(value), *rows, threads=1, config=CONFIG)
    assert per_treatment_pearson(value[rows[2]], scores["ridge"], drug[rows[2]]).value > 0.7
    assert per_treatment_pearson(value[rows[2]], scores["boosting"], drug[rows[2]]).value > 0.4
    few = replace(design, omics={}, summary=factor[sample].astype(np.float32))  # of a few markers: no screen
    ridge = fit_baselines(few, Outcome.regression(value), *rows, threads=1, config=replace(CONFIG, names=("ridge",)))
    assert rmse(value[rows[2]], ridge["ridge"]) < np.std(value[rows[2]])


def test_the_same_seed_gives_the_same_scores() -> None:
    design, signal = planted()
    outcome = Outcome.binary((signal > 0).astype(float))
    first = fit_baselines(design, outcome, TRAIN, TUNING, TEST, seed=4, threads=1, config=CONFIG)
    second = fit_baselines(design, outcome, TRAIN, TUNING, TEST, seed=4, threads=1, config=CONFIG)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_held_out_rows_do_not_touch_the_fit() -> None:
    design, signal = planted()
    outcome = Outcome.binary((signal > 0).astype(float))
    config = replace(CONFIG, names=("ridge",))
    changed = design.summary.copy()
    changed[TEST[1:]] = 1e6
    hidden = outcome.value.copy()
    hidden[TEST] = np.nan
    before = fit_baselines(design, outcome, TRAIN, TUNING, TEST, threads=1, config=config)
    after = fit_baselines(replace(design, summary=changed), Outcome.binary(hidden), TRAIN, TUNING, TEST, config=config)
    assert before["ridge"][0] == after["ridge"][0]


def test_works_without_tuning_rows_omics_or_regimens() -> None:
    design, signal = planted()
    bare = replace(design, omics={}, regimen=np.zeros((ROWS, 0), np.float32), groups=np.full(ROWS, "one"))
    y = (signal > 0).astype(float)
    for score in fit_baselines(bare, Outcome.binary(y), TRAIN, TUNING[:0], TEST, threads=1, config=CONFIG).values():
        assert np.isfinite(score).all()


def test_ridge_matrix_is_finite_and_standardised_by_training_rows() -> None:
    design, _ = planted()
    heavy = design.summary.copy()
    heavy[400, 0] = 1e6
    matrix = ridge_matrix(replace(design, summary=heavy), TRAIN, MatrixConfig(components=10), 0)
    assert np.isfinite(matrix).all()
    assert np.abs(matrix[:, 10:]).max() <= 10.0
    assert matrix.shape[1] == 10 + 20 + 6 + 11 + 2
    np.testing.assert_allclose(matrix[TRAIN, 10:].mean(axis=0), 0, atol=1e-6)


def test_wide_designs_are_boosted_on_components() -> None:
    design, _ = planted()
    config = MatrixConfig(components=10)
    assert boosting_matrix(design, TRAIN, config, 0, max_cells=1e9).shape[1] == 300 + 20 + 6 + 12 + 2
    assert boosting_matrix(design, TRAIN, config, 0, max_cells=1e3).shape[1] == 10 + 20 + 6 + 12 + 2


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome.binary(np.ones(ROWS)), "one class"),
        (Outcome.binary(np.full(ROWS, np.nan)), "no training row"),
        (Outcome.survival(np.ones(ROWS), np.zeros(ROWS, bool)), "no event"),
        (Outcome.binary(np.ones(3)), "same rows"),
    ],
)
def test_outcomes_without_signal_are_refused(outcome: Outcome, message: str) -> None:
    design, _ = planted()
    with pytest.raises(ValueError, match=message):
        fit_baselines(design, outcome, TRAIN, TUNING, TEST)


def test_configuration_and_design_say_what_is_wrong() -> None:
    design, _ = planted()
    with pytest.raises(ValueError, match="unknown baseline 'forest'"):
        BaselineConfig(names=("forest",))
    with pytest.raises(ValueError, match="strengths must be positive"):
        BaselineConfig(strengths=())
    with pytest.raises(ValueError, match="one entry per row"):
        replace(design, summary=design.summary[:3])
