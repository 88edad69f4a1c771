"""Calibration finds what is wrong with the probabilities, leaves what it cannot know, and does no harm."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ican_ml.evaluation.conformal import Calibration, calibrations
from ican_ml.inputs.answer import sigmoid
from ican_ml.inputs.assemble import CohortStates
from ican_ml.inputs.schema import InputSchema
from ican_ml.model.patient_transformer import ModelConfig, PatientTransformer
from ican_ml.training.calibration import MIN_EPISODES, calibrate, platt, platt_variance
from ican_ml.training.config import TrainerConfig, TrainingConfig
from ican_ml.training.data import PatientData
from ican_ml.training.loop import fit

from .conftest import Parts

TINY = ModelConfig(width=8, heads=2, bottleneck_tokens=2)


def drawn(n: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(scale=1.5, size=n)
    return logit, (rng.random(n) < sigmoid(slope * logit + intercept)).astype(float)


def loss(logit: np.ndarray, happened: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> float:
    line = slope * logit + intercept
    return float((np.logaddexp(0, line) - happened * line).mean())


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, 0.0), (1.0, 0.0), (1.6, -0.7)])
def test_a_known_line_is_recovered(slope: float, intercept: float) -> None:
    assert platt(*drawn(20_000, slope, intercept)) == pytest.approx((slope, intercept), abs=0.06)


def test_few_episodes_stay_nearer_to_the_identity() -> None:
    few = np.array([platt(*drawn(60, 0.3, 0.0, seed)) for seed in range(20)])
    many = np.array([platt(*drawn(6000, 0.3, 0.0, seed)) for seed in range(5)])
    assert 0.3 < many[:, 0].mean() + 0.05 < few[:, 0].mean() < 1


def test_it_is_never_worse_than_the_identity_and_turns_no_order_round() -> None:
    for seed in range(30):
        for n in (1, 5, 100):
            logit, happened = drawn(n, [-1.0, 0.0, 1.0][seed % 3], 0.0, seed)
            slope, intercept = platt(20 * logit, happened)
            assert slope > 0
            assert loss(20 * logit, happened, slope, intercept) <= loss(20 * logit, happened)


def test_the_interval_holds_the_true_share_as_often_as_it_says() -> None:
    shares = np.array([0.1, 0.35, 0.6, 0.9])
    held, width = [], {}
    for n in (100, 400):
        for seed in range(200):
            rng = np.random.default_rng(seed)
            subject = np.repeat(np.arange(n), 2)
            once = rng.normal(scale=1.5, size=n)
            happened = np.repeat((rng.random(n) < sigmoid(0.8 * once + 0.2)).astype(float), 2)
            logit = np.repeat(once, 2)  # two episodes of a subject tell no more than one
            slope, intercept = platt(logit, happened)
            spread = platt_variance(logit, happened, subject, slope, intercept)
            found = Calibration(
                task="response",
                slope=slope,
                intercept=intercept,
                coverage=0.9,
                quantile=0.5,
                n_episodes=2 * n,
                n_subjects=n,
                variance=spread,
            )
            raw = (np.log(shares / (1 - shares)) - 0.2) / 0.8  # what the network says of those with these shares
            ends = np.array([found.interval(float(p)) for p in sigmoid(slope * raw + intercept)])
            held.append((ends[:, 0] <= shares) & (shares <= ends[:, 1]))
            width[n] = ends[:, 1] - ends[:, 0]
    assert np.all(np.mean(held, axis=0) > 0.92)
    assert np.all(np.mean(held, axis=0) < 0.99)
    assert np.all(width[400] < 0.7 * width[100]), "more subjects tell more closely"


def test_the_interval_holds_the_probability_itself_and_stays_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    logit, happened = drawn(120, 1.0, 0.0)
    found = Calibration(
        task="response",
        slope=1.0,
        intercept=0.0,
        coverage=0.9,
        quantile=0.5,
        n_episodes=120,
        n_subjects=120,
        variance=platt_variance(logit, happened, np.arange(120), 1.0, 0.0),
    )
    for probability in (0.0, 1e-12, 0.5, *rng.random(20).tolist(), 1.0):
        low, high = found.interval(probability)
        assert 0 <= low <= probability <= high <= 1
    before = {name: value for name, value in found.to_dict().items() if name != "variance"}
    assert calibrations([before])["response"].interval(0.5) is None, "a bundle of before has none"


@pytest.fixture
def network(schema: InputSchema) -> PatientTransformer:
    """A network whose answers vary, and are too extreme."""
    torch.manual_seed(1)
    network = PatientTransformer(TINY, schema).eval()
    with torch.no_grad():
        network.wide.summary.weight.normal_(std=0.5)
    return network


def answers(network: PatientTransformer, parts: Parts) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return network(parts.all.batch(parts.all.rows[:20]))


def everyone(parts: Parts) -> PatientData:
    """All episodes, which are enough."""
    assert all((parts.all.outcomes["response_target"] == value).sum() >= MIN_EPISODES for value in (0, 1))
    return parts.all


def test_the_networks_answers_are_calibrated(network: PatientTransformer, parts: Parts, states: CohortStates) -> None:
    before = answers(network, parts)
    found = calibrate(network, everyone(parts), states.subject_id, coverage=0.9)
    assert list(found) == ["response"], "the other tasks are not binary"
    calibration = found["response"]
    assert 0 < calibration.slope < 0.8
    assert calibration.n_episodes == int(parts.all.outcomes["response_weight"].sum())
    assert calibration.n_subjects == len(np.unique(states.subject_id))
    after = answers(network, parts)
    expected = calibration.slope * before["response"] + calibration.intercept
    torch.testing.assert_close(after["response"], expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(after[name], before[name]) for name in ("os", "sensitivity"))
    assert torch.equal(network.member_outputs(parts.all.batch(parts.all.rows[:20]))[0]["response"], before["response"])
    assert calibrate(network, everyone(parts), states.subject_id, coverage=0.9) == found, "it starts anew"


def test_the_sets_hold_the_share_of_its_own_episodes(
    network: PatientTransformer, parts: Parts, states: CohortStates
) -> None:
    data = everyone(parts)
    calibration = calibrate(network, data, states.subject_id, coverage=0.8)["response"]
    with torch.inference_mode():
        logit = network(data.batch(data.rows))["response"].double().numpy()
    known = data.outcomes["response_weight"] > 0
    happened = data.outcomes["response_target"][known] == 1
    inside = calibration.members(sigmoid(logit[known]))
    assert np.where(happened, inside[:, 0], inside[:, 1]).mean() == pytest.approx(0.8, abs=0.02)


def test_too_few_episodes_change_nothing(network: PatientTransformer, parts: Parts, states: CohortStates) -> None:
    before = answers(network, parts)
    for data in (parts.tuning, replace(parts.all, rows=parts.all.rows[:0])):
        assert calibrate(network, data, states.subject_id, coverage=0.9) == {}
        assert all(torch.equal(output, before[name]) for name, output in answers(network, parts).items())


@pytest.mark.parametrize("trees", [0, 20])
def test_trees_are_calibrated_by_scores_of_trees_that_have_not_grown_there(
    schema: InputSchema, parts: Parts, states: CohortStates, tmp_path: Path, trees: int
) -> None:
    schema = replace(schema, tasks=schema.tasks[:1])
    result = fit(
        schema,
        parts.train,
        everyone(parts),
        subject=states.subject_id,
        model=replace(TINY, deep=False, trees=trees),
        training=TrainingConfig(wide_strengths=[300.0], tree_patience=5, tree_rate=0.3, coverage=0.85),
        trainer=TrainerConfig(threads=1),
        folder=tmp_path,
        seed=5,
    )
    found = result.calibration["response"]
    assert found.coverage == 0.85
    buffer = result.network.get_buffer("calibration_response")
    assert buffer.tolist() == [found.slope, found.intercept]
    own = calibrate(result.network, everyone(parts), states.subject_id, coverage=0.85)["response"]
    if trees:
        assert own.quantile < found.quantile, "the kept trees look more certain where they have grown"
    else:
        assert own == found
