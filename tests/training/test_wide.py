"""The linear path against scikit-learn, and the choice of its strength."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ican_ml.inputs.encode import PatientStates, encode
from ican_ml.inputs.schema import Covariate, InputSchema, Task
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training.data import PatientData
from ican_ml.training.losses import total_loss
from ican_ml.training.wide import NOTHING, cross_fit, fit_wide

from .conftest import Parts

LINEAR = ModelConfig(deep=False)


def small_problem() -> tuple[InputSchema, PatientData, np.ndarray, np.ndarray]:
    """Numbers and drugs only, so that the design is plain: the numbers, an indicator a drug."""
    random = np.random.default_rng(5)
    n, names, drugs = 300, ("a", "b", "c"), ("x", "y")
    numbers = random.normal(size=(n, 3)).astype(np.float32)
    taken = random.integers(0, 3, n)
    regimens = [[() if drug == 2 else (drugs[drug],)] for drug in taken]
    logit = numbers @ [1.0, -0.7, 0.2] + np.array([0.8, -0.8, 0.0])[taken] - 0.4
    response = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    schema = InputSchema(
        modalities=(),
        genes=(),
        drugs=drugs,
        classes=(),
        targets={},
        class_of={},
        vocabulary=None,
        aggregates=None,
        max_events=1,
        max_per_code=1,
        covariates=tuple(Covariate(name=name, categories=None) for name in names),
        summary_mean=np.zeros(3, np.float32),
        summary_inverse_sd=np.ones(3, np.float32),
        tasks=(Task(name="response", kind="binary"),),
    )
    covariates = {name: numbers[:, i].tolist() for i, name in enumerate(names)}
    states = PatientStates(omics={}, events=None, covariates=covariates, regimens=regimens)
    encoded = encode(schema, states)
    outcomes = {"response_target": response[:, None], "response_weight": np.ones((n, 1), np.float32)}
    # Both known drugs are of an unknown class, which has a weight of its own.
    design = np.concatenate([numbers, np.eye(3)[taken][:, :2], (taken < 2)[:, None]], axis=1)
    return schema, PatientData(encoded=encoded, outcomes=outcomes, rows=np.arange(n)), design, response


@pytest.mark.parametrize("strength", [30.0, 3.0])
def test_scikit_learn_finds_the_same(strength: float) -> None:
    schema, data, design, response = small_problem()
    network = PatientTransformer(LINEAR, schema)
    fit_wide(network, data, data, strengths=[strength])
    reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=1000).fit(design, response)
    with torch.inference_mode():
        found = network(data.batch(data.rows))["response"][:, 0]
    np.testing.assert_allclose(found, reference.decision_function(design), atol=1e-3)
    np.testing.assert_allclose(network.wide.summary.weight.detach(), reference.coef_[:, :3], atol=1e-3)


def test_the_strength_is_chosen_on_tuning_patients(schema: InputSchema, parts: Parts) -> None:
    network = PatientTransformer(LINEAR, schema)
    found = fit_wide(network, parts.train, parts.tuning, strengths=[1000.0, 100.0, 10.0, 1.0])
    losses = dict(found.path)
    assert next(iter(losses)) == 1000.0
    assert found.strength == min(losses, key=lambda strength: losses[strength])
    batch = parts.tuning.batch(parts.tuning.rows)
    with torch.inference_mode():
        assert float(total_loss(network.tasks, network(batch), batch)) == pytest.approx(
            losses[found.strength], rel=1e-5
        )


def test_the_fit_is_the_same_twice_and_leaves_the_deep_path(schema: InputSchema, parts: Parts) -> None:
    torch.manual_seed(1)
    network = PatientTransformer(ModelConfig(width=8, heads=2, bottleneck_tokens=2), schema)
    other = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())
    for one in (network, other):
        fit_wide(one, parts.train, parts.tuning, strengths=[100.0])
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in other.state_dict().items())
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"wide", "bias"}


def test_an_empty_path_still_fits_its_biases() -> None:
    schema, data, _, response = small_problem()
    network = PatientTransformer(ModelConfig(deep=False, trees=1, tree_depth=1), schema)
    found = fit_wide(network, data, data, strengths=[1e12])
    assert dict(found.path).keys() == {NOTHING, 1e12}
    odds = np.log(response.mean() / (1 - response.mean()))
    np.testing.assert_allclose(network.bias["response"].detach(), odds, atol=1e-3)
    assert abs(network.wide.summary.weight.detach()).max() < 1e-6


def test_what_a_pretrained_network_answers_hardly_feels_the_penalty() -> None:
    schema, data, _, _ = small_problem()
    pretrained = PatientTransformer(LINEAR, schema)
    fit_wide(pretrained, data, data, strengths=[3.0])
    few = PatientData(encoded=data.encoded, outcomes=data.outcomes, rows=data.rows[:40])
    losses = []
    for earlier in (None, pretrained):
        network = PatientTransformer(LINEAR, schema, earlier)
        fit_wide(network, few, few, strengths=[100.0])
        batch = data.batch(data.rows)
        with torch.inference_mode():
            losses.append(float(total_loss(network.tasks, network(batch), batch)))
    assert losses[1] < losses[0] - 0.03
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())


def test_a_pretrained_network_answers_by_its_own_scores(schema: InputSchema, parts: Parts) -> None:
    pretrained = PatientTransformer(LINEAR, replace(schema, tasks=schema.tasks[:1]))
    network = PatientTransformer(ModelConfig(width=8, heads=2, bottleneck_tokens=2), schema, pretrained)
    crossed = cross_fit(network, parts.train, np.arange(parts.train.encoded.n_rows), strength=100.0, seed=1)
    rows = parts.train.rows
    found, expected = (network.with_earlier(data.batch(rows))["earlier"] for data in (crossed, parts.train))
    torch.testing.assert_close(found, expected)
    network.member_outputs(crossed.batch(rows))
