"""Likeness to training patients: its closed form, what the network makes of it, and what it must not see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ican_ml.bundle.export import export_bundle
from ican_ml.inputs.schema import FIRST_KNOWN, InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training import kernel
from ican_ml.training.data import PatientData
from ican_ml.training.kernel import _Choice, _Grid, fit_kernel
from ican_ml.training.kernel_logistic import Choice, Episodes
from ican_ml.training.kernel_logistic import fit as fit_likelihood

from .conftest import Parts

CONFIG = ModelConfig(deep=False, landmarks=2000)


@pytest.fixture
def fixed_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the choice, which everybody's outcomes move, out of what is looked at."""
    monkeypatch.setattr(kernel, "_choose", lambda views, *_: _Choice(weight=np.ones(len(views)), noise=0.3))
    monkeypatch.setattr(kernel, "choose", lambda views, *_: Choice(weight=np.ones(len(views)), penalty=3.0))


def _grid(seed: int, drugs: int = 6) -> tuple[np.ndarray, _Grid, np.ndarray]:
    random = np.random.default_rng(seed)
    omics = random.normal(size=(40, 5))
    truth = omics @ random.normal(size=(5, 1)) + 0.3 * omics @ random.normal(size=(5, drugs)) + np.arange(drugs)
    known = random.random(truth.shape) < 0.8
    return omics @ omics.T, _Grid(value=np.where(known, truth, 0), known=known), truth


def test_the_weights_solve_the_system_of_known_pairs() -> None:
    covariance, grid, _ = _grid(1)
    random = np.random.default_rng(2)
    alike = np.cov(random.normal(size=(6, 30)))
    known = grid.known.astype(float)
    found = kernel._solve(covariance, alike, grid.value, known, 0.5)
    pairs = np.kron(covariance, alike)[np.ix_(grid.known.ravel(), grid.known.ravel())]
    wanted = np.linalg.solve(pairs + 0.5 * np.eye(len(pairs)), grid.value[grid.known])
    np.testing.assert_allclose(found[grid.known], wanted, atol=2e-3 * np.abs(wanted).max())
    assert not found[~grid.known].any()


def test_pairs_left_out_are_predicted_from_other_drugs_and_patients() -> None:
    covariance, grid, truth = _grid(3)
    fitted = grid.fit(covariance, 0.1, 3)
    left_out = ~grid.known
    error = np.abs(fitted.predictions - truth)[left_out].mean()
    by_mean = np.abs(truth - np.mean(truth, 0, where=grid.known))[left_out].mean()
    assert error < 0.25 * by_mean
    np.testing.assert_allclose(covariance @ fitted.answer + fitted.mean, fitted.predictions, atol=1e-6)


def test_the_network_gives_what_was_fitted_and_exports_it(schema: InputSchema, parts: Parts, tmp_path: Path) -> None:
    network, train = _fitted(schema, parts, parts.train)
    assert network.kernel is not None
    batch = parts.all.batch(parts.all.rows)
    with torch.no_grad():
        features, _ = network.normalise(batch)
        found = network.kernel(batch, features)
    task = [task.kind for task in network.tasks].index("regression")
    assert (found.flatten(0, 1).std(0) > 0).all()
    assert np.isfinite(train.outcomes["kernel"]).all()
    assert export_bundle(network, schema, tmp_path / "bundle") < 1e-5
    with torch.no_grad():
        network.kernel.weight.zero_()
        network.kernel.answer.zero_()
        means = network.kernel(batch, features)[..., task]
    drug = batch["treatment_drug"]
    of_drug = network.kernel.mean[task][drug] * (drug > 0)
    known = (drug >= FIRST_KNOWN).any(-1)  # others answer by their target genes
    assert known.any()
    torch.testing.assert_close(means[known], (of_drug.sum(-1) / (drug > 0).sum(-1).clamp(min=1))[known])


def test_the_outcomes_of_a_subject_do_not_reach_its_crossed_scores(
    schema: InputSchema, parts: Parts, fixed_choice: None
) -> None:
    subject = np.arange(parts.train.encoded.n_rows) // 2
    chosen = subject == subject[parts.train.rows[0]]
    target = parts.train.outcomes["sensitivity_target"].copy()
    target[chosen] += 3
    happened = 1 - parts.train.outcomes["response_target"]
    happened[~chosen] = parts.train.outcomes["response_target"][~chosen]
    changes = {"sensitivity_target": target, "response_target": happened}
    changed = replace(parts.train, outcomes={**parts.train.outcomes, **changes})
    before, after = (_fitted(schema, parts, train)[1].outcomes["kernel"] for train in (parts.train, changed))
    np.testing.assert_array_equal(before[chosen], after[chosen])
    assert not np.array_equal(before, after)


def _fitted(schema: InputSchema, parts: Parts, train: PatientData) -> tuple[PatientTransformer, PatientData]:
    network = PatientTransformer(CONFIG, schema).eval()
    subject = np.arange(parts.train.encoded.n_rows) // 2
    crossed, _ = fit_kernel(network, train, parts.tuning, subject=subject, seed=1)
    return network, crossed


def test_likelihood_finds_a_bent_boundary_and_keeps_to_earlier_scores() -> None:
    random = np.random.default_rng(5)
    place = random.normal(size=(300, 2))
    logit = 6 * (np.linalg.norm(place, axis=1) < 1) - 3.0
    happened = random.random(300) < 1 / (1 + np.exp(-logit))
    near = np.exp(-np.linalg.norm(place[:, None] - place, axis=2))
    every = np.arange(300)
    episodes = Episodes(
        patient=every,
        slot=np.zeros(300, np.int64),
        target=happened[:, None].astype(float),
        weight=np.ones((300, 1)),
        offset=np.zeros(300),
    )
    weights, start = fit_likelihood(near, episodes.take(every < 200), 1.0)
    assert not weights[200:].any()
    held = episodes.take(every >= 200)
    of_mean = np.log(happened[:200].mean() / (1 - happened[:200].mean()))
    assert held.loss(near @ weights, start)[0] < 0.8 * held.loss(np.zeros(300), np.array([of_mean]))[0]

    known = replace(episodes, offset=logit)
    after, _ = fit_likelihood(near, known.take(every < 200), 1.0)
    assert (near @ after).std() < 0.3 * (near @ weights).std()
